"""Batches: which characters are read at which step."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from megatron_model.data.batches import Batches, TokenArray

CPU = torch.device("cpu")


def make(tokens: TokenArray, *, length: int = 8, batch_size: int = 4, seed: int = 1) -> Batches:
    return Batches(tokens, length=length, batch_size=batch_size, seed=seed, device=CPU)


COUNTING = np.arange(200, dtype=np.uint8)


def test_targets_are_the_characters_that_follow() -> None:
    inputs, targets = make(COUNTING).get(3)
    assert inputs.shape == targets.shape == (4, 8)
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(targets, inputs + 1)
    assert torch.equal(inputs, inputs[:, :1] + torch.arange(8))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
def test_every_width_of_token_is_read(dtype: type[np.unsignedinteger]) -> None:  # type: ignore[type-arg]
    tokens = np.arange(100).astype(dtype) + np.iinfo(dtype).max // 2 - 100
    inputs, _ = make(tokens).get(0)
    assert set(inputs.flatten().tolist()) <= set(tokens.tolist())


def test_a_step_decides_its_batch_whatever_came_before() -> None:
    batches = make(COUNTING)
    in_order = [batches.get(step)[0] for step in range(5)]
    other = make(COUNTING)
    for step in (4, 0, 2, 2):
        assert torch.equal(other.get(step)[0], in_order[step])


def test_steps_and_seeds_give_different_batches() -> None:
    batches, other = make(COUNTING, seed=1), make(COUNTING, seed=2)
    starts = {tuple(b.starts(step).tolist()) for b in (batches, other) for step in range(20)}
    assert len(starts) == 40


@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_every_seed_of_the_range_serves(seed: int) -> None:
    assert make(COUNTING, seed=seed).get(10**12)[0].shape == (4, 8)


def test_every_character_is_read_and_none_beyond_the_end() -> None:
    batches = make(COUNTING[:20], length=8, batch_size=64)
    read = [batches.get(step) for step in range(10)]
    inputs = torch.cat([inputs for inputs, _ in read])
    targets = torch.cat([targets for _, targets in read])
    assert set(inputs[:, 0].tolist()) == set(range(12))
    assert set(targets.flatten().tolist()) == set(range(1, 20))


def test_the_shortest_text_has_one_block() -> None:
    inputs, targets = make(COUNTING[:9], length=8).get(0)
    assert inputs.tolist() == [list(range(8))] * 4
    assert targets.tolist() == [list(range(1, 9))] * 4


def test_starts_are_spread_evenly() -> None:
    starts = np.concatenate([make(COUNTING, batch_size=1000).starts(step) for step in range(5)])
    counts = np.bincount(starts, minlength=192)
    assert len(counts) == 192
    assert counts.min() > 5
    assert counts.max() < 60
