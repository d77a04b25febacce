"""From a configuration to a model."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from megatron_model.config.fields import ModelConfig
from megatron_model.model.classic import TransformerModel
from megatron_model.model.modern import ModernTransformer, distance_bias


def build_model(config: ModelConfig, vocab_size: int) -> TransformerModel | ModernTransformer:
    """Build the model on the default device, with weights from the global random generator."""
    kind = TransformerModel if config.architecture == "classic" else ModernTransformer
    return kind(
        vocab_size,
        block_size=config.block_size,
        embed_dim=config.embed_dim,
        heads=config.heads,
        layers=config.layers,
        ff_dim=config.ff_dim,
        dropout=config.dropout,
    )


def misfit(
    shapes: Mapping[str, tuple[int, ...]], config: ModelConfig, vocab_size: int
) -> tuple[str, tuple[int, ...] | str, tuple[int, ...] | str] | None:
    """Return the first weight that is not the model's, its shape, and the one it should have.

    A weight that is only on one side is "absent" on the other. None where all are the model's.
    """
    with torch.device("meta"):
        weights = build_model(config, vocab_size).state_dict()
    wanted = {name: tuple(value.shape) for name, value in weights.items()}
    for name in sorted(wanted.keys() | shapes.keys()):
        pair = shapes.get(name, "absent"), wanted.get(name, "absent")
        if pair[0] != pair[1]:
            return name, *pair
    return None


def shapes_of(weights: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight."""
    return {name: tuple(value.shape) for name, value in weights.items()}


def empty_model(config: ModelConfig, vocab_size: int) -> TransformerModel | ModernTransformer:
    """Build the model on the CPU without drawing its weights, which are to be loaded.

    The global random generator is not touched: another thread may be training with it.
    """
    with torch.device("meta"):
        model = build_model(config, vocab_size)
    model.to_empty(device="cpu")
    if isinstance(model, ModernTransformer):
        # What is not among the weights is worked out again.
        model.attention_bias = distance_bias(model.heads, model.attention_bias.size(1))
    return model
