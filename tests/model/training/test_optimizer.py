"""The rate and the update rules."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron_model.config.fields import RunConfig, TrainingConfig
from megatron_model.model.factory import build_model
from megatron_model.training.muon import (
    initial_state,
    orthogonalise,
    rates_at,
    update,
    update_in_place,
)
from megatron_model.training.optimizer import Optimizer, build_optimizer, learning_rate_scale
from tests.model.helpers import tiny_config

VOCABULARY = 13


def training(**changes: object) -> TrainingConfig:
    return tiny_config({f"training.{name}": value for name, value in changes.items()}).training


# The rate


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_the_rate_rises_from_near_zero(schedule: str) -> None:
    config = training(schedule=schedule, warmup_steps=4)
    rates = [learning_rate_scale(config, step, 0.0) for step in range(7)]
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rates[4:] == pytest.approx([1.0, 1.0, 1.0])
    assert learning_rate_scale(training(schedule=schedule, warmup_steps=0), 0, 0.0) == 1.0


@pytest.mark.parametrize(
    ("schedule", "cooldown", "wanted"),
    [
        ("constant", 0.5, [1, 1, 1, 1, 1]),
        ("linear", 1.0, [1, 0.75, 0.5, 0.25, 0]),
        ("linear", 0.5, [1, 1, 1, 0.5, 0]),
        ("cosine", 0.5, [1, 0.5 + math.sqrt(2) / 4, 0.5, 0.5 - math.sqrt(2) / 4, 0]),
    ],
)
def test_the_rate_falls_as_the_schedule_says(
    schedule: str, cooldown: float, wanted: list[float]
) -> None:
    config = training(schedule=schedule, cooldown=cooldown, warmup_steps=0)
    shares = [0.0, 0.25, 0.5, 0.75, 1.0]
    rates = [learning_rate_scale(config, 99, share) for share in shares]
    assert rates == pytest.approx(wanted, abs=1e-6)


def test_warm_up_and_cooldown_of_a_short_run_do_not_add_up() -> None:
    config = training(schedule="linear", cooldown=1.0, warmup_steps=9)
    rates = [learning_rate_scale(config, step, step / 10) for step in range(11)]
    assert all(0.0 <= rate <= 1.0 for rate in rates)
    assert rates[-1] == 0.0


# Orthogonalising


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 6, 24), (2, 24, 6), (4, 2, 5, 7)], ids=str)
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_orthogonalising_brings_every_singular_value_near_one(
    shape: tuple[int, ...], size: float
) -> None:
    torch.manual_seed(0)
    matrices = size * torch.randn(shape)
    result = orthogonalise(matrices)
    assert result.shape == matrices.shape
    values = torch.linalg.svdvals(result)
    # All but the smallest come close; the iteration trades exactness for speed.
    assert 0.5 < float(values.median()) < 1.4
    assert float(values.max()) < 1.5
    before = torch.linalg.svdvals(matrices)
    assert float((values[..., 0] / values[..., -1]).median()) < float(
        (before[..., 0] / before[..., -1]).median()
    )


def test_orthogonalising_keeps_the_directions() -> None:
    torch.manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(2, 8, 8))
    right, _ = torch.linalg.qr(torch.randn(2, 8, 8))
    matrices = left @ torch.diag(torch.linspace(1.0, 2.0, 8)) @ right
    alike = F.cosine_similarity(orthogonalise(matrices).flatten(1), (left @ right).flatten(1))
    assert float(alike.min()) > 0.95


def test_orthogonalising_treats_each_matrix_alone() -> None:
    torch.manual_seed(0)
    matrices = torch.randn(3, 6, 10)
    scaled = matrices * torch.tensor([1.0, 256.0, 1 / 256])[:, None, None]
    assert torch.allclose(orthogonalise(matrices), orthogonalise(scaled), atol=0.05)


def test_nothing_stays_nothing() -> None:
    assert not orthogonalise(torch.zeros(2, 4, 6)).abs().max()


# Updates


def setup(config: RunConfig) -> tuple[nn.Module, Optimizer]:
    torch.manual_seed(4)
    model = build_model(config.model, VOCABULARY)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model, build_optimizer(model, config.training)


def compute_gradients(model: nn.Module, step: int) -> None:
    draw = torch.Generator().manual_seed(step)
    tokens = torch.randint(VOCABULARY, (4, 17), generator=draw)
    F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()


def weights(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(dict(model.state_dict()))


def test_adamw_is_torchs_own() -> None:
    config = tiny_config(
        {
            "model.architecture": "classic",
            "training.optimizer": "adamw",
            "training.learning_rate": 0.01,
            "training.weight_decay": 0.2,
        }
    )
    model, optimizer = setup(config)
    theirs = copy.deepcopy(model)
    matrices = [p for p in theirs.parameters() if p.dim() >= 2]
    vectors = [p for p in theirs.parameters() if p.dim() < 2]
    reference = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.2}, {"params": vectors, "weight_decay": 0.0}],
        lr=0.01,
        fused=True,
    )
    for step, scale in enumerate([1.0, 0.5, 0.25, 0.0]):
        compute_gradients(model, step)
        optimizer.step(step, scale)
        compute_gradients(theirs, step)
        for group in reference.param_groups:
            group["lr"] = 0.01 * scale
        reference.step()
        reference.zero_grad()
    for name, value in theirs.state_dict().items():
        assert torch.allclose(model.state_dict()[name], value, atol=1e-6), name


EVERY_KIND = pytest.mark.parametrize(
    ("architecture", "optimizer"),
    [("classic", "adamw"), ("modern", "adamw"), ("modern", "muon")],
)


def kind_of(architecture: str, optimizer: str, **changes: object) -> RunConfig:
    dotted = {f"training.{name}": value for name, value in changes.items()}
    return tiny_config(
        {"model.architecture": architecture, "training.optimizer": optimizer, **dotted}
    )


@EVERY_KIND
def test_an_update_changes_every_weight_and_drops_the_gradients(
    architecture: str, optimizer: str
) -> None:
    model, rule = setup(kind_of(architecture, optimizer))
    before = weights(model)
    compute_gradients(model, 0)
    rule.step(0, 1.0)
    unchanged = [n for n, p in model.named_parameters() if torch.equal(p, before[n])]
    assert unchanged == []
    assert all(parameter.grad is None for parameter in model.parameters())


@EVERY_KIND
def test_a_rate_of_zero_changes_nothing(architecture: str, optimizer: str) -> None:
    model, rule = setup(kind_of(architecture, optimizer, weight_decay=0.5))
    before = weights(model)
    compute_gradients(model, 0)
    rule.step(0, 0.0)
    for name, value in before.items():
        assert torch.equal(model.state_dict()[name], value), name


@EVERY_KIND
def test_a_saved_state_gives_the_same_updates(architecture: str, optimizer: str) -> None:
    config = kind_of(architecture, optimizer, weight_decay=0.1)
    model, rule = setup(config)
    for step in range(3):
        compute_gradients(model, step)
        rule.step(step, 1.0)
    twin, other = setup(config)
    twin.load_state_dict(weights(model))
    state = copy.deepcopy(rule.state_tensors())
    other.load_state_tensors(state)
    assert state.keys() == other.state_tensors().keys()
    kept = copy.deepcopy(state)
    for step in range(3, 6):
        for trained, optimize in ((model, rule), (twin, other)):
            compute_gradients(trained, step)
            optimize.step(step, 0.7)
    for name, value in model.state_dict().items():
        assert torch.equal(twin.state_dict()[name], value), name
    assert all(torch.equal(state[name], value) for name, value in kept.items()), "a copy was needed"


@EVERY_KIND
def test_the_state_is_named_after_the_weights(architecture: str, optimizer: str) -> None:
    model, rule = setup(kind_of(architecture, optimizer))
    compute_gradients(model, 0)
    rule.step(0, 1.0)
    names = {key.partition("/")[2] for key in rule.state_tensors()}
    assert names == dict(model.named_parameters()).keys()


@pytest.mark.parametrize(("architecture", "optimizer"), [("classic", "adamw"), ("modern", "muon")])
def test_only_matrices_decay(architecture: str, optimizer: str) -> None:
    rates = {"learning_rate": 0.1, "muon_learning_rate": 0.1}
    model, rule = setup(kind_of(architecture, optimizer, weight_decay=0.5, **rates))
    before = weights(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    rule.step(0, 1.0)
    shrunk = set()
    for name, parameter in model.named_parameters():
        if not torch.equal(parameter, before[name]):
            assert torch.allclose(parameter, before[name] * 0.95, atol=1e-6), name
            shrunk.add(name)
    vectors = {name for name, parameter in model.named_parameters() if parameter.dim() < 2}
    assert shrunk
    assert not shrunk & vectors
    if architecture == "classic":
        assert shrunk == dict(model.named_parameters()).keys() - vectors
    else:
        assert shrunk == {"attention", "feed_forward"}


# The update of an accelerator


def some_gradients(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.randn_like(value) for name, value in parameters.items()}


def test_an_update_in_place_is_the_update() -> None:
    torch.manual_seed(0)
    config = tiny_config({"model.architecture": "modern", "training.optimizer": "muon"})
    model = build_model(config.model, VOCABULARY)
    pure = {name: value.detach().clone() for name, value in model.named_parameters()}
    placed = {name: value.clone() for name, value in pure.items()}
    pure_state, placed_state = initial_state(pure), initial_state(pure)
    good = torch.tensor(True)
    for step in range(4):
        gradients = some_gradients(pure)
        rates = rates_at(config.training, step, 0.7)
        pure, pure_state = update(pure, gradients, pure_state, rates, 0.1, dtype=torch.float32)
        update_in_place(placed, gradients, placed_state, rates, 0.1, good, dtype=torch.float32)
    for kind, found, wanted in (("", placed, pure), ("state ", placed_state, pure_state)):
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=kind + name)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_update_in_place_changes_nothing(bad: float) -> None:
    torch.manual_seed(0)
    config = tiny_config({"model.architecture": "modern", "training.optimizer": "muon"})
    model = build_model(config.model, VOCABULARY)
    parameters = {name: value.detach().clone() for name, value in model.named_parameters()}
    state = initial_state(parameters)
    for step, good in enumerate([True, False]):
        gradients = some_gradients(parameters)
        if not good:
            before = copy.deepcopy((parameters, state))
            for gradient in gradients.values():
                gradient.view(-1)[0] = bad
        update_in_place(
            parameters,
            gradients,
            state,
            rates_at(config.training, step, 1.0),
            0.1,
            torch.tensor(good),
            dtype=torch.float32,
        )
    for found, kept in zip((parameters, state), before, strict=True):
        assert all(torch.equal(value, kept[name]) for name, value in found.items())
