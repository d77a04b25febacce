"""The Generation screen and its views: text as it is written, and what the model knows."""
