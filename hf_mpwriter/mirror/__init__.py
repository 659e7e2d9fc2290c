"""A staged run on its way to its logdir, a mount or a URL, and back. Workers start it; nothing else touches those."""
