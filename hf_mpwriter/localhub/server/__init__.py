"""The server process: its start and end, and the state that all endpoints share.

`LocalHub`, as a child process, and the command line start it. Of these modules only `serving` imports the endpoints;
they in turn use `state` and what it holds.
"""
