"""The loss over a whole split."""

from __future__ import annotations

import math
from collections.abc import Generator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from megatron_model.data.batches import TokenArray
from megatron_model.model.factory import build_model
from megatron_model.training import loss as evaluation
from megatron_model.training.loss import (
    bits_per_character,
    eager_loss,
    evaluate_loss,
    evaluate_steps,
)
from tests.model.helpers import ARCHITECTURES, tiny_model

CPU = torch.device("cpu")
VOCABULARY = 9


class Listener(nn.Module):
    """A model that finds every next character equally likely, and notes what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[list[int]] = []

    def forward(self, tokens: Tensor) -> Tensor:
        self.seen += tokens.tolist()
        return torch.zeros(*tokens.shape, 256)


def random_tokens(length: int) -> TokenArray:
    return np.random.default_rng(0).integers(0, VOCABULARY, length).astype(np.uint8)


def loss_of(model: nn.Module, tokens: TokenArray, block_size: int = 16) -> float:
    return evaluate_loss(model, tokens, block_size=block_size, device=CPU, dtype=torch.float32)


def steps_of(
    model: nn.Module, block_size: int, at_once: int = 4096
) -> Generator[float, None, float]:
    return evaluate_steps(
        model,
        random_tokens(100),
        block_size=block_size,
        device=CPU,
        block_loss=eager_loss(model, torch.float32),
        at_once=at_once,
    )


def written_out(model: nn.Module, tokens: TokenArray, block_size: int) -> float:
    """Return the mean loss, one character after the other."""
    losses = []
    with torch.no_grad():
        for position in range(1, len(tokens)):
            start = (position - 1) // block_size * block_size
            context = torch.tensor(tokens[start:position].astype(np.int64))[None]
            logits = model(context)[0, -1].double()
            losses.append(-float(logits.log_softmax(0)[int(tokens[position])]))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("length", [2, 16, 17, 18, 65, 75])
def test_the_loss_is_the_mean_over_every_character(
    architecture: str, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "CHARACTERS_AT_ONCE", 48)  # more than one batch
    torch.manual_seed(0)
    model = build_model(tiny_model(architecture), VOCABULARY).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    tokens = random_tokens(length)
    assert loss_of(model, tokens) == pytest.approx(written_out(model, tokens, 16), rel=1e-5)


@pytest.mark.parametrize("length", [2, 8, 9, 10, 16, 17, 50, 100])
@pytest.mark.parametrize("at_once", [1, 20, 8192])
def test_each_character_but_the_first_is_predicted_once(
    length: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "CHARACTERS_AT_ONCE", at_once)
    model = Listener()
    tokens = np.arange(length, dtype=np.uint8)
    loss = loss_of(model, tokens, block_size=8)
    assert [token for block in model.seen for token in block] == list(range(length - 1))
    assert all(len(block) == 8 for block in model.seen[:-1])
    assert loss == pytest.approx(math.log(256))


def test_the_same_weights_give_the_same_number() -> None:
    torch.manual_seed(0)
    model = build_model(tiny_model("modern", dropout=0.5), VOCABULARY)
    tokens = random_tokens(100)
    assert loss_of(model, tokens) == loss_of(model, tokens)


def test_progress_reaches_the_end() -> None:
    steps = steps_of(Listener(), block_size=8, at_once=16)
    shares = list(steps)
    assert shares == sorted(shares)
    assert 0 < shares[0] < 0.5
    assert shares[-1] == 1.0


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_model_is_restored(training: bool) -> None:
    model = build_model(tiny_model(dropout=0.5), VOCABULARY).train(training)
    loss_of(model, random_tokens(100))
    assert model.training is training
    steps = steps_of(model, block_size=4)
    next(steps)
    assert not model.training
    steps.close()
    assert model.training is training


def test_no_gradient_is_kept() -> None:
    model = build_model(tiny_model(), VOCABULARY)
    loss_of(model, random_tokens(50))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_bits_are_nats_in_another_unit() -> None:
    assert bits_per_character(math.log(2)) == pytest.approx(1.0)
    assert bits_per_character(math.log(256)) == pytest.approx(8.0)
