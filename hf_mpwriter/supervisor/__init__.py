"""`hf-mpwriter run`: the parent of a training program, which sees it through its end; called by `cli/run`.

`cli/folders` makes the folders that it follows.
"""
