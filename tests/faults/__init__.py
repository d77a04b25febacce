"""Faults of file systems and users, for real processes."""
