"""Whether a model's weights were changed since something was made of them.

Private: ``Tensor._version``, which autograd counts up whenever torch changes a tensor in place.
Tried with torch 2.9 to 2.13.
"""

from __future__ import annotations

from torch import nn


def weight_versions(model: nn.Module) -> tuple[tuple[int, int], ...]:
    """Return what differs once torch changed a weight, or another took its place."""
    return tuple((value.data_ptr(), value._version) for value in model.parameters())
