"""The Setup screen: a corpus, the settings, what the run will cost."""
