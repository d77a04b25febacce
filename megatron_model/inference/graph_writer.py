"""Writing on a CUDA card: some characters a launch, without the host between them.

A character costs hundreds of computations that are shorter than the time in which a host starts
one. They are captured once, as a graph that the card runs through by itself, sampling included:
`TOGETHER` characters a launch, after which their tokens are copied to the host. While the host
looks at those, the next launch is under way. Which text is over, the host says: what was written
past its end is dropped.

The window moves as in `decoder`. Without a graph (on a CPU, for a few characters, while another
thread trains, or where capturing fails) the same computations are started one by one.

Shapes: S streams, T positions, N = block_size, V characters.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import weakref
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cache
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from megatron_model.config.fields import SamplingConfig
from megatron_model.inference.device_sampler import (
    HIGHEST_DRAW,
    Asked,
    DeviceSampler,
    what_is_asked,
)
from megatron_model.inference.precision import Precision, device_dtype
from megatron_model.inference.prompt import kept_characters, window_length
from megatron_model.inference.static_reader import (
    SLOTS_TOGETHER,
    ClassicReader,
    ModernReader,
    Reader,
    Trail,
    View,
    trail_of,
)
from megatron_model.model.classic import TransformerModel
from megatron_model.model.modern import ModernTransformer
from megatron_model.torch_private.weight_versions import weight_versions
from megatron_model.util.recording import trained_here

TOGETHER = 16
"""Characters of a launch: up to one less is written past the end of a text, and dropped."""
IN_FLIGHT = 2
"""Launches whose characters the host has not seen yet."""
READ_AT_ONCE = 1 << 14
"""Positions of all streams together that are read at once: what lies between costs memory."""
CAPTURED_FROM = 64
"""Characters from which capturing, which starts the computations of some twenty, pays."""
WAITED_FROM = 8192
"""Characters from which it pays to wait until kernels are compiled, which takes some seconds."""
KEPT_BYTES = 1 << 28
"""Keys and values up to which a writer is kept for the next text of its model."""


_logger = logging.getLogger(__name__)


class Request(NamedTuple):
    """What is to be written, a text for each stream.

    Args:
        prompt: the tokens all streams go on from; not empty.
        written: what all of them have written already.
        samplings: how each is sampled.
        recent: of each the characters a repetition penalty is about, the last one last.
        draws: of each the random numbers in [0, 1) that are left.
        length: characters that the longest one still needs.
    """

    prompt: Sequence[int]
    written: Sequence[int]
    samplings: Sequence[SamplingConfig]
    recent: Sequence[Sequence[int]]
    draws: Sequence[Iterator[float]]
    length: int


class Written(NamedTuple):
    """What a launch wrote."""

    tokens: NDArray[np.int64]
    """(characters, S)"""
    finite: NDArray[np.bool_]
    """Whether all logits that a character came from were: (characters,)."""


_MOVE = 0
"""The launch that draws one character, and reads the last half of a full window again. Others are
named by the characters that they draw and read."""


class GraphWriter:
    """One model writing some texts in step on one device; one request at a time.

    Args:
        model: its weights are read where they lie if they are in `dtype`, and copied otherwise.
        streams: how many texts.
        asked: what their ways of sampling need: see `device_sampler`.
        dtype: of the matrix products, keys and values.
        fused: one text is written by kernels of our own: see `fused_reader`.
    """

    def __init__(
        self,
        model: TransformerModel | ModernTransformer,
        streams: int,
        asked: Asked,
        dtype: torch.dtype,
        *,
        fused: bool = False,
    ) -> None:
        self._device = next(model.parameters()).device
        self._streams, self._block_size = streams, model.block_size
        self._on_card = self._device.type == "cuda"
        self._stream: Any = None
        if self._on_card:
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._wait_for_others()
        with self._computing():
            self._reader, self._sampler = _parts(model, streams, asked, dtype, fused)
            trail = (1 + 2 * self._reader.halves, streams, 1, self._reader.width)
            self._trail = self._zeros(*trail)
            self._logits = self._zeros(streams, model.vocab_size)
            self._window = self._zeros(self._block_size, streams, dtype=torch.long)
            self._position = self._zeros(1, dtype=torch.long)
            self._draws = self._zeros(TOGETHER, streams, dtype=torch.float64)
            # Tokens, and the lowest and highest logit before each.
            self._report = self._zeros(3, TOGETHER, streams, dtype=torch.float64)
            self._steps = torch.arange(TOGETHER, device=self._device)
            self._half = torch.arange(kept_characters(self._block_size), device=self._device)
        self._host = [self._on_host(self._report) for _ in range(IN_FLIGHT)]
        self._host_draws = [self._on_host(self._draws) for _ in range(IN_FLIGHT)]
        self._length = 0
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._pool: Any = None

    @property
    def bytes(self) -> int:
        """What keys and values take."""
        return self._reader.slots.keys.nbytes + self._reader.slots.values.nbytes

    @property
    def captured(self) -> bool:
        """Whether there are graphs."""
        return bool(self._graphs)

    def write(self, request: Request) -> Iterator[Written]:
        """Yield what is written, up to `TOGETHER` characters at a time, until all is.

        To stop is to stop pulling.
        """
        waiting: deque[tuple[int, int, Any]] = deque()
        started = number = 0
        try:
            self._wait_for_others()
            with self._computing():
                self._start(request)
            while started < request.length or waiting:
                while started < request.length and len(waiting) < IN_FLIGHT:
                    place = number % IN_FLIGHT
                    with self._computing():
                        count, done = self._launch(place, request.draws, request.length - started)
                    waiting.append((place, count, done))
                    started, number = started + count, number + 1
                place, count, done = waiting.popleft()
                if done is not None:
                    done.synchronize()
                tokens, low, high = self._host[place][:, :count].numpy()
                finite = np.isfinite(low).all(-1) & np.isfinite(high).all(-1)
                yield Written(tokens.astype(np.int64), finite)
        finally:
            if self._on_card:
                # What is under way reads memory that may now be given to somebody else.
                self._stream.synchronize()

    def missing(self, request: Request) -> set[int]:
        """Return the launches that a request takes, and that were not captured yet."""
        length = window_length(len(request.prompt), len(request.written), self._block_size)
        launches: set[int] = set()
        # After two windows nothing new comes.
        left = min(request.length, 2 * self._block_size + TOGETHER)
        while left > 0:
            launch = self._next(length, captured=True)
            launches.add(launch)
            left -= max(1, launch)
            length = self._after(launch, length)
        return launches - self._graphs.keys()

    def capture(self, launches: Iterable[int]) -> None:
        """Capture what will be launched; nothing may be under way.

        Raises:
            RuntimeError: it cannot be captured, or there is no memory for it.
        """
        for launch in launches:
            with self._computing():
                graph = torch.cuda.CUDAGraph()
                self._pool = self._pool or torch.cuda.graph_pool_handle()
                # Libraries and workspaces are looked for before: that cannot be captured.
                self._position.zero_()
                self._compute(min(2, launch))
                # Others may go on computing on the card, unless they train: see `trained_here`.
                with torch.cuda.graph(
                    graph,
                    pool=self._pool,
                    stream=self._stream,
                    capture_error_mode="thread_local",
                ):
                    self._compute(launch)
            self._graphs[launch] = graph

    def _start(self, request: Request) -> None:
        """Read the beginning that all streams share."""
        length = window_length(len(request.prompt), len(request.written), self._block_size)
        row = torch.tensor([*request.prompt, *request.written][-length:], device=self._device)
        self._sampler.start(request.samplings, request.recent)
        self._reader.slots.clear()
        self._trail.zero_()
        self._window[:length] = row[:, None]
        positions = torch.arange(length, device=self._device)
        logits, trail = self._read_window(row[None], positions)
        self._reader.slots.spread(length)
        self._keep(logits, trail)
        self._position.fill_(length)
        self._length = length

    def _launch(self, place: int, draws: Sequence[Iterator[float]], left: int) -> tuple[int, Any]:
        """Start the next computations; return how many characters come, and what tells the end.

        Args:
            place: which of the host's copies is free.
            draws: of each stream.
            left: characters that are needed.
        """
        launch = self._next(self._length, captured=bool(self._graphs))
        if not self._graphs:
            launch = min(launch, left)
        self._length = self._after(launch, self._length)
        count = max(1, launch)
        numbers = np.array([list(islice(each, count)) for each in draws])
        uploaded = self._host_draws[place]
        uploaded[:count] = torch.from_numpy(np.minimum(numbers.T, HIGHEST_DRAW))
        self._draws.copy_(uploaded, non_blocking=True)
        if launch in self._graphs:
            self._graphs[launch].replay()
        else:
            self._compute(launch)
        self._host[place].copy_(self._report, non_blocking=True)
        return count, self._stream.record_event() if self._on_card else None

    def _next(self, length: int, *, captured: bool) -> int:
        """Return the launch that comes when so many characters lie in the window.

        `captured`: it is one of three, so that there are few graphs.
        """
        room = self._block_size - length
        if room >= TOGETHER:
            return TOGETHER
        return min(room, 1) if captured else room

    def _after(self, launch: int, length: int) -> int:
        """Return how many characters lie in the window after a launch."""
        return kept_characters(self._block_size) if launch == _MOVE else length + launch

    # What follows is computed on the device alone, and can be captured.

    def _compute(self, launch: int) -> None:
        if launch == _MOVE:
            self._move()
        else:
            self._write_on(launch)

    def _write_on(self, count: int) -> None:
        """Draw and read so many characters of each stream; there is room for them."""
        positions = self._position + self._steps[:count]
        reach = self._reader.slots.count
        bias = self._reader.slots.bias(positions, reach)
        logits, trail = self._logits, trail_of(self._trail)
        read: list[Tensor] = []
        written: list[Tensor] = []
        for step in range(count):
            tokens = self._sampler.choose(logits, self._draws[step])
            read.append(logits)
            written.append(tokens)
            view = View(positions[step : step + 1], bias[:, :, step : step + 1])
            logits, trail = self._reader.read(tokens[:, None], slice(None), view, trail)
        self._tell(torch.stack(written), torch.stack(read))
        self._window.index_copy_(0, positions, torch.stack(written))
        self._position.add_(count)
        self._keep(logits, trail)

    def _move(self) -> None:
        """Draw a character of each stream, and read the last half of the window, it included."""
        tokens = self._sampler.choose(self._logits, self._draws[0])
        self._tell(tokens[None], self._logits[None])
        kept = self._half.numel()
        last = torch.cat([self._window[self._block_size - kept + 1 :], tokens[None]])
        self._window[:kept].copy_(last)
        self._trail.zero_()
        self._keep(*self._read_window(last.T, self._half))
        self._position.fill_(kept)

    def _read_window(self, rows: Tensor, positions: Tensor) -> tuple[Tensor, Trail]:
        """Read texts (B, T) from their beginning; `_trail` is zero."""
        count, length = rows.shape
        reach = -(-length // SLOTS_TOGETHER) * SLOTS_TOGETHER
        view = View(positions, self._reader.slots.bias(positions, reach))
        at_once = max(1, READ_AT_ONCE // length)
        parts = []
        for first in range(0, count, at_once):
            part = slice(first, min(first + at_once, count))
            trail = trail_of(self._trail).rows(part)
            parts.append(self._reader.read(rows[part], part, view, trail))
        if len(parts) == 1:
            return parts[0]
        trails = [torch.stack(trail.tensors()) for _, trail in parts]
        return torch.cat([logits for logits, _ in parts]), trail_of(torch.cat(trails, dim=1))

    def _tell(self, tokens: Tensor, logits: Tensor) -> None:
        """Report tokens (count, S), and the logits (count, S, V) that they came from."""
        count = tokens.size(0)
        low, high = torch.aminmax(logits, dim=-1)
        self._report[0, :count] = tokens
        self._report[1, :count] = low
        self._report[2, :count] = high

    def _keep(self, logits: Tensor, trail: Trail) -> None:
        """Keep what the next launch begins with; a single stream stands for all."""
        self._logits.copy_(logits.expand_as(self._logits))
        self._trail.copy_(torch.stack(trail.tensors()).expand_as(self._trail))

    def _zeros(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self._device)

    def _on_host(self, like: Tensor) -> Tensor:
        return torch.zeros(like.shape, dtype=like.dtype, pin_memory=self._on_card)

    def _wait_for_others(self) -> None:
        """Begin after what is computed on the weights at this moment, where others compute."""
        if self._on_card:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))

    @contextlib.contextmanager
    def _computing(self) -> Iterator[None]:
        """Compute on the writer's own stream, in the arithmetic that it says."""
        on_stream: AbstractContextManager[None] = contextlib.nullcontext()
        if self._on_card:
            on_stream = torch.cuda.stream(self._stream)
        with torch.no_grad(), torch.autocast(self._device.type, enabled=False), on_stream:
            yield


def _parts(
    model: TransformerModel | ModernTransformer,
    streams: int,
    asked: Asked,
    dtype: torch.dtype,
    fused: bool,
) -> tuple[Reader, DeviceSampler]:
    """Return what reads and what draws; see `GraphWriter`."""
    device = next(model.parameters()).device
    if isinstance(model, TransformerModel):
        reader: Reader = ClassicReader(model, streams, dtype)
    elif fused:
        from megatron_model.inference.fused_reader import FusedReader, FusedSampler

        return FusedReader(model, dtype), FusedSampler(asked, 1, model.vocab_size, device)
    else:
        reader = ModernReader(model, streams, dtype)
    return reader, DeviceSampler(asked, streams, model.vocab_size, device)


class _Kept(NamedTuple):
    """A writer between two texts, and what it is a writer of."""

    writer: GraphWriter
    kind: tuple[Any, ...]


_idle: weakref.WeakKeyDictionary[nn.Module, _Kept] = weakref.WeakKeyDictionary()
_idle_lock = threading.Lock()
_capturing = threading.Lock()
"""One capture at a time: it begins with waiting for the card, which no other capture bears."""


def write_on_card(
    model: nn.Module, request: Request, precision: Precision
) -> Generator[Written, None, None] | None:
    """Return what a model writes on its card, as it is pulled; nothing where that cannot be.

    Args:
        model: it, all of whose weights must be float32 and on one CUDA card.
        request: what is to be written.
        precision: see `device_dtype`.
    """
    if not isinstance(model, (TransformerModel, ModernTransformer)) or not _is_on_card(model):
        return None
    dtype = device_dtype(next(model.parameters()).device, precision)
    asked = what_is_asked(request.samplings)
    fused = _has_kernels(model, dtype, request)
    kind = (len(request.samplings), asked, dtype, fused, weight_versions(model))
    try:
        writer = _take(model, kind) or GraphWriter(
            model, len(request.samplings), asked, dtype, fused=fused
        )
    except Exception as error:  # there is no room for it, most likely
        _say(f"text is written without the fast writer: {error}")
        return None
    if writer.captured or request.length >= CAPTURED_FROM:
        _capture(writer, request)
    return _written(model, writer, kind, request)


def _written(
    model: nn.Module, writer: GraphWriter, kind: tuple[Any, ...], request: Request
) -> Generator[Written, None, None]:
    """Write, and keep the writer for the next text if the model is not being trained."""
    frozen = not any(value.requires_grad for value in model.parameters())
    keep = frozen and writer.captured and writer.bytes <= KEPT_BYTES
    try:
        yield from writer.write(request)
    except Exception:
        keep = False
        raise
    finally:
        if keep:
            with _idle_lock:
                _idle[model] = _Kept(writer, kind)


def _take(model: nn.Module, kind: tuple[Any, ...]) -> GraphWriter | None:
    """Return the writer that was kept for a model, if it is of this kind: nobody else has it."""
    with _idle_lock:
        kept = _idle.pop(model, None)
    return kept.writer if kept is not None and kept.kind == kind else None


def _has_kernels(
    model: TransformerModel | ModernTransformer, dtype: torch.dtype, request: Request
) -> bool:
    """Whether there are kernels of our own for a request; they are compiled meanwhile if not."""
    if len(request.samplings) > 1 or not isinstance(model, ModernTransformer):
        return False
    try:
        from megatron_model.inference.fused_reader import is_ready
    except ImportError:  # Triton is not on every machine
        return False
    return is_ready(model, dtype, wait=request.length >= WAITED_FROM)


def _is_on_card(model: nn.Module) -> bool:
    values = list(model.parameters())
    return len({value.device for value in values}) == 1 and all(
        value.device.type == "cuda" and value.dtype == torch.float32 for value in values
    )


def _capture(writer: GraphWriter, request: Request) -> None:
    """Capture if it can be done; without a graph the same is computed, more slowly."""
    missing = writer.missing(request)
    if not missing or trained_here():
        return
    try:
        with _capturing:
            writer.capture(missing)
    except Exception as error:  # whatever a driver refuses: there is another way
        _say(f"text is written without a graph: {error}")


@cache
def _say(reason: str) -> None:
    """Write down, once, why text is written more slowly than it could be."""
    _logger.warning("%s", reason)
