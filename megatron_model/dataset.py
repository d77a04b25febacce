"""Batches from a token array: which characters are read in a step depends on seed and step alone.

Nothing about the position in the data has to be saved for an exact resume.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TokenArray = NDArray[Any]


class Batches:
    """Random blocks of a token array, as (inputs, targets) on the training device.

    On an accelerator the whole array lives there as small integers when it takes at most a quarter
    of the free memory; batches are then gathered without touching the host.
    """

    def __init__(
        self,
        tokens: TokenArray,
        *,
        length: int,
        batch_size: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self._tokens = tokens
        self._seed = seed
        self._device = device
        self._starts = len(tokens) - length
        self._batch_size = batch_size
        self._window = np.arange(length + 1, dtype=np.int64)
        self._resident = self._move_to_device() if device.type == "cuda" else None

    def _move_to_device(self) -> Tensor | None:
        free, _ = torch.cuda.mem_get_info(self._device)
        if self._tokens.nbytes > free // 4:
            return None
        # torch indexes and gathers signed types only beyond 8 bits.
        small = self._tokens if self._tokens.dtype == np.uint8 else self._tokens.astype(np.int32)
        return torch.from_numpy(np.array(small)).to(self._device)

    def starts(self, step: int) -> NDArray[np.int64]:
        """Return where the blocks of `step` begin: (B,), uniform over the array."""
        # Philox is a counter-based generator: any step's draws without those before it.
        generator = np.random.Generator(np.random.Philox(key=self._seed, counter=[0, 0, 0, step]))
        return generator.integers(0, self._starts, size=self._batch_size, dtype=np.int64)

    def get(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the inputs (B, T) and the targets (B, T), each one character further."""
        index = self.starts(step)[:, None] + self._window  # (B, T + 1)
        if self._resident is not None:
            block = self._resident[
                torch.from_numpy(index).to(self._device, non_blocking=True)
            ].long()
        else:
            block = torch.from_numpy(self._tokens[index].astype(np.int64))
            if self._device.type == "cuda":
                block = block.pin_memory()
            block = block.to(self._device, non_blocking=True)
        return block[:, :-1], block[:, 1:]
