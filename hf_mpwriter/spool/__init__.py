"""The state on disk that all processes of a run share: who writes, what waits to be sent, what the Hub holds.

Workers and the uploader write it; both, and the command line, read it.
"""
