"""How many parameters a model will have, before it is built. No torch."""

from __future__ import annotations

from megatron_model.config.fields import ModelConfig

MIXED_BEFORE = 2
"""How many positions before its own each position of a modern model mixes in ahead of a layer."""


def matrix_parameters(config: ModelConfig) -> int:
    """Return the weights in the blocks' matrices: the part whose products cost the time."""
    return config.layers * (4 * config.embed_dim**2 + 2 * config.embed_dim * config.ff_dim)


def count_parameters(config: ModelConfig, vocab_size: int) -> int:
    """Return how many weights `build_model` makes, without building it."""
    width = config.embed_dim
    if config.architecture == "modern":
        mixes = config.layers * 2 * MIXED_BEFORE * width
        return matrix_parameters(config) + mixes + 2 * vocab_size * width + width
    biases_and_norms = config.layers * (4 * width + config.ff_dim + width + 4 * width)
    embeddings = (2 * vocab_size + config.block_size) * width
    return matrix_parameters(config) + biases_and_norms + embeddings + 2 * width + vocab_size
