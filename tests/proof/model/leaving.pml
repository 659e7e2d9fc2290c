/* Leaving: an uploader that releases its lock leaves no data behind, and there are never two that hold it.

What it mirrors. Workers that append, ensure an uploader, close, ensure one once more and, if they wait for their data,
go on doing so (`worker`, `ending`, `progress`); an election that takes the lock without waiting and hands it to an
uploader (`election`); uploaders that read the member files one by one, then the event files, send, note whose data is
sent, remove the member files of the dead, and leave when no member lives and none is unsent: they release the lock,
scan the member files once more, and take the lock back if a member lives or is unsent (`loop`, `requests`, `members`).

What it leaves out. Event files are two records long, and the Hub takes what it is sent, see fence.pml. Time: an
election happens at any moment, a wait goes on while something can still happen. More than two uploaders at once, of
which one holds the lock and the others are about to end. A worker that dies, SIGTERM, a Hub that is away for so long
that the uploader gives up, an uploader that dies after the last election of all: these leave data to the next start,
which is promised. An uploader that dies earlier, once, is in.

Properties. Only the holder of the lock sends; there is no deadlock (no wait in vain) and no cycle (no endless wait);
at the end the Hub has what every worker has logged.

Variants that must fail: NO_SECOND_SCAN, SECOND_SCAN_FIRST (before the lock is released), NO_LAST_CHECK (a worker closes
and does not ensure an uploader), FILES_BEFORE_MEMBERS (what is appended between the two scans of a snapshot counts as
sent), TWO_STEPS (between worker and uploader the lock is free, and the uploader does not ask whether it gets it). */

#define FREE 2 /* the uploaders are 0 and 1, and so are the workers */

mtype = { absent, living, dead, removed };

byte lock = FREE;
bool started[2];              /* uploaders */
bool killed[2];
mtype member[2] = absent;       /* from here on: of workers */
byte logged[2], hub[2];
bool waits, ensured[2], over[2];

#ifdef TWO_STEPS
#define START(uploader) started[uploader] = true
#else
#define START(uploader) started[uploader] = true; lock = uploader
#endif
#define UNSENT(w) (member[w] == living || (member[w] == dead && !sent[w]))

inline ensure_uploader(last) { /* by a worker: take the lock if it is free, hand it to an uploader */
    atomic {
        if
        :: lock != FREE
        :: lock == FREE && !started[0] -> START(0)
        :: lock == FREE && !started[1] -> START(1)
        fi;
        ensured[me] = last
    }
}

proctype Uploader(bit me) {
    bool sent[2], died[2], surveyed, something;
    byte length[2];

end_idle:
    started[me];
#ifdef TWO_STEPS
    lock = me;
#endif
    {
    do
    :: atomic { /* a tick; at others nothing happens */
            assert(lock == me);
            (member[0] == living && hub[0] < logged[0]) || (member[1] == living && hub[1] < logged[1]) ||
            (member[0] != living && member[1] != living)
        };
#ifdef FILES_BEFORE_MEMBERS
        atomic { length[0] = logged[0]; length[1] = logged[1] };
#endif
        atomic {
            died[0] = (member[0] == dead); died[1] = (member[1] == dead);
            if
            :: surveyed && !UNSENT(0) && !UNSENT(1) -> goto leave
            :: else
            fi
        };
#ifndef FILES_BEFORE_MEMBERS
        atomic { length[0] = logged[0]; length[1] = logged[1] };
#endif
        atomic { /* the commit; what the Hub has never becomes less, see fence.pml */
            assert(lock == me);
            hub[0] = (length[0] > hub[0] -> length[0] : hub[0]);
            hub[1] = (length[1] > hub[1] -> length[1] : hub[1]);
            if
            :: died[0] -> sent[0] = true; member[0] = removed
            :: else
            fi;
            if
            :: died[1] -> sent[1] = true; member[1] = removed
            :: else
            fi;
            surveyed = true; died[0] = false; died[1] = false; length[0] = 0; length[1] = 0;
            goto next
        };
leave:
#ifdef SECOND_SCAN_FIRST
        something = UNSENT(0) || UNSENT(1);
        lock = FREE;
#else
        lock = FREE;
#ifdef NO_SECOND_SCAN
        break;
#endif
        something = UNSENT(0);
        something = something || UNSENT(1);
#endif
        atomic {
            if
            :: something && lock == FREE -> lock = me
            :: else -> break
            fi
        };
next:
        skip
    od
    } unless { killed[me] };
    atomic { /* it is dead, with all its state; the next one starts from nothing */
        started[me] = false; killed[me] = false; surveyed = false; something = false;
        sent[0] = false; sent[1] = false; died[0] = false; died[1] = false; length[0] = 0; length[1] = 0
    };
    goto end_idle
}

proctype Worker(bit me) {
    member[me] = living;
    logged[me]++;
    ensure_uploader(false);
#ifndef ONE_RECORD
    if
    :: logged[me]++
    :: skip
    fi;
#endif
    member[me] = dead;
#ifdef NO_LAST_CHECK
    ensured[me] = true;
#else
    ensure_uploader(true);
#endif
    if
    :: waits && me == 0 -> /* for its data; it ensures an uploader when that can help */
        do
        :: hub[me] == logged[me] -> break
        :: lock == FREE && hub[me] < logged[me] -> ensure_uploader(true)
        od
    :: else
    fi;
    over[me] = true
}

proctype Killer() {
    if
#ifndef NO_DEATH
    :: atomic { lock != FREE && !(ensured[0] && ensured[1]) -> killed[lock] = true; lock = FREE }
#endif
    :: skip
    fi
}

init {
    atomic {
        if
        :: waits = true
        :: skip
        fi;
        run Worker(0); run Worker(1); run Uploader(0); run Uploader(1); run Killer()
    };
    over[0] && over[1] && !started[0] && !started[1];
    assert(hub[0] == logged[0] && hub[1] == logged[1])
}
