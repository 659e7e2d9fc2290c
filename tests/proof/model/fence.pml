/* The fence: no commit of ours makes the Hub's copy of an event file shorter, whatever dies, however late a request is.

What it mirrors. One event file that grows (`event_file`); the branch with its head, and a user who commits to it too
(`localhub`, the real Hub); per host the durable state: ledger, the batch of the outbox, the record in flight (`ledger`,
`outbox`); uploaders with recovery, snapshot, push, settling (`loop`, `decision`), which may die after every write;
pushes that read back and commit with a parent or, where the branch is busy, without (`commit`, `pacing`); requests that
are refused, are applied without an answer, get lost, or arrive later, when their push and its uploader are long dead.

What it leaves out. Bytes: a file is its length. Why a push goes without a parent: it may at any time. Time: "the settle
time has passed" means that no request without a parent that was sent before is under way any more; one with a parent
may be under way for ever. The uploader lock is a variable, see leaving.pml. For power cuts see test_durability.py.
At most FAULTS things go wrong in all, and uploaders die at most KILLS times.

Properties. The Hub's copy never becomes shorter; no ledger claims more than the Hub has; there is no cycle and no
deadlock, so it ends, and at the end the Hub and a ledger have all.

Variants that must fail: NO_SETTLE, NO_SETTLE_AFTER_KILL (a successor does not heed the record), LATE_RECORD (it is
written after the request has left), EARLY_FORGET (it is removed although an earlier request may be under way),
SNAPSHOT_WHILE_SETTLING, NO_PARENT_WHILE_SETTLING (a successor may have an older batch than what is under way),
NO_READ_BACK, EARLY_LEDGER (saved before the commit), TWO_AT_ONCE (no locks between hosts: both upload).
Variants that hold: ALWAYS_PARENT with NO_SETTLE, or with TWO_AT_ONCE: the parent alone is enough. */

#ifndef FULL
#define FULL 2 /* the length that the event file grows to */
#endif
#define NONE 255
#define FREE 2

#ifndef KILLS
#define KILLS 2
#endif
#ifndef FAULTS
#define FAULTS 2
#endif

mtype = { done, moved, unknown };

byte size, hub, head;
byte ledger[2], outbox[2];             /* on disk, per host; a batch is the length it carries, 0: there is none */
bool record[2], unfenced[2];          /* in flight: whether there is a record, and whether its commit has no parent */
byte late_length[2], late_parent[2];  /* requests under way whose push is gone; length 0: none */
byte lock = FREE, kills, faults, theirs, finished;

#define SOME_LATE (late_length[0] || late_length[1])
#define LATE_UNFENCED ((late_length[0] && late_parent[0] == NONE) || (late_length[1] && late_parent[1] == NONE))

inline apply(length, parent, verdict) {
    if
    :: parent == NONE || parent == head ->
        assert(length >= hub);
        hub = length; head++; verdict = done
    :: else -> verdict = moved
    fi
}

proctype Training() {
    do
    :: size < FULL -> size++
    :: else -> break
    od
}

proctype Others() { /* who commit to the same branch */
    if
    :: atomic { theirs++; head++ }
    :: skip
    fi
}

proctype Network() { /* what is late arrives in any order, or never */
    mtype ignored;
    byte n;
    do
    :: atomic {
        SOME_LATE ->
        if
        :: late_length[0] -> n = 0
        :: late_length[1] -> n = 1
        fi;
        if
        :: apply(late_length[n], late_parent[n], ignored)
        :: skip
        fi;
        late_length[n] = 0; late_parent[n] = 0; n = 0; ignored = 0
    }
    :: atomic { finished == 2 && !SOME_LATE -> break }
    od
}

#define MAY_DIE if :: kills < KILLS -> kills++; goto died :: skip fi

proctype Uploader(byte host) {
    byte known, batch, own, parent, seen;
    bool frozen, fresh, fenced;
    mtype verdict;

vacant:
    atomic {
#ifndef TWO_AT_ONCE
        lock == FREE -> lock = host;
#endif
        /* recover */
        known = (ledger[0] > ledger[1] -> ledger[0] : ledger[1]);
        batch = (outbox[host] > known -> outbox[host] : 0);
        outbox[host] = batch;
        own = NONE; fresh = false;
#if defined(NO_SETTLE) || defined(NO_SETTLE_AFTER_KILL)
        frozen = false
#else
        frozen = (record[0] && unfenced[0]) || (record[1] && unfenced[1])
#endif
    }
    do
    :: atomic { frozen && !LATE_UNFENCED -> frozen = false; own = NONE; record[host] = false; unfenced[host] = false }

#ifdef SNAPSHOT_WHILE_SETTLING
    :: atomic { !fresh && size > known ->
#else
    :: atomic { !fresh && !frozen && size > known ->
#endif
        batch = size; fresh = true;
        if
        :: outbox[host] = batch
        :: faults < FAULTS -> faults++ /* the disk is full: an older batch stays, this one is in memory only */
        fi };
        MAY_DIE

    :: atomic { batch && (fresh || frozen) ->
#ifdef ALWAYS_PARENT
        fenced = true;
#else
        if
        :: fenced = true
#ifndef NO_PARENT_WHILE_SETTLING
        :: !frozen -> fenced = false
#else
        :: fenced = false
#endif
        fi;
#endif
#ifdef EARLY_LEDGER
        ledger[host] = batch; assert(ledger[host] <= hub);
#endif
#ifndef LATE_RECORD
        record[host] = true; unfenced[host] = !fenced || frozen
#endif
        };
        MAY_DIE;
        atomic { /* the push reads back at one commit */
#ifdef NO_READ_BACK
            parent = head; seen = known;
#else
            if
            :: own == NONE -> parent = head; seen = hub
            :: else -> parent = own; seen = known
            fi;
#endif
        };
        atomic {
            if
            :: seen >= batch -> batch = seen; verdict = done
            :: else ->
                if
                :: fenced -> skip
                :: else -> parent = NONE
                fi;
                if
                :: apply(batch, parent, verdict); parent = head /* if it is done, this is its commit */
                :: faults < FAULTS -> faults++; apply(batch, parent, verdict); verdict = unknown
                :: faults < FAULTS -> faults++; verdict = unknown
                :: faults < FAULTS && !late_length[0] ->
                    faults++; late_length[0] = batch; late_parent[0] = parent; verdict = unknown
                :: faults < FAULTS && late_length[0] && !late_length[1] ->
                    faults++; late_length[1] = batch; late_parent[1] = parent; verdict = unknown
                fi
            fi };
        MAY_DIE;
#ifdef LATE_RECORD
        record[host] = true; unfenced[host] = !fenced || frozen;
        MAY_DIE;
#endif
        if /* settle */
        :: atomic { verdict == done -> known = batch; own = parent;
            ledger[host] = known; assert(known <= hub) };
            MAY_DIE;
            atomic {
                if
#ifndef EARLY_FORGET
                :: frozen -> skip
                :: else ->
#else
                :: true ->
#endif
                    record[host] = false; unfenced[host] = false
                fi };
            MAY_DIE;
            outbox[host] = 0; batch = 0; fresh = false
        :: atomic { verdict == moved -> own = NONE; fresh = false;
            if
            :: frozen -> skip
            :: else -> record[host] = false; unfenced[host] = false
            fi }
        :: atomic { verdict == unknown -> own = NONE; fresh = false;
#ifndef NO_SETTLE
            frozen = frozen || !fenced
#endif
            }
        fi;
        atomic { verdict = 0; parent = 0; seen = 0 }

    :: atomic { known == FULL && !batch && !frozen -> break }
    od;
    atomic { assert(hub == FULL); lock = FREE; finished++; goto over };
died:
    atomic { lock = FREE; known = 0; batch = 0; verdict = 0; parent = 0; seen = 0; goto vacant };
over:
    skip
}

init {
    atomic { run Training(); run Others(); run Network(); run Uploader(0); run Uploader(1) }
}
