"""A run as a folder: its lock, its checkpoints, and training with all of that."""
