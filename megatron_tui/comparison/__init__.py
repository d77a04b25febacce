"""Runs laid over each other, ranked, and the table of what differs between them."""
