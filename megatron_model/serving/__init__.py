"""A model on a port of this machine, for programs and for a page to type into."""
