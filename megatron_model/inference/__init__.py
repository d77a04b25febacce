"""Writing text with a model: prompts, sampling, decoding."""
