"""`hf-mpwriter run`: the parent of a training program, which sees it through its end; called by `cli/run`.

`cli/syncing/following` makes the folders that it follows.
"""
