"""The verbs of the command line, a file each: what it takes, and what it does."""
