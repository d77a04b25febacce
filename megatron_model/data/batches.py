"""Batches from a token array: which characters are read in a step depends on seed and step alone.

Nothing about the position in the data has to be saved for an exact resume.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megatron_model.data.token_cache import check_whole

TokenArray = NDArray[Any]


MOST_BLOCKS = 4_000_000
"""From so many blocks on an epoch is drawn, not shuffled: it will hardly be read once."""


class Batches:
    """Shuffled blocks of a token array, as (inputs, targets) on the training device.

    An epoch cuts the array into blocks from a random first character and goes through them in
    random order, so that every character is read before any is read again. On an accelerator the
    whole array lives there as small integers when it takes at most a quarter of the free memory;
    batches are then gathered without touching the host.

    Args:
        tokens: the training split.
        length: characters of a sequence.
        batch_size: sequences of a step.
        seed: decides everything random.
        device: where batches are wanted.
        token_dropout: share of the inputs replaced by `blank`.
        blank: the id that stands for no character.
        rows: which sequences of each step are wanted here; the rest are others' work.
    """

    def __init__(
        self,
        tokens: TokenArray,
        *,
        length: int,
        batch_size: int,
        seed: int,
        device: torch.device,
        token_dropout: float = 0.0,
        blank: int = 0,
        rows: slice = slice(None),
    ) -> None:
        self._tokens = tokens
        self._length = length
        self._batch_size = batch_size
        self._seed = seed
        self._device = device
        self._token_dropout = token_dropout
        self._blank = blank
        self._rows = rows
        self._window = np.arange(length + 1, dtype=np.int64)
        self._steps_in_epoch = (len(tokens) - length) // length // batch_size
        self._epoch: tuple[int, NDArray[np.int64]] | None = None
        self._resident = self._move_to_device() if device.type == "cuda" else None

    def _move_to_device(self) -> Tensor | None:
        free, _ = torch.cuda.mem_get_info(self._device)
        if self._tokens.nbytes > free // 4:
            return None
        check_whole(self._tokens)
        # torch indexes and gathers signed types only beyond 8 bits.
        small = self._tokens if self._tokens.dtype == np.uint8 else self._tokens.astype(np.int32)
        return torch.from_numpy(np.array(small)).to(self._device)

    def _generator(self, purpose: int, number: int) -> np.random.Generator:
        # Philox is a counter-based generator: the draws of any step without those before it.
        counter = [0, 0, purpose, number]
        return np.random.Generator(np.random.Philox(key=self._seed, counter=counter))

    def starts(self, step: int) -> NDArray[np.int64]:
        """Return where the blocks of `step` begin: (B,)."""
        steps = self._steps_in_epoch
        if not 0 < steps * self._batch_size <= MOST_BLOCKS:
            draws = self._generator(0, step)
            return draws.integers(0, len(self._tokens) - self._length, size=self._batch_size)
        epoch, place = divmod(step, steps)
        if self._epoch is None or self._epoch[0] != epoch:
            draws = self._generator(1, epoch)
            first = draws.integers(0, self._length)
            blocks = (len(self._tokens) - 1 - first) // self._length
            self._epoch = (epoch, first + self._length * draws.permutation(blocks))
        return self._epoch[1][place * self._batch_size : (place + 1) * self._batch_size]

    def get(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the inputs (B, T) and the targets (B, T), each one character further."""
        index = self.starts(step)[self._rows, None] + self._window  # (B, T + 1)
        if self._resident is not None:
            block = self._resident[self._on_device(index)].long()
        else:
            check_whole(self._tokens)
            block = self._on_device(self._tokens[index].astype(np.int64))
        inputs, targets = block[:, :-1], block[:, 1:]
        if self._token_dropout:
            # Drawn for all sequences, whichever process works on them: it is one and the same step.
            shape = (self._batch_size, self._length)
            draws = self._generator(2, step).random(shape, dtype=np.float32)[self._rows]
            blanked = self._on_device(draws < self._token_dropout)
            inputs = inputs.masked_fill(blanked, self._blank)
        return inputs, targets

    def _on_device(self, array: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array)
        if self._device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self._device, non_blocking=True)
