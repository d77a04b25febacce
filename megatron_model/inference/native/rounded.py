"""Copies of matrices with weights of 8 bits, made once for a model and kept as long as it is."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from megatron_model.torch_private.weight_versions import weight_versions

GROUP = 128
"""Inputs of an output that share a scale; as int8.h has it."""
TILE = 64
"""Outputs that lie together; as int8.h has it."""


class RoundedMatrix(NamedTuple):
    """Weights in the order in which int8.h reads them, and their scales."""

    numbers: Tensor
    scales: Tensor


_kept: weakref.WeakKeyDictionary[nn.Module, tuple[Any, list[dict[str, RoundedMatrix]]]]
_kept = weakref.WeakKeyDictionary()


def rounded_matrices(
    function: Any,
    model: nn.Module,
    layers: list[dict[str, Tensor]],
    names: Iterable[str],
    transposed: Iterable[str],
) -> list[dict[str, RoundedMatrix]]:
    """Return the rounded matrices of each layer by name: those made before, if no weight changed.

    Args:
        function: ``megatron_round`` of decode.c.
        model: whose matrices they are.
        layers: the tensors of each layer.
        names: those of the matrices.
        transposed: of these, the ones that lie as (in, out).
    """
    versions = weight_versions(model)
    kept = _kept.get(model)
    if kept is None or kept[0] != versions:
        made = [
            {name: _rounded(function, layer[name], name in transposed) for name in names}
            for layer in layers
        ]
        _kept[model] = kept = (versions, made)
    return kept[1]


def _rounded(function: Any, weight: Tensor, transposed: bool) -> RoundedMatrix:
    rows, columns = weight.shape
    outputs, inputs = (columns, rows) if transposed else (rows, columns)
    tiles, groups = -(-outputs // TILE), -(-inputs // GROUP)
    # What rounds the last outputs up to a tile is zero.
    numbers = torch.zeros(tiles, inputs, TILE, dtype=torch.int8)
    scales = torch.zeros(tiles, groups, TILE)
    steps = (columns, 1) if transposed else (1, columns)
    function(
        weight.data_ptr(),
        inputs,
        outputs,
        *steps,
        numbers.data_ptr(),
        scales.data_ptr(),
        torch.get_num_threads(),
    )
    return RoundedMatrix(numbers, scales)
