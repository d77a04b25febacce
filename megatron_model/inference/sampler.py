"""Writing text: from logits to the next character, one at a time.

Every draw turns one uniform random number into a character by inverting the cumulative
distribution, so that a seed gives the same draws on every device. The filters below are functions
of one array; what they drop becomes zero, and they do not renormalise.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeAlias

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from megatron_model.config.fields import SamplingConfig
from megatron_model.data.tokenizer import CharTokenizer
from megatron_model.inference.decoder import Decoder, Logits
from megatron_model.inference.device_sampler import can_draw
from megatron_model.inference.graph_writer import Request, Written, write_on_card
from megatron_model.inference.precision import Precision
from megatron_model.util.errors import RequestError

Numbers: TypeAlias = NDArray[np.float64]
"""One number for each character of the vocabulary: (V,)."""

_DRAWS_AT_ONCE = 256


def penalise_repetition(logits: Numbers, recent: Iterable[int], penalty: float) -> Numbers:
    """Make the characters in `recent` less likely (Keskar et al. 2019, CTRL); 1 changes nothing."""
    if penalty == 1.0:
        return logits
    used = list(set(recent))
    result: Numbers = logits.copy()
    result[used] = np.where(logits[used] > 0, logits[used] / penalty, logits[used] * penalty)
    return result


def to_probabilities(logits: Numbers, temperature: float = 1.0) -> Numbers:
    """Return the softmax of the logits divided by a temperature above 0."""
    # So small a temperature that the division might overflow leaves only the likeliest anyway.
    weights = np.exp((logits - logits.max()) / max(temperature, 1e-9))
    probabilities: Numbers = weights / weights.sum()
    return probabilities


def keep_top_k(probabilities: Numbers, k: int) -> Numbers:
    """Keep the `k` likeliest, of equals the first; 0 keeps all."""
    if k <= 0 or k >= probabilities.size:
        return probabilities
    kept = np.argsort(-probabilities, kind="stable")[:k]
    result = np.zeros_like(probabilities)
    result[kept] = probabilities[kept]
    return result


def keep_top_p(probabilities: Numbers, p: float) -> Numbers:
    """Keep the fewest likeliest that together reach share `p` (Holtzman et al. 2019, nucleus)."""
    if p >= 1.0:
        return probabilities
    order = np.argsort(-probabilities, kind="stable")
    ordered = probabilities[order]
    kept = order[ordered.cumsum() - ordered < p * ordered.sum()]
    result = np.zeros_like(probabilities)
    result[kept] = probabilities[kept]
    return result


def keep_min_p(probabilities: Numbers, share: float) -> Numbers:
    """Keep what is at least `share` times as likely as the likeliest (Nguyen et al. 2024)."""
    if share <= 0.0:
        return probabilities
    result: Numbers = np.where(probabilities >= share * probabilities.max(), probabilities, 0.0)
    return result


def keep_typical(probabilities: Numbers, p: float) -> Numbers:
    """Keep the fewest that surprise most nearly as much as is to be expected, and reach share `p`.

    What is expected is the entropy (Meister et al. 2023, locally typical sampling).
    """
    if p >= 1.0:
        return probabilities
    shares = probabilities / probabilities.sum()
    # What is dropped already is infinitely far from anything.
    surprise = -np.log(shares, out=np.full_like(shares, -np.inf), where=shares > 0)
    entropy = float((shares[shares > 0] * surprise[shares > 0]).sum())
    order = np.argsort(np.abs(surprise - entropy), kind="stable")
    ordered = shares[order]
    kept = order[ordered.cumsum() - ordered < p]
    result = np.zeros_like(probabilities)
    result[kept] = probabilities[kept]
    return result


def rule_out(logits: Numbers, tokens: Sequence[int]) -> Numbers:
    """Make some tokens impossible."""
    if not tokens:
        return logits
    result: Numbers = logits.copy()
    result[list(tokens)] = -np.inf
    return result


def ruled_out(tokenizer: CharTokenizer, sampling: SamplingConfig) -> list[int]:
    """Return the tokens that `forbidden` and `only` rule out.

    Raises:
        RequestError: nothing is left to draw.
    """
    tokens = [
        token
        for token, character in enumerate(tokenizer.vocabulary)
        if character in sampling.forbidden or (sampling.only and character not in sampling.only)
    ]
    if len(tokens) == tokenizer.vocab_size:
        raise RequestError(
            "forbidden and only leave none of the model's characters to draw; allow some."
        )
    return tokens


def invert(probabilities: Numbers, draw: float) -> int:
    """Return the index at which the cumulative sum passes share `draw`, in [0, 1), of the whole."""
    cumulative = probabilities.cumsum()
    index = int(cumulative.searchsorted(draw * cumulative[-1], side="right"))
    # Rounding may put the end of the sum behind the last character that is possible.
    return index if index < cumulative.size else int(probabilities.nonzero()[0][-1])


def choose(
    logits: Sequence[float] | NDArray[Any],
    sampling: SamplingConfig,
    draw: float,
    recent: Iterable[int] = (),
    out: Sequence[int] = (),
) -> int:
    """Return the token that `draw`, uniform in [0, 1), picks from logits (V,) under `sampling`.

    Args:
        logits: what the model says.
        sampling: how to draw from it.
        draw: the randomness; not used without a temperature.
        recent: the tokens that a repetition penalty is about.
        out: the tokens that are ruled out.
    """
    numbers = _penalised(logits, sampling, recent, out)
    if sampling.temperature == 0.0:
        return int(numbers.argmax())
    return invert(_filtered(to_probabilities(numbers, sampling.temperature), sampling), draw)


def shares_of(
    logits: Sequence[float] | NDArray[Any],
    sampling: SamplingConfig,
    recent: Iterable[int] = (),
    out: Sequence[int] = (),
) -> Numbers:
    """Return the share of draws in which `choose` picks each token."""
    numbers = _penalised(logits, sampling, recent, out)
    if sampling.temperature == 0.0:
        likeliest = np.zeros_like(numbers)
        likeliest[numbers.argmax()] = 1.0
        return likeliest
    kept = _filtered(to_probabilities(numbers, sampling.temperature), sampling)
    shares: Numbers = kept / kept.sum()
    return shares


def _penalised(
    logits: Sequence[float] | NDArray[Any],
    sampling: SamplingConfig,
    recent: Iterable[int],
    out: Sequence[int],
) -> Numbers:
    numbers = np.asarray(logits, np.float64)
    return rule_out(penalise_repetition(numbers, recent, sampling.repetition_penalty), out)


def _filtered(probabilities: Numbers, sampling: SamplingConfig) -> Numbers:
    probabilities = keep_top_k(probabilities, sampling.top_k)
    probabilities = keep_typical(probabilities, sampling.typical_p)
    probabilities = keep_min_p(probabilities, sampling.min_p)
    return keep_top_p(probabilities, sampling.top_p)


def uniform_draws(seed: int) -> Iterator[float]:
    """Yield the endless random numbers of a seed, uniform in [0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.rand(_DRAWS_AT_ONCE, generator=generator, dtype=torch.float64).tolist()


def check_finite(numbers: float | NDArray[np.float32]) -> None:
    """Refuse what a model computed where it is NaN or infinity.

    Raises:
        RequestError: there is NaN or infinity among the numbers.
    """
    if not np.isfinite(numbers).all():
        raise RequestError(
            "What the model says is NaN or infinity: its weights are damaged, or too large to "
            "compute with."
        )


class Stream:
    """One text being written: its draws, its recent characters, and when it is over.

    Args:
        sampling: how it is written.
        prompt: the tokens before it.
        stop: the tokens of the text it ends with; none if it goes on to its full length.
        written: what it has written before it was stopped; it goes on as if it had not been.
        out: the tokens that are ruled out.
    """

    def __init__(
        self,
        sampling: SamplingConfig,
        prompt: Sequence[int] = (),
        stop: Sequence[int] = (),
        written: Sequence[int] = (),
        out: Sequence[int] = (),
    ) -> None:
        self.sampling = sampling
        self._out = out
        self._draws = islice(uniform_draws(sampling.seed), len(written), None)
        self._recent = deque([*prompt, *written], maxlen=sampling.repetition_window)
        self._stop = list(stop)
        self._tail: deque[int] = deque(written, maxlen=max(1, len(self._stop)))
        self._left = sampling.max_new_tokens - len(written)

    @property
    def over(self) -> bool:
        """Whether its length or its stop text is reached."""
        return self._left <= 0 or (bool(self._stop) and list(self._tail) == self._stop)

    def pick(self, logits: NDArray[np.float32]) -> int:
        """Return the next token, chosen from logits (V,)."""
        token = choose(logits, self.sampling, next(self._draws), self._recent, self._out)
        self.write(token)
        return token

    def shares(self, logits: NDArray[np.float32]) -> Numbers:
        """Return how often `pick` would return each token, from logits (V,)."""
        return shares_of(logits, self.sampling, self._recent, self._out)

    def write(self, token: int) -> None:
        """Take the next token, wherever it was chosen."""
        self._recent.append(token)
        self._tail.append(token)
        self._left -= 1


def pick_together(streams: Sequence[Stream], logits: Logits) -> list[int | None]:
    """Return the next token of each stream, None where it is over, chosen from logits (S, V).

    Each is the one that `Stream.pick` returns; what is alike for all is done at once, which is most
    of the time that drawing takes.
    """
    numbers = logits.astype(np.float64)
    for row, stream in enumerate(streams):
        penalty = stream.sampling.repetition_penalty
        if penalty != 1.0:
            numbers[row] = penalise_repetition(numbers[row], stream._recent, penalty)
        numbers[row] = rule_out(numbers[row], stream._out)
    temperatures = np.array([[max(stream.sampling.temperature, 1e-9)] for stream in streams])
    weights = np.exp((numbers - numbers.max(-1, keepdims=True)) / temperatures)
    weights /= weights.sum(-1, keepdims=True)
    for row, stream in enumerate(streams):
        weights[row] = _filtered(weights[row], stream.sampling)
    cumulative = weights.cumsum(-1)
    draws = np.array([[0.0] if stream.over else [next(stream._draws)] for stream in streams])
    passed = (cumulative <= draws * cumulative[:, -1:]).sum(-1).tolist()
    tokens: list[int | None] = []
    for row, (stream, token) in enumerate(zip(streams, passed, strict=True)):
        if stream.over:
            tokens.append(None)
            continue
        if stream.sampling.temperature == 0.0:
            token = int(numbers[row].argmax())
        elif token == numbers.shape[1]:  # rounding: see `invert`
            token = int(weights[row].nonzero()[0][-1])
        stream.write(token)
        tokens.append(token)
    return tokens


Column: TypeAlias = tuple[list[int | None], Logits]
"""A step of all streams: the token of each, None where it is over; and the logits it came from."""


def generate_columns(
    model: nn.Module,
    prompt: Sequence[int],
    streams: Sequence[Stream],
    *,
    cached: bool = True,
    precision: Precision = "auto",
    written: Sequence[int] = (),
) -> Generator[Column, None, None]:
    """Write all streams in step after the non-empty `prompt`, until the last one is over.

    The logits of a column are overwritten when the next one is pulled.

    Args:
        model: any model of this package.
        prompt: the tokens all streams go on from.
        streams: what is to be written.
        cached: False computes the whole window for every character, for comparison.
        precision: of the weights: see `Decoder`.
        written: what all of them have written already, if they go on with something.
    """
    if all(stream.over for stream in streams):
        return
    decoder = Decoder(model, len(streams), cached=cached, precision=precision)
    logits = decoder.start(prompt, written)
    while True:
        check_finite(logits)
        if len(streams) == 1:
            column: list[int | None] = [streams[0].pick(logits[0])]
        else:
            column = pick_together(streams, logits)
        yield column, logits
        if all(stream.over for stream in streams):
            return
        # What is over is read on as anything, for the others' sake.
        logits = decoder.step([token or 0 for token in column])


def generate_tokens(
    model: nn.Module,
    prompt: Sequence[int],
    streams: Sequence[Stream],
    *,
    cached: bool = True,
    precision: Precision = "auto",
    written: Sequence[int] = (),
) -> Iterator[list[int | None]]:
    """Write as `generate_columns` does, for callers that need no logits.

    On a CUDA card the characters are drawn there, some at a time, in the ways that it can draw: see
    `graph_writer`.
    """
    if all(stream.over for stream in streams):
        return
    request = Request(
        prompt,
        written,
        [stream.sampling for stream in streams],
        [list(stream._recent) for stream in streams],
        [stream._draws for stream in streams],
        max(stream._left for stream in streams),
    )
    on_card = cached and all(can_draw(stream.sampling) for stream in streams)
    parts = write_on_card(model, request, precision) if on_card else None
    if parts is not None:
        with contextlib.closing(parts):
            yield from columns_of(parts, streams)
        return
    for column, _ in generate_columns(
        model, prompt, streams, cached=cached, precision=precision, written=written
    ):
        yield column


def columns_of(parts: Iterable[Written], streams: Sequence[Stream]) -> Iterator[list[int | None]]:
    """Yield character by character what was written on a device, until the last stream is over.

    Raises:
        RequestError: a character was drawn from NaN or infinity.
    """
    for part in parts:
        for tokens, finite in zip(part.tokens.tolist(), part.finite, strict=True):
            check_finite(0.0 if finite else np.nan)
            column: list[int | None] = []
            for stream, token in zip(streams, tokens, strict=True):
                column.append(None if stream.over else token)
                if not stream.over:
                    stream.write(token)
            yield column
            if all(stream.over for stream in streams):
                return


def start_tokens(tokenizer: CharTokenizer, prompt: str) -> list[int]:
    """Return the tokens of a prompt, or what an empty one stands for.

    An empty prompt begins as if after a line break (or after the first character of the vocabulary,
    where the corpus has no line break).

    Raises:
        UnknownCharacterError: the prompt has characters outside the vocabulary.
    """
    return tokenizer.encode(prompt) or [max(0, tokenizer.vocabulary.find("\n"))]


def make_streams(
    tokenizer: CharTokenizer,
    prompt: Sequence[int],
    samplings: Iterable[SamplingConfig],
    written: Sequence[int] = (),
) -> list[Stream]:
    """Return a stream for each way of sampling.

    Raises:
        RequestError: one of them rules every character out.
    """
    streams = []
    for each in samplings:
        # What the model cannot write never comes.
        stop = [] if tokenizer.unknown(each.stop) else tokenizer.encode(each.stop)
        streams.append(Stream(each, prompt, stop, written, ruled_out(tokenizer, each)))
    return streams


def generate_batch(
    model: nn.Module,
    tokenizer: CharTokenizer,
    prompt: str,
    samplings: Sequence[SamplingConfig],
    *,
    cached: bool = True,
    precision: Precision = "auto",
    written: str = "",
) -> Iterator[list[str]]:
    """Write several texts at once; yield a character of each, the empty string where one is over.

    Each text is what `generate_stream` writes with the same way of sampling. With `written` all
    go on from there as if they had written it, and their length counts from its beginning.

    Raises:
        UnknownCharacterError: the prompt has characters outside the vocabulary.
    """
    start = start_tokens(tokenizer, prompt)
    vocabulary = tokenizer.vocabulary
    before = tokenizer.encode(written)
    streams = make_streams(tokenizer, start, samplings, before)
    for column in generate_tokens(
        model, start, streams, cached=cached, precision=precision, written=before
    ):
        yield ["" if token is None else vocabulary[token] for token in column]


def continue_lines(
    model: nn.Module, tokenizer: CharTokenizer, text: str, sampling: SamplingConfig
) -> Iterator[tuple[int, str]]:
    """Go on with each line of `text` by itself, to the end of the line that it becomes.

    Yield the number of a line and a character after it; an empty one once the line is over. Empty
    lines are left as they are.

    Raises:
        UnknownCharacterError: the text has characters outside the vocabulary.
    """
    to_its_end = msgspec.structs.replace(sampling, stop="\n")
    for number, line in enumerate(text.split("\n")):
        if line:
            for character in generate_stream(model, tokenizer, line, to_its_end):
                if character != "\n":
                    yield number, character
        yield number, ""


def several(sampling: SamplingConfig, count: int) -> list[SamplingConfig]:
    """Return `count` ways of sampling that differ in nothing but the seed, the first as it is."""
    top = 2**63
    return [
        msgspec.structs.replace(sampling, seed=(sampling.seed + index) % top)
        for index in range(count)
    ]


def generate_stream(
    model: nn.Module,
    tokenizer: CharTokenizer,
    prompt: str,
    sampling: SamplingConfig | None = None,
    *,
    cached: bool = True,
    precision: Precision = "auto",
    written: str = "",
) -> Iterator[str]:
    """Yield the characters that go on from `prompt`, one at a time; to stop is to stop pulling.

    For an empty prompt see `start_tokens`; for what was `written` before, `generate_batch`.

    Raises:
        UnknownCharacterError: the prompt has characters outside the vocabulary.
    """
    for column in generate_batch(
        model,
        tokenizer,
        prompt,
        [sampling or SamplingConfig()],
        cached=cached,
        precision=precision,
        written=written,
    ):
        yield column[0]


def generate(
    model: nn.Module,
    tokenizer: CharTokenizer,
    prompt: str,
    max_new_tokens: int = 500,
    **options: float | str,
) -> str:
    """Return `prompt` and the characters the model writes after it.

    Args:
        model: any model of this package.
        tokenizer: the vocabulary it was trained with.
        prompt: the text to go on from.
        max_new_tokens: characters to write.
        options: other fields of `SamplingConfig`, such as ``temperature=0.5``.

    Raises:
        UnknownCharacterError: the prompt has characters outside the vocabulary.
        RequestError: an option is out of range.
    """
    sampling = msgspec.structs.replace(SamplingConfig(), max_new_tokens=max_new_tokens, **options)
    return prompt + "".join(generate_stream(model, tokenizer, prompt, sampling))
