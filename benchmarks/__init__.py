"""Measurements of what the project promises; `make bench-...` runs one of them."""

import os

# Programs are timed as users run them: compiled once, not anew at every start.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
