"""`hf-mpwriter sync`: of one run and of several, of folders that others have written; called by `main` and `run`."""
