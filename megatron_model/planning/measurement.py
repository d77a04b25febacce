"""What steps that were really taken cost, and for which settings that holds. No torch."""

from __future__ import annotations

from msgspec import Struct

from megatron_model.config.fields import RunConfig, get_setting

COSTLY = (
    "model.architecture",
    "model.block_size",
    "model.embed_dim",
    "model.heads",
    "model.layers",
    "model.ff_dim",
    "model.dropout",
    "training.batch_size",
    "training.sequence_length",
    "training.optimizer",
    "training.gradient_clip",
    "training.token_dropout",
    "training.weight_decay",
    "training.device",
    "training.precision",
    "training.compile",
    "training.deterministic",
    "training.threads",
)
"""Settings that a step's cost depends on; a change of another leaves a measurement standing."""


class Measurement(Struct, frozen=True, kw_only=True):
    """Steps that were taken: seconds each, and bytes that training added to the process."""

    seconds_per_step: float
    memory_bytes: int
    batch_size: int
    characters_per_step: int
    steps: int
    compiled: bool

    @property
    def characters_per_second(self) -> float:
        """Training speed."""
        return self.characters_per_step / max(self.seconds_per_step, 1e-9)


def cost_key(config: RunConfig, vocabulary_size: int) -> tuple[object, ...]:
    """Return what has to be equal for a measurement of one configuration to hold for another."""
    return (*(get_setting(config, key) for key in COSTLY), vocabulary_size)
