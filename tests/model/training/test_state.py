"""A trainer's state on disk: what older versions wrote is read, what none wrote is refused."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import torch

from megatron_model.training.state import LOSS_SUM, Scalars, TrainingState
from megatron_model.util.errors import RequestError
from tests.model.helpers import make_trainer, tiny_config

FIRST_VERSION = {
    "step": 5,
    "elapsed_seconds": 1.5,
    "val_loss": None,
    "best_val_loss": 2,
    "evaluation_seconds": 0.1,
    "interval_steps": 1,
    "interval_seconds": 0.25,
    "micro_batch": 4,
    "compiled": False,
    "precision": "float32",
    "threads": 1,
    "seed": 7,
    "next_batch": 5,
    "run": "identity",
}
"""What was written before steps were skipped and runs had several processes."""


def test_a_state_of_the_first_version_is_read() -> None:
    found = msgspec.convert(FIRST_VERSION, Scalars)
    assert (found.ranks, found.skipped, found.rate_factor, found.best_val_loss) == (1, 0, 1.0, 2.0)


def test_what_is_written_has_the_keys_it_always_had() -> None:
    keys = set(msgspec.structs.asdict(make_trainer(tiny_config()).state().scalars))
    newer = {"ranks", "skipped", "skipped_in_a_row", "rate_factor", "waited", "last_better"}
    assert keys == (FIRST_VERSION.keys() - {"run"}) | newer


@pytest.mark.parametrize(
    "change",
    [
        {"step": -1},
        {"step": "5"},
        {"step": 10**30},
        {"threads": 0},
        {"micro_batch": None},
        {"precision": "int8"},
        {"elapsed_seconds": float("nan")},
        {"best_val_loss": float("inf")},
        {"evaluation_seconds": 10**400},
    ],
    ids=str,
)
def test_numbers_that_no_trainer_writes_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(FIRST_VERSION | change, Scalars)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({k: v for k, v in FIRST_VERSION.items() if k not in change}, Scalars)


@pytest.mark.parametrize(
    ("architecture", "optimizer"), [("classic", "adamw"), ("modern", "adamw"), ("modern", "muon")]
)
def test_a_state_that_does_not_fit_is_refused_before_anything_changes(
    architecture: str, optimizer: str
) -> None:
    config = tiny_config({"model.architecture": architecture, "training.optimizer": optimizer})
    trainer = make_trainer(config)
    steps = trainer.run()
    while trainer.step < 2:
        next(steps)
    weights, state = trainer.learner.weights(), trainer.state()
    before = {name: value.clone() for name, value in weights.items()}
    name = next(
        name for name in state.tensors if name.startswith("optimizer/") and "step" not in name
    )
    wrong: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({k: v for k, v in weights.items() if k != "head.weight" and k != "head"}, state.tensors),
        (weights | {"other": torch.zeros(3)}, state.tensors),
        (weights, {k: v for k, v in state.tensors.items() if k != LOSS_SUM}),
        (weights, {k: v for k, v in state.tensors.items() if k != name}),
        (weights, state.tensors | {name: torch.zeros(1)}),  # it would be broadcast
    ]
    changed = {name: value + 1 for name, value in weights.items()}
    for bad_weights, bad_tensors in wrong:
        mixed = {k: changed.get(k, v) for k, v in bad_weights.items()}
        with pytest.raises(RequestError, match="the (weight|state) .* is .*, not"):
            trainer.load(mixed, TrainingState(bad_tensors, state.scalars))
    for name, value in trainer.learner.weights().items():
        assert torch.equal(value, before[name])
    trainer.load(weights, state)
