"""`hf-mpwriter doctor`: what a run needs of this machine and of the Hub, and whether it is there."""
