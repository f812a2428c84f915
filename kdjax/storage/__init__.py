"""What is on disk: run directories, checkpoints, networks of kdjax and of others."""
