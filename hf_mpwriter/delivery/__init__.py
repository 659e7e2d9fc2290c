"""Delivery: what is where. Which of the logged bytes the Hub and the logdir have, and what keeps the rest from them.

    spool  -->  sinks     HubSink, LogdirSink: one `Delivery` each, whenever it is asked
                wait      looks at several sinks until nothing more can come
                status    what a process has logged, and how much of it is there
                sentences what of all that is told, with the next step

Training, the commands and the supervisor use it. It knows of no process that delivers, but by its status on disk.
"""
