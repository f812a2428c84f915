"""What is on disk: run directories, checkpoints, other people's networks."""
