/* Leaving: an uploader that gives up the seat leaves nobody behind, and there are never two on the seat.

What it mirrors. Workers that append, look, close, look once more and, if they wait for their data, go on looking
(`worker`, `ending`, `progress`); a look that takes the seat without waiting and hands it to an uploader (`election`);
uploaders that read the cards one by one, then the event files, send, note who is served, remove the cards of the dead,
and leave when nobody lives and nobody is unserved: they give up the seat, read the cards once more, and take the seat
back if somebody lives or is unserved (`uploader`, `audience`, `roster`).

What it leaves out. Event files are two records long, and the Hub takes what it is sent, see fence.pml. Time: a look
happens at any moment, a wait goes on while something can still happen. More than two uploaders at once, of which one
is on the seat and the others are about to end. A worker that dies, SIGTERM, a Hub that is away for so long that the
uploader gives up, an uploader that dies after the last look of all: these leave data to the next start, which is
promised. An uploader that dies earlier, once, is in.

Properties. Only who holds the seat sends; there is no deadlock (nobody waits in vain) and no cycle (nobody waits for
ever); at the end the Hub has what every worker has logged.

Variants that must fail: NO_SECOND_LOOK, SECOND_LOOK_FIRST (before the seat is given up), NO_LAST_LOOK (a worker closes
and does not look), FILES_BEFORE_CARDS (what is appended between the two looks of a snapshot counts as sent), TWO_STEPS
(between worker and uploader the seat is free, and the uploader does not ask whether it gets it). */

#define NOBODY 2 /* the uploaders are 0 and 1, and so are the workers */

mtype = { absent, living, dead, removed };

byte seat = NOBODY;
bool started[2];              /* uploaders */
bool killed[2];
mtype card[2] = absent;       /* from here on: of workers */
byte logged[2], hub[2];
bool waits, looked[2], over[2];

#ifdef TWO_STEPS
#define START(uploader) started[uploader] = true
#else
#define START(uploader) started[uploader] = true; seat = uploader
#endif
#define UNSERVED(w) (card[w] == living || (card[w] == dead && !served[w]))

inline look(last) { /* by a worker: take the seat if it is free, hand it to an uploader */
    atomic {
        if
        :: seat != NOBODY
        :: seat == NOBODY && !started[0] -> START(0)
        :: seat == NOBODY && !started[1] -> START(1)
        fi;
        looked[me] = last
    }
}

proctype Uploader(bit me) {
    bool served[2], died[2], surveyed, something;
    byte length[2];

end_idle:
    started[me];
#ifdef TWO_STEPS
    seat = me;
#endif
    {
    do
    :: atomic { /* a tick; at others nothing happens */
            assert(seat == me);
            (card[0] == living && hub[0] < logged[0]) || (card[1] == living && hub[1] < logged[1]) ||
            (card[0] != living && card[1] != living)
        };
#ifdef FILES_BEFORE_CARDS
        atomic { length[0] = logged[0]; length[1] = logged[1] };
#endif
        atomic {
            died[0] = (card[0] == dead); died[1] = (card[1] == dead);
            if
            :: surveyed && !UNSERVED(0) && !UNSERVED(1) -> goto leave
            :: else
            fi
        };
#ifndef FILES_BEFORE_CARDS
        atomic { length[0] = logged[0]; length[1] = logged[1] };
#endif
        atomic { /* the commit; what the Hub has never becomes less, see fence.pml */
            assert(seat == me);
            hub[0] = (length[0] > hub[0] -> length[0] : hub[0]);
            hub[1] = (length[1] > hub[1] -> length[1] : hub[1]);
            if
            :: died[0] -> served[0] = true; card[0] = removed
            :: else
            fi;
            if
            :: died[1] -> served[1] = true; card[1] = removed
            :: else
            fi;
            surveyed = true; died[0] = false; died[1] = false; length[0] = 0; length[1] = 0;
            goto next
        };
leave:
#ifdef SECOND_LOOK_FIRST
        something = UNSERVED(0) || UNSERVED(1);
        seat = NOBODY;
#else
        seat = NOBODY;
#ifdef NO_SECOND_LOOK
        break;
#endif
        something = UNSERVED(0);
        something = something || UNSERVED(1);
#endif
        atomic {
            if
            :: something && seat == NOBODY -> seat = me
            :: else -> break
            fi
        };
next:
        skip
    od
    } unless { killed[me] };
    atomic { /* it is gone, with all it knew; the next one that is started begins anew */
        started[me] = false; killed[me] = false; surveyed = false; something = false;
        served[0] = false; served[1] = false; died[0] = false; died[1] = false; length[0] = 0; length[1] = 0
    };
    goto end_idle
}

proctype Worker(bit me) {
    card[me] = living;
    logged[me]++;
    look(false);
#ifndef ONE_RECORD
    if
    :: logged[me]++
    :: skip
    fi;
#endif
    card[me] = dead;
#ifdef NO_LAST_LOOK
    looked[me] = true;
#else
    look(true);
#endif
    if
    :: waits && me == 0 -> /* for its data; it looks again when that can help */
        do
        :: hub[me] == logged[me] -> break
        :: seat == NOBODY && hub[me] < logged[me] -> look(true)
        od
    :: else
    fi;
    over[me] = true
}

proctype Killer() {
    if
#ifndef NO_DEATH
    :: atomic { seat != NOBODY && !(looked[0] && looked[1]) -> killed[seat] = true; seat = NOBODY }
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
