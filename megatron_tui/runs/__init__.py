"""The Runs screen: every run there is."""
