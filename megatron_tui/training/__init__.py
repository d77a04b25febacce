"""The Training screen: the run on show, its curves and the keys that command it."""
