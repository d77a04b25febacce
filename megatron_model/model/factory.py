"""From a configuration to a model."""

from __future__ import annotations

from megatron_model.config.fields import ModelConfig
from megatron_model.model.classic import TransformerModel
from megatron_model.model.modern import ModernTransformer


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
