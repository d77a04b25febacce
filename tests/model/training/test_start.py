"""The weights a run begins with know the pairs of its text, whatever its vocabulary."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from megatron_model.config.fields import RunConfig, with_settings
from megatron_model.data.batches import TokenArray
from megatron_model.model.modern import ModernTransformer
from megatron_model.training.start import started_model
from tests.model.helpers import tiny_config


def config(**changes: object) -> RunConfig:
    dotted = {f"training.{name}": value for name, value in changes.items()}
    return with_settings(tiny_config(), {"training.start": "pairs", **dotted})


def chain(size: int, length: int, seed: int = 0) -> TokenArray:
    """A text in which a few characters follow each."""
    rng = np.random.default_rng(seed)
    follows = rng.integers(0, size, (size, 3))
    text = [0]
    for choice in rng.integers(0, 3, length - 1):
        text.append(int(follows[text[-1], choice]))
    return np.array(text, dtype=np.uint16)


def loss(model: torch.nn.Module, text: TokenArray) -> float:
    """The mean loss of each character after the one before it."""
    tokens = torch.from_numpy(text.astype(np.int64))[:4096].view(-1, 16)
    with torch.no_grad():
        logits = model(tokens[:, :-1])
    return float(F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()))


def entropies(text: TokenArray) -> tuple[float, float]:
    """The entropy of a character alone, and after the one before it."""
    alone = np.bincount(text) / len(text)
    pairs = np.unique(text[:-1].astype(int) * 65_536 + text[1:], return_counts=True)[1] / len(text)
    of_one, of_two = (-float((p[p > 0] * np.log(p[p > 0])).sum()) for p in (alone, pairs))
    return of_one, of_two - of_one


@pytest.mark.parametrize("size", [12, 60])
def test_it_begins_near_the_entropy_of_pairs(size: int) -> None:
    text = chain(size, 20_000)
    of_one, of_pairs = entropies(text)
    # The embedding is 16 wide: pairs of 12 characters fit in, of 60 a part of them.
    share = 0.35 if size == 12 else 0.9
    assert loss(started_model(config(), size, text), text) < of_pairs + share * (of_one - of_pairs)
    random = started_model(config(start="random"), size, text)
    assert loss(random, text) == pytest.approx(math.log(size), abs=1e-3)


def test_only_the_head_is_another() -> None:
    text = chain(12, 2000)
    pairs = started_model(config(), 12, text).state_dict()
    random = started_model(config(start="random"), 12, text).state_dict()
    assert {name for name in pairs if not torch.equal(pairs[name], random[name])} == {"head"}


def test_the_same_text_and_seed_give_the_same_weights() -> None:
    text = chain(30, 5000)
    first, second = (started_model(config(), 30, text).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (1, np.zeros(300, np.uint8)),
        (3, np.array([0, 1] * 150, np.uint8)),  # one character is in the validation split alone
        (40_000, np.arange(0, 40_000, 13, dtype=np.uint16)),  # no pair twice, most never
    ],
)
def test_texts_that_say_little_leave_finite_weights(size: int, text: TokenArray) -> None:
    model = started_model(config(), size, text)
    assert all(bool(weight.isfinite().all()) for weight in model.parameters())
    tokens = torch.from_numpy(text[:16].astype(np.int64))[None]
    assert bool(model(tokens).isfinite().all())


def test_a_classic_model_starts_at_random() -> None:
    plain = {"model.architecture": "classic", "training.optimizer": "adamw"}
    asked = with_settings(config(), plain)
    text = chain(12, 2000)
    model = started_model(asked, 12, text)
    assert not isinstance(model, ModernTransformer)
    other = started_model(with_settings(asked, {"training.start": "random"}), 12, text)
    assert all(
        torch.equal(one, two)
        for one, two in zip(model.parameters(), other.parameters(), strict=True)
    )
