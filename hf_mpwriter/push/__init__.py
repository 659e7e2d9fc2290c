"""The push: a process of its own that brings one batch to the Hub, the only one that loads huggingface_hub.

The uploader starts it by `handle`; `client` also serves the command line and the oracle.
"""
