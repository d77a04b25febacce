"""The terminal itself: its signals, its connection, what it can show."""
