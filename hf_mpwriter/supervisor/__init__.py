"""`hf-mpwriter run`: the parent of a training program, which sees it through its end; called by `cli/run` only."""
