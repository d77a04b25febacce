"""In which precision a model's weights are read while it writes.

Where a model is larger than the processor's caches, writing takes the time that its weights take
to be read: rounded to 8 bits they take a quarter of it. On a card they are bfloat16.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import nn

from megatron_model.model.classic import TransformerModel
from megatron_model.model.modern import ModernTransformer

Precision: TypeAlias = Literal["auto", "float32", "int8"]
PRECISIONS: tuple[str, ...] = get_args(Precision)

ROUNDED_FROM_WEIGHTS = 1 << 22
"""Weights from which `auto` means int8: 16 MiB in float32. The same on every machine, so that the
choice does not depend on where a text is written."""


def is_rounded(model: nn.Module, precision: Precision) -> bool:
    """Whether a model's weights are to be rounded.

    `auto` rounds those of a large model that is not being trained: whose weights ask for no
    gradients.
    """
    values = list(model.parameters())
    known = isinstance(model, (TransformerModel, ModernTransformer)) and all(
        value.device.type == "cpu" and value.dtype == torch.float32 for value in values
    )
    if precision != "auto" or not known:
        return known and precision == "int8"
    frozen = not any(value.requires_grad for value in values)
    return frozen and sum(value.numel() for value in values) >= ROUNDED_FROM_WEIGHTS


def device_dtype(device: torch.device, precision: Precision) -> torch.dtype:
    """Return in which arithmetic a CUDA card computes the matrix products while it writes.

    `auto` means bfloat16 where the card has it, and float32 where it would only emulate it. There
    is no int8: it means float32.
    """
    if precision != "auto":
        return torch.float32
    with torch.cuda.device(device):
        has_it = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_it else torch.float32
