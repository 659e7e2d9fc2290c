/* Hand-over: a run passes from an usher to a living uploader; there are never two that act for it, nor none for long.

What it mirrors. Workers that start an usher with the lock of their run if it is free (`election`); ushers that send
it to an uploader that serves, wait, shut the connection down, look once more, and lock anew if there was no answer
(`meeting.hand_over`, `locks.renew`); the uploader that reads, takes or refuses, and leaves the meeting point
(`meeting.Meeting`); and what either does with a run: it sends, frees the lock, looks once more, takes the lock back
(`upload`, see leaving.pml). A lock belongs to an open file description: it is held while a process, or a queue in the
kernel, has a descriptor of it, or until it is freed.

What it leaves out. Other runs of the uploader, and a second one at the meeting point: each is asked alone. Time: the
patience of an usher may end at any moment. An uploader that is stopped for ever, while the run is not its own, is in;
so is an usher or an uploader that is killed, once and at any moment.

Properties. Never two act, and who acts holds the lock; it is free in between only for the moment in which an usher
locks anew. If no process is killed, the Hub has at the end what each worker has logged. At the end the lock is free
for the next start, unless an usher was killed while it waited for an uploader that is stopped: then it is when that
one goes on.

Variants that must fail: NO_SHUTDOWN, NO_LOOK (an usher shuts the connection down, and does not look once more), DEAF
(who takes a run does not note that the usher has gone), LATE_TAKEN (it says so when it acts already),
CONNECTION_FIRST (who refuses ends the connection, then closes the descriptors), KEPT_DESCRIPTION (an usher without an
answer does not lock anew), CLOSED_ONLY (who leaves a run closes its descriptor, but does not free the lock). */

#ifndef KILLS
#define KILLS 1
#endif

#define USHERS 2              /* at once; a number is used again when nothing is left of it */
#define SERVER USHERS         /* the number of the uploader that serves, among those that act */
#define BACK (2 * USHERS)     /* the description by which it takes a lock back */
#define FREE 255
#define BY_USHER 1            /* who has a descriptor: a bit each */
#define BY_QUEUE 2
#define BY_SERVER 4

byte lock = FREE;             /* the description that holds it: 2u is that of usher u, 2u+1 a later one */
byte holders[BACK + 1];       /* of each description */
bool started[USHERS], sent[USHERS], taken[USHERS], ended[USHERS]; /* ended: by the uploader; sent: and not read yet */
bool gone[USHERS];            /* the usher has shut the connection down */
bool acts[USHERS + 1];
byte asked = USHERS;          /* whose request the uploader has read and not answered */
byte at_work = 2;             /* workers */
bool listens = true, busy, stopped;
bool killed[USHERS], killed_server, some_killed, waits[USHERS], excused;
bool living[2], unsent[2];

#define SOMETHING (living[0] || living[1] || unsent[0] || unsent[1])

inline let_go(d, who) { holders[d] = holders[d] & (7 - who) }

inline drop(d, who) { /* close a descriptor */
    let_go(d, who);
    if
    :: lock == d && holders[d] == 0 -> lock = FREE
    :: else
    fi
}

inline free(d, who) {
#ifdef CLOSED_ONLY
    drop(d, who)
#else
    assert(lock == d);
    lock = FREE; let_go(d, who)
#endif
}

inline begin(one, d) {
    assert(!acts[0] && !acts[1] && !acts[SERVER]);
    assert(lock == d);
    acts[one] = true
}

inline act(one, who, back) { /* until it leaves the run; `d` is the description by which it holds the lock */
    do
    :: atomic { unsent[0] || unsent[1] -> assert(lock == d); unsent[0] = false; unsent[1] = false }
    :: atomic { !SOMETHING -> acts[one] = false; free(d, who) };
        atomic { /* look once more */
            if
            :: SOMETHING && lock == FREE -> d = back; lock = d; holders[d] = who; begin(one, d)
            :: else -> break
            fi
        }
    od
}

proctype Usher(byte me) {
    byte d;

end_idle:
    started[me];
    {
    if
    :: atomic { listens ->
            sent[me] = true; waits[me] = true; d = 2 * me; holders[2 * me] = holders[2 * me] | BY_QUEUE };
        if
        :: atomic { taken[me] || ended[me] -> goto answered }
        :: skip
        fi;
#ifndef NO_SHUTDOWN
        gone[me] = true;
#endif
#ifndef NO_LOOK
        if
        :: atomic { taken[me] -> goto leave }
        :: atomic { !taken[me] }
        fi;
#endif
#ifndef KEPT_DESCRIPTION
        atomic { assert(lock == d); lock = FREE }; /* lock anew */
        atomic {
            if
            :: lock == FREE -> lock = d + 1; holders[d + 1] = BY_USHER; let_go(d, BY_USHER); d = d + 1
            :: else -> goto leave
            fi
        };
#endif
        goto alone;
answered:
        atomic {
            if
            :: taken[me] -> goto leave
            :: else
            fi
        }
    :: atomic { d = 2 * me } /* none was found */
    fi;
alone:
    atomic { waits[me] = false; begin(me, d) };
    act(me, BY_USHER, 2 * me + 1);
leave:
    skip /* it may take a while to end */
    } unless { killed[me] };
    atomic {
        drop(2 * me, BY_USHER); drop(2 * me + 1, BY_USHER);
        killed[me] = false; started[me] = false; waits[me] = false; taken[me] = false; ended[me] = false; d = 0;
        gone[me] = (holders[2 * me] != 0);
        goto end_idle
    }
}

inline read(u) {
    sent[u] = false; holders[2 * u] = holders[2 * u] & (7 - BY_QUEUE) | BY_SERVER; asked = u; busy = true
}

inline end_connection(u) { /* what was not read goes with it */
    if
    :: sent[u] -> sent[u] = false; drop(2 * u, BY_QUEUE)
    :: else
    fi;
    ended[u] = started[u]
}

proctype Server() {
    byte d;

    {
    do
    :: atomic { sent[0] -> read(0) }; goto answer
    :: atomic { sent[1] -> read(1) }; goto answer
    :: atomic { sent[0] || sent[1] -> goto stop }
    :: atomic { listens = false; end_connection(0); end_connection(1); goto leave }
answer:
        if
        :: /* take */
#ifdef LATE_TAKEN
            atomic { d = 2 * asked; begin(SERVER, d) };
            atomic { taken[asked] = true; asked = USHERS };
#else
            atomic {
                if
#ifndef DEAF
                :: gone[asked] -> drop(2 * asked, BY_SERVER); goto next
#endif
                :: else -> taken[asked] = true; d = 2 * asked; asked = USHERS
                fi
            };
            atomic { begin(SERVER, d) };
#endif
            act(SERVER, BY_SERVER, BACK)
        :: /* refuse */
#ifdef CONNECTION_FIRST
            ended[asked] = started[asked];
            if
            :: skip
            :: goto stop
            fi;
            atomic { drop(2 * asked, BY_SERVER) }
#else
            atomic { drop(2 * asked, BY_SERVER) };
            atomic { ended[asked] = started[asked] }
#endif
        :: goto stop
        fi;
next:
        atomic { asked = USHERS; busy = false; d = 0 }
    od;
stop:
    stopped = true;
end_stopped:
    false;
leave:
    skip
    } unless { killed_server }
}

inline start(u) { /* by a worker that got the lock */
    started[u] = true; gone[u] = false; lock = 2 * u; holders[2 * u] = BY_USHER
}

#define VACANT(u) (lock == FREE && !started[u] && asked != u && !holders[2 * u])

inline ensure() {
    if
    :: lock != FREE
    :: VACANT(0) -> start(0)
    :: !VACANT(0) && VACANT(1) -> start(1)
    fi
}

proctype Worker(bit me) {
end_full: /* it waits for ever where no more ushers are in the model */
    atomic { ensure(); living[me] = true };
    atomic { unsent[me] = true; living[me] = false };
end_full_again:
    atomic { ensure(); at_work-- }
}

inline kill_usher(u) {
    killed[u] = true; some_killed = true; gone[u] = true; acts[u] = false;
    drop(2 * u, BY_USHER); drop(2 * u + 1, BY_USHER);
    excused = waits[u] && lock == 2 * u
}

inline kill_server() {
    killed_server = true; some_killed = true; listens = false; acts[SERVER] = false; busy = false;
    end_connection(0); end_connection(1);
    drop(0, BY_SERVER); drop(2, BY_SERVER); drop(BACK, BY_SERVER)
}

proctype Killer() {
    if
#if KILLS
    :: atomic { started[0] -> kill_usher(0) }
    :: atomic { started[1] -> kill_usher(1) }
    :: atomic { true -> kill_server() }
#endif
    :: skip
    fi
}

init {
    atomic { run Worker(0); run Worker(1); run Usher(0); run Usher(1); run Server(); run Killer() };
end_all:
    at_work == 0 && !started[0] && !started[1] && (stopped || !busy);
    assert(some_killed || !SOMETHING);
    assert(lock == FREE || excused)
}
