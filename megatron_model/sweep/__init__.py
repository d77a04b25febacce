"""Several runs from one request: what a field takes, the grid it makes, and what came of it."""
