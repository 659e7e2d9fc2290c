"""A staged run on its way to its logdir: a mount or a URL. Workers start the process; no other code touches either."""
