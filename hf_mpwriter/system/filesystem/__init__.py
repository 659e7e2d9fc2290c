"""Filesystems: which one a directory is on, and what it can do. Called before anything of ours is placed there."""
