"""The fused step: autograd's numbers at odd shapes, exact repetition, and what it leaves alone."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_model.config.fields import ModelConfig, TrainingConfig, with_settings
from megatron_model.model.factory import build_model
from megatron_model.model.modern import LOGIT_CAP, ModernTransformer
from megatron_model.planning.compile_choice import STEP_LIBRARY
from megatron_model.training.fused import library as fused_library
from megatron_model.training.fused.library import Library, build_library, load_library
from megatron_model.training.fused.step import FusedGradients, fused_loss, fused_step, serves
from megatron_model.training.loss import eager_loss, sequence_loss
from megatron_model.training.optimizer import build_optimizer
from megatron_model.training.step import Step, eager_step
from tests.model.helpers import history, make_trainer, tiny_config
from tests.model.training.test_trainer import resumed, saved

pytestmark = pytest.mark.skipif(bool(STEP_LIBRARY.obstacle()), reason="there is no C compiler")

SHAPES = {
    "usual": {"embed_dim": 64, "heads": 2, "ff_dim": 128, "block_size": 64, "rows": 3, "size": 65},
    "odd": {"embed_dim": 96, "heads": 4, "ff_dim": 50, "block_size": 37, "rows": 3, "size": 101},
    "wide-heads": {
        "embed_dim": 80,
        "heads": 2,
        "ff_dim": 24,
        "block_size": 19,
        "rows": 2,
        "size": 30,
    },
    "narrow-heads": {
        "embed_dim": 70,
        "heads": 7,
        "ff_dim": 33,
        "block_size": 5,
        "rows": 4,
        "size": 7,
    },
    "one-sequence": {
        "embed_dim": 24,
        "heads": 1,
        "ff_dim": 40,
        "block_size": 150,
        "rows": 1,
        "size": 5,
    },
    "one-character": {
        "embed_dim": 16,
        "heads": 2,
        "ff_dim": 16,
        "block_size": 1,
        "rows": 2,
        "size": 3,
    },
    "past-the-reach": {
        "embed_dim": 16,
        "heads": 4,
        "ff_dim": 8,
        "block_size": 400,
        "rows": 1,
        "size": 9,
    },
}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Library]:
    """The kernels, built once for all workers of a session."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if hasattr(sys, "_xdist") or "popen-gw" in shared.name else shared
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(shared / "kernels"))
        building = build_library()
        while True:
            try:
                next(building)
            except StopIteration as end:
                assert end.value == ""
                break
        yield load_library()


def shaped(
    name: str, *, layers: int = 2, dropout: float = 0.0
) -> tuple[ModernTransformer, Tensor, Tensor]:
    """Return a model with weights far from those it begins with, and a batch with blanks."""
    about = dict(SHAPES[name])
    rows, size = about.pop("rows"), about.pop("size")
    config = ModelConfig(architecture="modern", layers=layers, dropout=dropout, **about)  # type: ignore[arg-type]
    torch.manual_seed(1)
    model = build_model(config, size)
    assert isinstance(model, ModernTransformer)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value) * (0.1 if value.dim() > 1 else 0.3))
    inputs = torch.randint(size + 1, (rows, about["block_size"]))
    return model, inputs, torch.randint(size, inputs.shape)


def autograd(
    model: ModernTransformer, inputs: Tensor, targets: Tensor, dtype: torch.dtype
) -> tuple[float, dict[str, Tensor]]:
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        logits = model(inputs)
    loss = sequence_loss(logits, targets)
    parameters = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(parameters.values()))
    return loss.item(), dict(zip(parameters, found, strict=True))


def distance(found: Tensor, wanted: Tensor) -> float:
    """Return the size of the difference as a share of what is wanted."""
    size = wanted.double().norm()
    return float((found.double() - wanted.double()).norm() / size) if size else float(found.norm())


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_in_float32_are_those_of_autograd(library: Library, shape: str) -> None:
    model, inputs, targets = shaped(shape)
    fused = FusedGradients(library, model, torch.float32, micro_batch=len(inputs))
    loss, wanted = autograd(model, inputs, targets, torch.float32)
    assert float(fused(0, inputs, targets)) == pytest.approx(loss, rel=1e-6)
    for name, gradient in wanted.items():
        assert distance(fused.named[name], gradient) < 5e-6, name


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_in_bfloat16_are_no_worse_than_autograd_s(library: Library, shape: str) -> None:
    model, inputs, targets = shaped(shape)
    fused = FusedGradients(library, model, torch.bfloat16, micro_batch=len(inputs))
    fused(0, inputs, targets)
    _, exact = autograd(model, inputs, targets, torch.float32)
    _, half = autograd(model, inputs, targets, torch.bfloat16)
    ours = {name: distance(fused.named[name], gradient) for name, gradient in exact.items()}
    theirs = {name: distance(half[name], gradient) for name, gradient in exact.items()}
    assert sum(ours.values()) <= 1.3 * sum(theirs.values()), (ours, theirs)
    for name, error in ours.items():  # those of a few numbers are a matter of luck
        assert error <= 2.0 * theirs[name] + 1e-4, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_of_blocks_is_the_eager_one(library: Library, dtype: torch.dtype) -> None:
    model, inputs, targets = shaped("odd")
    wanted = float(eager_loss(model, torch.float32)(inputs.clamp(max=100), targets))
    loss = fused_loss(library, model, dtype)
    rel = 1e-6 if dtype == torch.float32 else 2e-3
    for rows in (3, 1, 2):  # the last blocks of a split are fewer, or shorter
        part = float(loss(inputs.clamp(max=100)[:rows], targets[:rows]))
        if rows == 3:
            assert part == pytest.approx(wanted, rel=rel)
    short = float(loss(inputs.clamp(max=100)[:1, :9], targets[:1, :9]))
    eager = eager_loss(model, torch.float32)(inputs.clamp(max=100)[:1, :9], targets[:1, :9])
    assert short == pytest.approx(float(eager), rel=rel)


def training(**changes: object) -> TrainingConfig:
    settings = {"optimizer": "muon", "muon_precision": "float32", "gradient_clip": 0.0, **changes}
    return tiny_config({f"training.{name}": value for name, value in settings.items()}).training


def steps(
    library: Library, config: TrainingConfig, *, fused: bool, micro_batch: int = 3, **shape: Any
) -> tuple[Step, ModernTransformer, Tensor, Tensor]:
    model, inputs, targets = shaped("odd", **shape)
    optimizer = build_optimizer(model, config)
    step = (
        fused_step(library, model, optimizer, config, dtype=torch.float32, micro_batch=micro_batch)
        if fused
        else eager_step(model, optimizer, config, dtype=torch.float32, micro_batch=micro_batch)
    )
    return step, model, inputs, targets


@pytest.mark.parametrize(
    "changes",
    [{}, {"gradient_clip": 0.5}, {"weight_decay": 0.0}, {"optimizer": "adamw"}],
    ids=["muon", "clipped", "without-decay", "adamw"],
)
def test_updates_are_the_eager_ones(library: Library, changes: dict[str, object]) -> None:
    config = training(**changes)
    ours, model, inputs, targets = steps(library, config, fused=True)
    theirs, other, _, _ = steps(library, config, fused=False)
    for number in range(4):
        loss, norm = ours(number, 0.5, inputs, targets)
        wanted_loss, wanted_norm = theirs(number, 0.5, inputs, targets)
        assert float(loss) == pytest.approx(float(wanted_loss), rel=1e-4)
        assert float(norm) == pytest.approx(float(wanted_norm), rel=1e-3)
    for (name, value), wanted in zip(model.named_parameters(), other.parameters(), strict=True):
        assert distance(value.detach(), wanted.detach()) < 2e-3, name


def test_parts_of_a_batch_add_up_to_it(library: Library) -> None:
    model, inputs, targets = shaped("odd")
    whole = FusedGradients(library, model, torch.float32, micro_batch=3)
    parts = FusedGradients(library, model, torch.float32, micro_batch=2)
    for _ in range(2):
        assert float(whole(0, inputs, targets)) == pytest.approx(
            float(parts(0, inputs, targets)), rel=1e-6
        )
        assert distance(parts.flat, whole.flat) < 2e-6


def test_a_rank_s_share_is_of_the_whole_batch(library: Library) -> None:
    model, inputs, targets = shaped("odd")
    whole = FusedGradients(library, model, torch.float32, micro_batch=3)
    share = FusedGradients(library, model, torch.float32, micro_batch=3)
    whole(0, inputs, targets)
    total = torch.zeros_like(whole.flat)
    for rows in (slice(0, 2), slice(2, 3)):
        share(0, inputs[rows], targets[rows], sequences=3, factor=2.0)
        total += share.flat / 2.0
    assert distance(total, whole.flat) < 2e-6


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_same_steps_have_the_same_result(library: Library, dropout: float) -> None:
    """To the last bit, and by any number of threads, as far as the products go along."""
    results = []
    for _ in range(2):
        step, model, inputs, targets = steps(library, training(), fused=True, dropout=dropout)
        for number in range(3):
            step(number, 0.5, inputs, targets)
        results.append([value.detach().clone() for value in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_dropout_drops_its_share_and_goes_back_the_same_way(library: Library) -> None:
    """The gradient is that of the loss with what was dropped: seen along a direction."""
    model, inputs, targets = shaped("usual", dropout=0.4)
    fused = FusedGradients(library, model, torch.float32, micro_batch=3, seed=5)
    without, _ = autograd(model.eval(), inputs, targets, torch.float32)
    first = float(fused(1, inputs, targets))
    assert first != pytest.approx(without, rel=1e-5)
    assert float(fused(1, inputs, targets)) == first
    assert float(fused(2, inputs, targets)) != first
    fused(1, inputs, targets)
    torch.manual_seed(2)
    for name in ("attention", "feed_forward", "attention_mix", "token_embedding"):
        value = dict(model.named_parameters())[name]
        direction = fused.named[name] / fused.named[name].norm()
        slope, by = float((fused.named[name] * direction).sum()), 2e-2
        found = []
        for sign in (1, -1):
            with torch.no_grad():
                value.add_(direction, alpha=sign * by)
                found.append(float(fused(1, inputs, targets)))
                value.sub_(direction, alpha=sign * by)
        fused(1, inputs, targets)
        assert (found[0] - found[1]) / (2 * by) == pytest.approx(slope, rel=2e-2), name


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["token_embedding", "attention", "feed_forward", "head"])
def test_a_step_that_comes_to_nan_leaves_the_weights_alone(
    library: Library, name: str, bad: float
) -> None:
    step, model, inputs, targets = steps(library, training(), fused=True)
    with torch.no_grad():
        dict(model.named_parameters())[name].view(-1)[:] = bad
    before = [value.detach().clone() for value in model.parameters()]
    loss, norm = step(0, 1.0, inputs, targets)
    assert not torch.isfinite(loss + norm)
    for value, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(value.detach().nan_to_num(7.0), old.nan_to_num(7.0))


@pytest.mark.parametrize("threads", [2, 3])
def test_kernels_have_one_result_for_any_number_of_threads(library: Library, threads: int) -> None:
    values, results = torch.randn(300, 40, 48), []
    before = torch.get_num_threads()
    for count in (1, threads):
        out = torch.empty(300, 48)
        kernel = library.bind("add_parts", parts=300, pieces=40, count=48, values=values, out=out)
        try:
            torch.set_num_threads(count)
            kernel()
        finally:
            torch.set_num_threads(before)
        results.append(out)
    assert torch.equal(*results)
    assert distance(results[0], values.sum(1)) < 1e-6


def test_the_loss_s_kernel_agrees_with_float64(library: Library) -> None:
    """Logits of all sizes, to beyond those whose exponentials overflow."""
    torch.manual_seed(4)
    logits = torch.randn(33, 21) * torch.logspace(-3, 3, 33)[:, None]
    targets = torch.randint(21, (33,))
    exact = logits.double().requires_grad_()
    capped = LOGIT_CAP * torch.tanh(exact / LOGIT_CAP)
    wanted = torch.nn.functional.cross_entropy(capped, targets, reduction="none")
    gradient, losses = logits.clone(), torch.empty(33)
    kernel = library.bind(
        "cross_entropy", parts=5, dtype=torch.float32, scratch=8 * 21, rows=33, chunk=7,
        vocabulary=21, logits=gradient, targets=targets, losses=losses, cap=LOGIT_CAP, factor=0.5,
    )  # fmt: skip
    kernel()
    assert torch.allclose(losses.double(), wanted.detach(), rtol=1e-5, atol=1e-5)
    found = torch.autograd.grad(wanted.sum() * 0.5, exact)[0]
    assert torch.allclose(gradient.double(), found, rtol=1e-4, atol=1e-6)


def test_what_is_served(library: Library) -> None:
    model, _, _ = shaped("odd")
    assert serves(model, torch.float32)
    assert serves(model, torch.bfloat16)
    assert not serves(model, torch.float16)
    assert not serves(model.double(), torch.float32)
    assert not serves(build_model(tiny_config().model, 9), torch.float32) or (
        tiny_config().model.architecture == "modern"
    )


def test_a_field_that_is_missing_is_named(library: Library) -> None:
    with pytest.raises(TypeError, match="pieces"):
        library.bind("add_parts", parts=1, count=1, values=torch.ones(1), out=torch.ones(1))


RUN = tiny_config(
    {
        "model.architecture": "modern",
        "model.layers": 1,
        "training.optimizer": "muon",
        "training.muon_precision": "float32",
        "training.gradient_clip": 0.0,
        "training.token_dropout": 0.1,
        "training.compile": "on",
    }
)


@pytest.fixture
def same_cache(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs find the kernels that were built."""
    monkeypatch.setattr(STEP_LIBRARY, "find", lambda: library.path)


@pytest.mark.usefixtures("same_cache")
def test_a_run_has_the_losses_of_an_eager_one() -> None:
    """The sums are taken in another order; over 18 steps of float32 that is some 1e-5."""
    trainer = make_trainer(RUN)
    assert trainer.compiled
    eager = make_trainer(with_settings(RUN, {"training.compile": "off"}))
    assert history(list(trainer.run())) == pytest.approx(history(list(eager.run())), rel=2e-4)


@pytest.mark.usefixtures("same_cache")
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_run_goes_on_exactly_where_it_was_interrupted(dropout: float) -> None:
    config = with_settings(RUN, {"model.dropout": dropout})
    unbroken = history(list(make_trainer(config).run()))
    first = make_trainer(config)
    next(event for event in first.run() if event.step == 7)
    rest = history(list(resumed(config, saved(first)).run()))
    # The report at step 8 is the mean over an interval that began before the interruption.
    later = {key: value for key, value in unbroken.items() if key[1] > 8}
    assert later
    assert {key: value for key, value in rest.items() if key[1] > 8} == later


@pytest.mark.usefixtures("same_cache")
def test_a_run_that_was_eager_stays_so() -> None:
    """Its next steps are those it would have taken, to the last bit."""
    eager = with_settings(RUN, {"training.compile": "off"})
    first = make_trainer(eager)
    next(event for event in first.run() if event.step == 7)
    assert not resumed(RUN, saved(first)).compiled


@pytest.fixture
def patient_interpreter() -> Iterator[None]:
    """No thread is made to hand over Python's lock."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1000.0)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("patient_interpreter")
def test_other_threads_run_while_a_kernel_computes(library: Library) -> None:
    values, out = torch.ones(64, 64, 64), torch.empty(64, 64)
    kernel = library.bind("add_parts", parts=64, pieces=64, count=64, values=values, out=out)
    gate, other_ran = threading.Lock(), []
    gate.acquire()

    def wait_and_say() -> None:
        with gate:
            other_ran.append(True)

    thread = threading.Thread(target=wait_and_say)
    thread.start()
    gate.release()
    for _ in range(300):
        kernel()
    ran_meanwhile = list(other_ran)
    thread.join()
    assert ran_meanwhile


VARIANTS: dict[str, list[str]] = {
    "gcc-x86-64-v2": ["gcc", "-march=x86-64-v2"],
    "gcc-x86-64-v3": ["gcc", "-march=x86-64-v3"],
    "gcc-pairs": ["gcc", "-march=native", "-DEMULATED_PAIRS"],
    "gcc-narrow-pairs": ["gcc", "-march=x86-64-v2", "-DEMULATED_PAIRS"],
    "clang": ["clang", "-march=native"],
    "clang-pairs": ["clang", "-march=native", "-DEMULATED_PAIRS"],
}
"""Compilers and instruction sets; pairs of bfloat16 are emulated where they are no instruction."""


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_on_other_processors(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler, *flags = VARIANTS[variant]
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no {compiler}")
    usual = ["-O3", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math"]
    usual += ["-ffp-contract=fast", "-fopenmp-simd", "-Wall", "-Wextra", "-Werror"]
    path = tmp_path / "kernels.so"
    command = [compiler, *flags, *usual, "-o", str(path), str(STEP_LIBRARY.source), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True)
    if "march" in done.stderr:
        pytest.skip("this processor is of another kind")
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr(fused_library, "open_library", lambda found: ctypes.CDLL(str(found)))
    other = Library(path)
    check: Callable[[Library, str], None]
    for shape in SHAPES:
        for check in (
            test_gradients_in_float32_are_those_of_autograd,
            test_gradients_in_bfloat16_are_no_worse_than_autograd_s,
        ):
            check(other, shape)


@pytest.mark.slow
@pytest.mark.parametrize("heads", [1, 4])
def test_a_long_block(library: Library, heads: int) -> None:
    """Beyond one tile of attention's weights, and beyond where flat heads stop looking back."""
    config = ModelConfig(
        architecture="modern", layers=1, embed_dim=32, heads=heads, ff_dim=32, block_size=2048
    )
    torch.manual_seed(1)
    model = build_model(config, 11)
    assert isinstance(model, ModernTransformer)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value) * 0.2)
    inputs, targets = torch.randint(12, (1, 2048)), torch.randint(11, (1, 2048))
    fused = FusedGradients(library, model, torch.float32, micro_batch=1)
    loss, wanted = autograd(model, inputs, targets, torch.float32)
    assert float(fused(0, inputs, targets)) == pytest.approx(loss, rel=1e-6)
    for name, gradient in wanted.items():
        assert distance(fused.named[name], gradient) < 1e-5, name
