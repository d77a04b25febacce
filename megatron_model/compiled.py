"""Whole computations compiled into libraries ahead of time, for CPUs: a training step, and a loss.

A step - forward, backward, optimizer - is traced into one graph and compiled in a process of its
own: nothing of the compiler is loaded into the training process, no lock of Python's is held
meanwhile, and a library that is in the cache is ready in a fraction of a second. What is compiled
depends on shapes alone, not on the corpus, the weights or the rates.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from torch import Tensor, nn

from megatron_model import evaluation, modern, muon
from megatron_model.architectures import build_model
from megatron_model.config import ModelConfig, RunConfig, config_from_builtins
from megatron_model.library_call import LibraryCall

Flat = Callable[..., list[Tensor]]
"""A function of a flat list of tensors: what can be traced."""

USUAL_SECONDS = 20.0
"""Scale of the guess of how far compiling is."""


def can_compile(config: RunConfig, device: torch.device) -> bool:
    """Whether this run's step is one that is compiled ahead: the modern recipe on a CPU."""
    return (
        device.type == "cpu"
        and config.model.architecture == "modern"
        and config.training.optimizer == "muon"
        and not config.model.dropout
        and not config.training.gradient_clip
        and (shutil.which("c++") or shutil.which("g++")) is not None
    )


class Library:
    """One computation compiled for one shape: where it is kept, and how it is made.

    Args:
        kind: ``step``, a whole update; ``gradients``, the mean loss of some sequences and its
            gradients; or ``loss``, the summed loss of some blocks.
        config: its model, batch size and weight decay count.
        vocab_size: different characters.
        dtype: arithmetic of the matrix products.
        rows: sequences worked on here, where a batch is divided among processes.
    """

    def __init__(
        self,
        kind: Literal["step", "gradients", "loss"],
        config: RunConfig,
        vocab_size: int,
        dtype: torch.dtype,
        rows: int | None = None,
    ) -> None:
        self._kind = kind
        block_size = config.model.block_size
        step_shape = [rows or config.training.batch_size, config.sequence_length]
        loss_shape = [evaluation.rows_at_once(block_size), block_size]
        self._spec: dict[str, Any] = {
            "kind": kind,
            "config": msgspec.to_builtins(config.model),
            "shape": loss_shape if kind == "loss" else step_shape,
            "weight_decay": config.training.weight_decay if kind == "step" else 0.0,
            "muon_precision": config.training.muon_precision if kind == "step" else "",
            "vocab_size": vocab_size,
            "dtype": str(dtype).removeprefix("torch."),
            # The generated loops are divided among a fixed number of threads.
            "threads": torch.get_num_threads(),
        }
        self.shape = tuple(self._spec["shape"])
        self.path = _cache_dir() / f"{kind}-{self._key()}.so"

    def _key(self) -> str:
        """Return a name that changes with all that the library depends on."""
        parts = [Path(str(m.__file__)).read_text() for m in (modern, muon, evaluation)]
        parts += [Path(__file__).read_text(), torch.__version__]
        parts += [torch.backends.cpu.get_cpu_capability()]
        text = json.dumps([self._spec, parts], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    @property
    def ready(self) -> bool:
        """Whether the library is in the cache."""
        return self.path.is_file()

    def start_compiling(self) -> subprocess.Popen[bytes]:
        """Start the process that makes the library; `ready` tells whether it came out well."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        module = [sys.executable, "-m", "megatron_model.compiled"]
        return subprocess.Popen(
            [*module, json.dumps(self._spec), str(self.path)],
            env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(self.path.parent / "inductor")},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def load(self) -> Callable[[Sequence[Tensor]], list[Tensor]]:
        """Return the compiled function of a flat list of contiguous tensors."""
        return LibraryCall(self.path)


def compile_all(libraries: Sequence[Library]) -> Iterator[float]:
    """Make the libraries that are missing, side by side; yield a guess of the share that is done.

    Whoever stops pulling ends the compilers.
    """
    processes = [library.start_compiling() for library in libraries if not library.ready]
    started = time.monotonic()
    try:
        while any(process.poll() is None for process in processes):
            time.sleep(0.1)
            yield 1.0 - math.exp(-(time.monotonic() - started) / USUAL_SECONDS)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def library_update(
    library: Library, model: nn.Module, optimizer: muon.MuonOptimizer
) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return the step from inputs, targets and rates to the loss and the gradient norm.

    Model and optimizer are updated in place, unless one of the two is no finite number.
    """
    run = library.load()
    names = [name for name, _ in model.named_parameters()]
    buffers = list(model.buffers())

    def update(inputs: Tensor, targets: Tensor, rates: Tensor) -> tuple[Tensor, Tensor]:
        state = optimizer.state_tensors()
        parameters = [value.detach() for value in model.parameters()]
        result = run([*parameters, *state.values(), *buffers, inputs, targets, rates])
        if not math.isfinite(float(result[-2]) + float(result[-1])):
            return result[-2], result[-1]
        new = dict(zip(names, result[: len(names)], strict=True))
        optimizer.take(new, dict(zip(state, result[len(names) : -2], strict=True)))
        return result[-2], result[-1]

    return update


def library_gradients(
    library: Library, model: nn.Module
) -> Callable[[Tensor, Tensor], list[Tensor]]:
    """Return the function from inputs and targets to the gradients of their mean loss, and it."""
    run = library.load()
    buffers = list(model.buffers())

    def gradients(inputs: Tensor, targets: Tensor) -> list[Tensor]:
        parameters = [value.detach() for value in model.parameters()]
        return run([*parameters, *buffers, inputs, targets])

    return gradients


def library_loss(library: Library, model: nn.Module, dtype: torch.dtype) -> evaluation.BlockLoss:
    """Return the summed loss of blocks; a shape the library is not made for is computed eagerly."""
    run = library.load()
    buffers = list(model.buffers())
    eagerly = evaluation.eager_loss(model, dtype)

    def loss(inputs: Tensor, targets: Tensor) -> Tensor:
        if inputs.shape != library.shape:
            return eagerly(inputs, targets)
        parameters = [value.detach() for value in model.parameters()]
        return run([*parameters, *buffers, inputs, targets])[0]

    return loss


def _cache_dir() -> Path:
    import platformdirs

    return platformdirs.user_cache_path("megatron") / "compiled"


def _flat_loss(model: nn.Module, dtype: torch.dtype) -> tuple[Flat, list[Tensor]]:
    """Return the summed loss of parameters, buffers, inputs, targets; and its first arguments."""
    fixed = {**dict(model.named_parameters()), **dict(model.named_buffers())}

    def loss(*flat: Tensor) -> list[Tensor]:
        arguments = iter(flat)
        values = dict(zip(fixed, arguments, strict=False))
        inputs, targets = arguments
        with torch.no_grad(), _autocast(dtype):
            logits = torch.func.functional_call(model, values, (inputs,))
            return [evaluation.sequence_loss(logits, targets, reduction="sum")]

    return loss, [value.detach().clone() for value in fixed.values()]


def _flat_step(
    model: nn.Module, dtype: torch.dtype, weight_decay: float, muon_dtype: torch.dtype
) -> tuple[Flat, list[Tensor]]:
    """Return the step of parameters, state, buffers, inputs, targets and rates; and its first ones.

    It returns the new parameters, the new state, the loss and the gradient norm.
    """
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    state = muon.initial_state(parameters)

    def step(*flat: Tensor) -> list[Tensor]:
        arguments = iter(flat)
        values = dict(zip(parameters, arguments, strict=False))
        moments = dict(zip(state, arguments, strict=False))
        fixed = dict(zip(buffers, arguments, strict=False))
        inputs, targets, rates = arguments
        loss, found = _differentiated(model, values, fixed, inputs, targets, dtype)
        with torch.no_grad():
            gradients = dict(zip(values, found, strict=True))
            norm = torch.stack([gradient.square().sum() for gradient in found]).sum().sqrt()
            new, after = muon.update(
                values, gradients, moments, rates, weight_decay, dtype=muon_dtype
            )
        return [*new.values(), *after.values(), loss.detach(), norm]

    first = [value.detach().clone() for value in parameters.values()]
    return step, [*first, *state.values(), *buffers.values()]


def _flat_gradients(model: nn.Module, dtype: torch.dtype) -> tuple[Flat, list[Tensor]]:
    """Return the gradients, and the loss, of parameters, buffers, inputs and targets."""
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())

    def gradients(*flat: Tensor) -> list[Tensor]:
        arguments = iter(flat)
        values = dict(zip(parameters, arguments, strict=False))
        fixed = dict(zip(buffers, arguments, strict=False))
        inputs, targets = arguments
        loss, found = _differentiated(model, values, fixed, inputs, targets, dtype)
        return [*found, loss.detach()]

    first = [value.detach().clone() for value in parameters.values()]
    return gradients, [*first, *buffers.values()]


def _differentiated(
    model: nn.Module,
    values: dict[str, Tensor],
    fixed: dict[str, Tensor],
    inputs: Tensor,
    targets: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the mean loss with these parameters and buffers, and the parameters' gradients."""
    leaves = {name: value.detach().requires_grad_() for name, value in values.items()}
    with torch.enable_grad(), _autocast(dtype):
        logits = torch.func.functional_call(model, {**leaves, **fixed}, (inputs,))
        loss = evaluation.sequence_loss(logits, targets)
        return loss, torch.autograd.grad(loss, list(leaves.values()))


def _autocast(dtype: torch.dtype) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast("cpu", dtype, enabled=dtype != torch.float32)


def compile_library(spec: dict[str, Any], path: Path) -> None:
    """Trace and compile what `spec` describes, and move the library to `path`."""
    from torch._inductor import aot_compile
    from torch._inductor.decomposition import select_decomp_table
    from torch.fx.experimental.proxy_tensor import make_fx

    torch.set_num_threads(spec["threads"])
    config: ModelConfig = config_from_builtins({"model": spec["config"]}).model
    model = build_model(config, spec["vocab_size"])
    dtype = getattr(torch, spec["dtype"])
    tokens = torch.zeros(spec["shape"], dtype=torch.long)
    if spec["kind"] == "step":
        muon_dtype = getattr(torch, spec["muon_precision"])
        function, arguments = _flat_step(model, dtype, spec["weight_decay"], muon_dtype)
        arguments += [tokens, tokens.clone(), torch.zeros(muon.RATES)]
    elif spec["kind"] == "gradients":
        function, arguments = _flat_gradients(model, dtype)
        arguments += [tokens, tokens.clone()]
    else:
        model.eval()
        function, arguments = _flat_loss(model, dtype)
        arguments += [tokens, tokens.clone()]
    trace = make_fx(function, decomposition_table=select_decomp_table(), tracing_mode="fake")
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.so")
    made = aot_compile(
        trace(*arguments), tuple(arguments), options={"aot_inductor.output_path": str(temporary)}
    )
    os.replace(str(made), path)


if __name__ == "__main__":
    compile_library(json.loads(sys.argv[1]), Path(sys.argv[2]))
