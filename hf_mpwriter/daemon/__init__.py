"""Daemons: what uploader, mirror and sampler have in common.

    worker, command, supervisor   --election: the lock is free--> starts --> a process
    the process                   background: it leaves what started it --> loop: it holds its lock, and ticks

A kind of daemon adds a decision and what it does, in a folder of its own.
"""
