"""What outlives a screen: the threads that train and write, and what is remembered."""
