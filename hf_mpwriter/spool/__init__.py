"""The state on disk that all processes of a run share: who writes, what waits to be sent, what the Hub holds.

Workers, uploader, mirror and sampler write it; they, and the command line, read it.
"""
