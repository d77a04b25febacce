"""Drawing the next characters where the logits are: what `sampler.choose` does, in tensors.

Nothing here is read by the host, and no shape depends on a value, so that it can be part of a graph
of computations. What no stream asks for is left out; what some do is computed for all, where it
changes nothing for the others. Float64, from float32 logits, as on the CPU.

Shapes: S streams, V characters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from megatron_model.config.fields import REPETITION_SPAN, SamplingConfig

HIGHEST_DRAW = 1.0 - 2.0**-52
"""The last number below 1 but one: its share of a sum is always below the sum, so that what is
drawn is never behind the last character that is possible."""


class Asked(NamedTuple):
    """What at least one stream asks for: which computations there are."""

    sampled: bool
    likeliest: bool
    penalty: bool
    ranked: bool
    """By top-k or top-p."""
    min_p: bool


PLAINLY = Asked(sampled=True, likeliest=False, penalty=False, ranked=False, min_p=False)
"""A temperature, and nothing else."""


def can_draw(sampling: SamplingConfig) -> bool:
    """Whether what is here draws as `sampling` says; what is asked more rarely, the CPU draws."""
    return (
        sampling.typical_p >= 1.0
        and not sampling.forbidden
        and not sampling.only
        and (sampling.repetition_penalty == 1.0 or sampling.repetition_window == REPETITION_SPAN)
    )


def what_is_asked(samplings: Sequence[SamplingConfig]) -> Asked:
    """Return which computations some ways of sampling need together."""
    return Asked(
        sampled=any(each.temperature > 0.0 for each in samplings),
        likeliest=any(each.temperature == 0.0 for each in samplings),
        penalty=any(each.repetition_penalty != 1.0 for each in samplings),
        ranked=any(each.top_k > 0 or each.top_p < 1.0 for each in samplings),
        min_p=any(each.min_p > 0.0 for each in samplings),
    )


class DeviceSampler:
    """Draws a character of each stream; the ways of sampling can change, what is `Asked` cannot.

    Args:
        asked: which computations there are.
        streams, vocab_size: S and V.
        device: where the logits are.
    """

    def __init__(self, asked: Asked, streams: int, vocab_size: int, device: torch.device) -> None:
        self._asked = asked
        self._vocab_size = vocab_size

        def column(dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.zeros(streams, 1, dtype=dtype, device=device)

        self._temperature, self._penalty = column(), column()
        self._min_p, self._top_p = column(), column()
        self._top_k = column(torch.long)
        self._likeliest = torch.zeros(streams, dtype=torch.bool, device=device)
        # The oldest first. V stands for no character.
        self._recent = torch.zeros(streams, REPETITION_SPAN, dtype=torch.long, device=device)
        self._ranks = torch.arange(vocab_size, device=device)

    def start(self, samplings: Sequence[SamplingConfig], recent: Sequence[Sequence[int]]) -> None:
        """Begin with texts that are sampled in these ways.

        Args:
            samplings: how, of each stream.
            recent: of each stream the characters that a penalty is about, the last one last.
        """

        def fill(column: Tensor, numbers: Sequence[float]) -> None:
            column.copy_(torch.tensor(numbers, dtype=column.dtype).view(column.shape))

        fill(self._temperature, [max(each.temperature, 1e-9) for each in samplings])
        fill(self._likeliest, [each.temperature == 0.0 for each in samplings])
        fill(self._penalty, [each.repetition_penalty for each in samplings])
        fill(self._min_p, [each.min_p for each in samplings])
        # The share that is reached before a character is one by rounding, at most.
        fill(self._top_p, [each.top_p if each.top_p < 1.0 else 2.0 for each in samplings])
        top = self._vocab_size
        fill(self._top_k, [min(each.top_k, top) if each.top_k > 0 else top for each in samplings])
        rows = [list(each)[-REPETITION_SPAN:] for each in recent]
        padded = [[top] * (REPETITION_SPAN - len(row)) + row for row in rows]
        self._recent.copy_(torch.tensor(padded))

    def choose(self, logits: Tensor, draws: Tensor) -> Tensor:
        """Return the next token of each stream, (S,), and remember it for the penalty.

        Of logits that are not finite it is any token, but one of the vocabulary.

        Args:
            logits: (S, V), float32.
            draws: uniform in [0, 1), at most `HIGHEST_DRAW`: (S,), float64.
        """
        asked = self._asked
        numbers = logits.double() if asked.penalty else logits
        if asked.penalty:
            used = torch.zeros(
                logits.size(0), self._vocab_size + 1, dtype=torch.bool, device=logits.device
            )
            used = used.scatter_(1, self._recent, True)[:, :-1]
            lowered = torch.where(numbers > 0, numbers / self._penalty, numbers * self._penalty)
            numbers = torch.where(used, lowered, numbers)
        tokens = self._sample(numbers, draws) if asked.sampled else numbers.argmax(-1)
        if asked.sampled and asked.likeliest:
            tokens = torch.where(self._likeliest, numbers.argmax(-1), tokens)
        if asked.penalty:
            moved = torch.cat([self._recent[:, 1:], tokens[:, None]], dim=1)
            self._recent.copy_(moved)
        return tokens

    def _sample(self, numbers: Tensor, draws: Tensor) -> Tensor:
        probabilities = torch.softmax(numbers / self._temperature, dim=-1)
        if self._asked.min_p:
            least = self._min_p * probabilities.amax(-1, keepdim=True)
            probabilities = probabilities * (probabilities >= least)
        if self._asked.ranked:
            probabilities = self._keep_likeliest(probabilities)
        cumulative = probabilities.cumsum(-1)
        passed = cumulative[:, :-1] <= draws[:, None] * cumulative[:, -1:]
        # Whatever the sums are, no index is outside: a card would not recover from that.
        return passed.sum(-1)

    def _keep_likeliest(self, probabilities: Tensor) -> Tensor:
        """Keep the `top_k` likeliest, and of these the fewest that reach share `top_p`."""
        ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
        ordered = ordered * (self._ranks < self._top_k)
        cumulative = ordered.cumsum(-1)
        kept = cumulative - ordered < self._top_p * cumulative[:, -1:]
        return torch.zeros_like(ordered).scatter_(-1, order, ordered * kept)
