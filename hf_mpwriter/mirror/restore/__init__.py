"""What is in the logdir of a staged run comes back, in a process with a timer that a worker starts and waits for."""
