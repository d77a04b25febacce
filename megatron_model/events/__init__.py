"""What can happen in a run, its log, and the state that is folded from it."""
