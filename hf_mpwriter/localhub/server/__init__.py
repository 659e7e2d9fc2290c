"""The server process: its start and end, and the state that all endpoints share.

`LocalHub`, the command line and `python -m hf_mpwriter.localhub` start it. Of these modules only `serving` imports the
endpoints; they in turn use `state` and what it holds.
"""
