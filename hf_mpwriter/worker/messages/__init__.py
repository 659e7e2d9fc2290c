"""What a worker tells its user: who reports, and the messages of the environment, the upload and its notices."""
