"""What the processes of a staged run share about its logdir: where it is, and what of the run is there."""
