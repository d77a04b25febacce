"""Steps whose loss or gradient is NaN or infinity: they are skipped, counted and averaged out.

Everything is kept on the training device, so that nothing waits for it between two reports.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_model.util.errors import DivergedError

BAD_STEPS = 5
"""Skipped steps in a row after which training does not recover by itself."""


class NonfiniteSteps:
    """The running loss, the gradient norm and the skipped steps since the last report."""

    def __init__(self, device: torch.device) -> None:
        self.loss_sum = torch.zeros((), device=device)
        self.norm = torch.zeros((), device=device)
        self._skipped = torch.zeros((), dtype=torch.int64, device=device)
        self._in_a_row = torch.zeros((), dtype=torch.int64, device=device)

    def take(self, loss: Tensor, norm: Tensor) -> None:
        """Take in a step; the same test decided whether it changed the weights."""
        good = are_finite(loss, norm)
        # Added as it always was where all is well: a sum of the same numbers in the same order.
        self.loss_sum += torch.where(good, loss, torch.zeros_like(loss))
        self.norm = torch.where(good, norm, self.norm)
        self._skipped += ~good
        self._in_a_row = torch.where(good, torch.zeros_like(self._in_a_row), self._in_a_row + 1)

    @property
    def in_a_row(self) -> int:
        """How many steps were skipped in a row up to now; reading it waits for the device."""
        return int(self._in_a_row)

    def check(self, step: int, rate: float) -> None:
        """Raise `DivergedError` when too many steps in a row up to `step` were skipped."""
        if self.in_a_row >= BAD_STEPS:
            raise DivergedError(
                f"The loss was NaN or infinity for {BAD_STEPS} steps in a row up to step "
                f"{step:,}. The last checkpoint is unharmed; resume it with a lower learning "
                f"rate (now {rate:g})."
            )

    @property
    def skipped(self) -> int:
        """How many steps were skipped since the last report; reading it waits for the device."""
        return int(self._skipped)

    def begin_interval(self) -> None:
        """Count anew, after a report."""
        self.loss_sum.zero_()
        self._skipped.zero_()

    def begin_row(self) -> None:
        """Count the steps in a row anew."""
        self._in_a_row = torch.zeros_like(self._in_a_row)

    def load(self, loss_sum: Tensor, skipped: int, in_a_row: int) -> None:
        """Go back to a saved state."""
        self.loss_sum.copy_(loss_sum)
        self._skipped.fill_(skipped)
        self._in_a_row.fill_(in_a_row)


def are_finite(loss: Tensor, norm: Tensor) -> Tensor:
    """Return, on the device, whether neither is NaN or infinity: the weights may take this step."""
    return (loss + norm).isfinite()


_OUT_OF_MEMORY = (
    "can't allocate memory",  # torch on a CPU
    "out of memory",  # CUDA and Triton, where torch's allocator was not asked
    "_STATUS_ALLOC_FAILED",  # cuBLAS, cuDNN and their like
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is how torch, or a library under it, says that there is no memory left."""
    # Most of them report it as any other RuntimeError.
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)
    )
