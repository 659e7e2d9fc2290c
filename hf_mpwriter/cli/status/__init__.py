"""`hf-mpwriter status`: what the disk knows of one run or of many, for people and for programs."""
