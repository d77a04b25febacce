"""A validation that several ranks share: each evaluates its pieces as rank 0 orders."""

from __future__ import annotations

import math
from collections.abc import Generator

import torch
from torch import nn

from megatron_model.data.batches import TokenArray
from megatron_model.distributed.team import Kind, Team
from megatron_model.training.loss import BlockLoss, piece_loss, pieces


class ValidationRounds:
    """The pieces of the validation split, and the losses of those that were evaluated here.

    Args:
        team: the ranks.
        model: its mode is switched to evaluation meanwhile.
        validation: the tokens of the split.
        block_size: the model's.
        device: the model's.
        all_take_part: whether a rank can compute anything only together with all others.
    """

    def __init__(
        self,
        team: Team,
        model: nn.Module,
        validation: TokenArray,
        *,
        block_size: int,
        device: torch.device,
        all_take_part: bool = False,
    ) -> None:
        self._team = team
        self._model = model
        self._validation = validation
        self._device = device
        self._all_take_part = all_take_part
        self._pieces = list(pieces(len(validation) - 1, block_size))
        self._losses = torch.zeros(0)

    def __call__(self, block_loss: BlockLoss) -> Generator[float, None, float]:
        """Yield the share done, return the mean loss over the whole validation split.

        The sums of all pieces are added in their order: the same number as one rank alone gets.
        """
        self.begin()
        for number in range(math.ceil(len(self._pieces) / self._team.size)):
            self.take_round(number, block_loss)
            done = min(len(self._pieces), (number + 1) * self._team.size)
            yield done / len(self._pieces)
        self._team.order(Kind.VALIDATED)
        return self.end()

    def begin(self) -> None:
        """Begin a validation, in all ranks."""
        self._team.order(Kind.VALIDATE)
        self._losses = torch.zeros(len(self._pieces), dtype=torch.float64)

    def take_round(self, number: int, block_loss: BlockLoss) -> None:
        """Evaluate this rank's one of the next pieces, in all ranks."""
        self._team.order(Kind.PIECE, number)
        own = number * self._team.size + self._team.rank
        was_training = self._model.training
        self._model.eval()
        if own < len(self._pieces):
            self._losses[own] = self._piece_loss(own, block_loss)
        elif self._all_take_part:
            self._piece_loss(0, block_loss)
        self._model.train(was_training)

    def _piece_loss(self, number: int, block_loss: BlockLoss) -> float:
        piece = self._pieces[number]
        return piece_loss(self._validation, piece, device=self._device, block_loss=block_loss)

    def end(self) -> float:
        """Return the mean over the split, in all ranks."""
        self._team.all_reduce(self._losses)
        total = sum(float(loss) for loss in self._losses)
        return total / (len(self._validation) - 1)
