"""What binds a supervisor and the processes below it: signals, adoption, one datagram; no state on disk."""
