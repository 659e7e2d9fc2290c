"""What a worker tells its user while it works."""
