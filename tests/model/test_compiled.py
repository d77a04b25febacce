"""The compiled step and loss: the numbers of the eager ones, and Python's lock let go meanwhile."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from megatron_model.compiled import Library, can_compile, library_loss, library_update
from megatron_model.config import with_settings
from megatron_model.evaluation import eager_loss
from megatron_model.library_call import LibraryCall
from megatron_model.muon import MuonOptimizer, rates_at
from megatron_model.optimizer import build_optimizer
from megatron_model.trainer import Trainer
from tests.model.helpers import history, make_trainer, tiny_config
from tests.model.test_trainer import resumed, saved

CONFIG = tiny_config(
    {
        "model.architecture": "modern",
        "model.layers": 1,
        "training.optimizer": "muon",
        "training.muon_precision": "float32",
        "training.gradient_clip": 0.0,
        "training.compile": "on",
    }
)
EAGER = with_settings(CONFIG, {"training.compile": "off"})

pytestmark = pytest.mark.skipif(
    not can_compile(CONFIG, torch.device("cpu")), reason="needs a C++ compiler"
)


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainer]:
    """A trainer that has compiled its libraries and gone to its end; not to be changed."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # these tests may be divided among workers: the compiling is not
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(shared / "compiled"))
        trainer = make_trainer(CONFIG)
        events = list(trainer.run())
        assert not [event for event in events if "did not work" in str(event)]
        yield trainer


def library(kind: str, trainer: Trainer) -> Library:
    found = Library(kind, CONFIG, trainer.tokenizer.vocab_size, torch.float32)  # type: ignore[arg-type]
    assert found.ready
    return found


def tokens_like(found: Library, trainer: Trainer) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    size = trainer.tokenizer.vocab_size
    return torch.randint(size, found.shape), torch.randint(size, found.shape)


def test_compiled_and_eager_steps_have_the_same_losses(trainer: Trainer) -> None:
    """The sums are taken in another order; over 18 steps of float32 that is some 1e-5."""
    compiled = history(list(make_trainer(CONFIG).run()))
    assert compiled == pytest.approx(history(list(make_trainer(EAGER).run())), rel=2e-4)


def test_a_compiled_run_goes_on_exactly_where_it_was_interrupted(trainer: Trainer) -> None:
    unbroken = history(list(make_trainer(CONFIG).run()))
    first = make_trainer(CONFIG)
    next(event for event in first.run() if event.step == 7)
    rest = history(list(resumed(CONFIG, saved(first)).run()))
    # The report at step 8 is the mean over an interval that began before the interruption.
    later = {key: value for key, value in unbroken.items() if key[1] > 8}
    assert later
    assert {key: value for key, value in rest.items() if key[1] > 8} == later


def test_compiled_and_eager_losses_of_a_text_agree(trainer: Trainer) -> None:
    found = library("loss", trainer)
    inputs, targets = tokens_like(found, trainer)
    compiled = library_loss(found, trainer.model, torch.float32)(inputs, targets)
    with torch.no_grad():
        eager = eager_loss(trainer.model, torch.float32)(inputs, targets)
    assert float(compiled) == pytest.approx(float(eager), rel=1e-5)


def test_a_loss_that_is_no_number_leaves_the_weights_alone(trainer: Trainer) -> None:
    found = library("step", trainer)
    broken = make_trainer(CONFIG).model
    optimizer = build_optimizer(broken, CONFIG.training)
    assert isinstance(optimizer, MuonOptimizer)
    with torch.no_grad():
        next(broken.parameters())[0, 0] = float("nan")
    before = [value.detach().nan_to_num(7.0) for value in broken.parameters()]
    update = library_update(found, broken, optimizer)
    loss, _ = update(*tokens_like(found, trainer), rates_at(CONFIG.training, 1, 1.0))
    assert not torch.isfinite(loss)
    for value, old in zip(broken.parameters(), before, strict=True):
        assert torch.equal(value.nan_to_num(7.0), old)


@pytest.fixture
def patient_interpreter() -> Iterator[None]:
    """No thread is made to hand over Python's lock."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1000.0)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("patient_interpreter")
def test_other_threads_run_while_a_library_computes(trainer: Trainer) -> None:
    found = library("loss", trainer)
    call = LibraryCall(found.path)
    inputs, targets = tokens_like(found, trainer)
    values = [value.detach() for value in trainer.model.parameters()]
    arguments = [*values, *trainer.model.buffers(), inputs, targets]
    gate, other_ran = threading.Lock(), []
    gate.acquire()

    def wait_and_say() -> None:
        with gate:
            other_ran.append(True)

    thread = threading.Thread(target=wait_and_say)
    thread.start()
    gate.release()
    # Kept, because Python's lock is let go when a tensor goes, too.
    _results = [call(arguments) for _ in range(300)]
    ran_meanwhile = list(other_ran)
    thread.join()
    assert ran_meanwhile


def test_a_file_that_is_no_library_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "step.so"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(OSError, match="invalid ELF header|file too short|not a mach-o"):
        LibraryCall(path)
