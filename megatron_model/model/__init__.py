"""The two architectures, and what a model remembers while it writes."""
