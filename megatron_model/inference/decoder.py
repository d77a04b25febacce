"""From the characters so far to the logits of the next one, with a cache or without.

How the window moves: of a long prompt the last block is read. When the window is full and one more
character comes, it is cut to its last half, that character included, and read again from there;
until it is full again, each character costs one position. (Measured on Shakespeare, a
model predicts as well from half a block as from a whole one; kept to three quarters, it would read
three times as much again.) With and without a cache the window moves the same way, so that both
write the same text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from megatron_model.inference.native import NativeStep, native_step
from megatron_model.inference.precision import Precision, is_rounded
from megatron_model.inference.prompt import kept_characters, window_length
from megatron_model.model.classic import TransformerModel
from megatron_model.model.modern import ModernTransformer

Logits: TypeAlias = NDArray[np.float32]
"""Of each stream, a number for each character: (S, V)."""


class _TorchStep:
    """Reads with torch, and remembers what was read."""

    def __init__(self, model: TransformerModel | ModernTransformer, streams: int) -> None:
        self._model, self._cache = model, model.new_cache(streams)
        self._device = next(model.parameters()).device

    def clear(self) -> None:
        self._cache.clear()

    def __call__(self, tokens: Tensor, logits: Tensor) -> None:
        # The one point at which the host waits for the device.
        found = self._model.extend(tokens.to(self._device), self._cache)
        logits.copy_(found.expand_as(logits))


class Decoder:
    """One model reading some streams in step, a character of each at a time.

    The logits that are returned are overwritten by the next call. The model's mode is left alone.
    In float32 its weights are read where they lie: if it is trained meanwhile, it writes with what
    it has learned. Rounded, they are read as they are at the beginning.

    Args:
        model: any model of this package, on any device.
        streams: how many texts are written at once.
        cached: False computes the whole window for every character, for comparison.
        precision: of the weights; int8 is for caches and needs a C compiler, without which it is
            float32.
    """

    def __init__(
        self,
        model: nn.Module,
        streams: int = 1,
        *,
        cached: bool = True,
        precision: Precision = "auto",
    ) -> None:
        self._model = model
        self.block_size = int(model.block_size)  # type: ignore[arg-type]
        self._device = next(model.parameters()).device
        self._streams = streams
        known = isinstance(model, (TransformerModel, ModernTransformer))
        self._cached = cached and known
        self._native: NativeStep | None = None
        self._torch: _TorchStep | None = None
        if self._cached and is_rounded(model, precision):
            # Never in the middle of a text: a seed is to write the same text each time.
            self._native = native_step(model, streams, rounded=True, wait=True)
        self._window = np.zeros((streams, self.block_size), np.int64)
        self._length = 0
        # Reused for every character, so that a step allocates nothing.
        self._tokens = torch.zeros(streams, 1, dtype=torch.long)
        self._token_numbers: NDArray[np.int64] = self._tokens.numpy()
        self._logits = torch.zeros(streams, int(model.vocab_size))  # type: ignore[arg-type]
        self._logit_numbers: Logits = self._logits.numpy()

    def start(self, prompt: Sequence[int], written: Sequence[int] = ()) -> Logits:
        """Read the beginning that all streams share; return the logits of what comes next.

        The window lies where it would if `written` had come after `prompt` step by step.
        """
        self._length = window_length(len(prompt), len(written), self.block_size)
        self._window[:, : self._length] = [*prompt, *written][-self._length :]
        # One sequence stands for all of them.
        return self._read_window(self._window[:1])

    def step(self, tokens: Sequence[int]) -> Logits:
        """Read one more character of each stream; return the logits of what comes next."""
        moved = self._length == self.block_size
        if moved:
            self._length = kept_characters(self.block_size) - 1
            self._window[:, : self._length] = self._window[:, self.block_size - self._length :]
        self._window[:, self._length] = tokens
        self._length += 1
        if moved or not self._cached:
            return self._read_window(self._window)
        self._token_numbers[:, 0] = tokens
        return self._extend(self._tokens)

    def _read_window(self, rows: NDArray[np.int64]) -> Logits:
        window = torch.from_numpy(rows[:, : self._length])
        if not self._cached:
            self._logits.copy_(self._recompute(window).expand_as(self._logits))
            return self._logit_numbers
        # It may have been compiled since the last time.
        self._native = self._native or native_step(self._model, self._streams)
        if self._native is None and self._torch is None:
            self._torch = _TorchStep(self._model, self._streams)  # type: ignore[arg-type]
        (self._native or self._torch).clear()  # type: ignore[union-attr]
        return self._extend(window)

    def _extend(self, tokens: Tensor) -> Logits:
        step = self._native or self._torch
        assert step is not None
        step(tokens, self._logits)
        return self._logit_numbers

    @torch.no_grad()
    def _recompute(self, tokens: Tensor) -> Tensor:
        was_training = self._model.training
        self._model.eval()
        try:
            logits: Tensor = self._model(tokens.to(self._device))[:, -1]
            return logits
        finally:
            self._model.train(was_training)
