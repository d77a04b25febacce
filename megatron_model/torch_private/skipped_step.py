"""A step of a fused optimizer that a number on the device decides, for which nothing waits.

Private: the attributes ``grad_scale`` and ``found_inf``, by which ``torch.amp.GradScaler`` tells a
fused optimizer what it found. The scaler itself decides by gradients alone, and not by the loss.
Tried with torch 2.9 to 2.13.
"""

from __future__ import annotations

import torch
from torch import Tensor


def step_unless(optimizer: torch.optim.AdamW, skipped: Tensor) -> None:
    """Take a step unless `skipped`, a truth value on the parameters' device, says not to.

    Args:
        optimizer: with ``fused=True``.
        skipped: where it is true, neither weights nor state change.
    """
    found: dict[str, Tensor | None] = {"grad_scale": None, "found_inf": skipped.float()}
    for name, value in found.items():
        setattr(optimizer, name, value)
    try:
        optimizer.step()
    finally:
        for name in found:
            delattr(optimizer, name)
