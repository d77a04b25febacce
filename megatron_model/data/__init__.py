"""From a text file to batches of tokens."""
