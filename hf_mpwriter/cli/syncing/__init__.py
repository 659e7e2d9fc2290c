"""`hf-mpwriter sync` of many runs, and of folders that no writer of ours has logged into."""
