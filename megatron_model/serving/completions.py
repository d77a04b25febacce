"""What a client may ask for, in the words of OpenAI's completions, and the text that answers it.

A token is a character here.
"""

from __future__ import annotations

import secrets
import threading
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from megatron_model.analysis.insight import CharacterScore, generate_scored
from megatron_model.config.fields import SamplingConfig
from megatron_model.inference.sampler import generate_stream
from megatron_model.run.checkpoint import LoadedModel
from megatron_model.util.errors import RequestError
from megatron_model.util.text import with_line_feeds

MOST_CHARACTERS = 100_000
MOST_TEXTS = 64
"""Texts that one request may ask for."""
MOST_WAITING = 32
"""Texts that may wait for their turn; a later one is told to come again."""
TURN = 32
"""Characters that a text is written on before the next one has its turn."""

_Count = Annotated[int, msgspec.Meta(ge=1, le=MOST_CHARACTERS)]
_Texts = Annotated[int, msgspec.Meta(ge=1, le=MOST_TEXTS)]
_Stops = Annotated[list[str], msgspec.Meta(max_length=16)]
_Zero = Annotated[float, msgspec.Meta(ge=0, le=0)]


class Asked(msgspec.Struct, kw_only=True):
    """The body of a request; what is not here is passed over, as OpenAI's clients send more."""

    prompt: str | Annotated[list[str], msgspec.Meta(min_length=1, max_length=MOST_TEXTS)] = ""
    model: str = ""
    max_tokens: _Count | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, msgspec.Meta(ge=0)] = 0
    min_p: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, msgspec.Meta(ge=1, le=10)] = 1.0
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | None = None
    stop: str | _Stops | None = None
    n: _Texts | None = None
    stream: bool | None = None
    logprobs: Annotated[int, msgspec.Meta(ge=0, le=5)] | None = None
    echo: bool | None = None
    drop_unknown: bool = False
    # What no model here can do: given as nothing, it does no harm.
    suffix: Literal[""] | None = None
    presence_penalty: _Zero | None = None
    frequency_penalty: _Zero | None = None
    logit_bias: Annotated[dict[str, float], msgspec.Meta(max_length=0)] | None = None

    @property
    def prompts(self) -> list[str]:
        """The prompts, one or more."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


def read_request(body: bytes) -> Asked:
    """Return what is asked.

    Raises:
        RequestError: it is no JSON, or a field has no such value; the field is named.
    """
    try:
        asked = msgspec.json.decode(body, type=Asked)
    except msgspec.ValidationError as error:
        raise RequestError(f"{error}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise RequestError("The body is not JSON.") from None
    if asked.echo and asked.logprobs is not None:
        raise RequestError("echo with logprobs is not there; leave one of them out.")
    if len(asked.prompts) * (asked.n or 1) > MOST_TEXTS:
        raise RequestError(f"More than {MOST_TEXTS} texts are asked for at once.")
    return asked


class Piece(NamedTuple):
    """A part of one of the texts."""

    number: int
    """Which of them."""
    text: str
    scores: list[CharacterScore]
    """Of its characters, where they were asked for."""
    finish: Literal["", "stop", "length"]
    """Why the text ends with it, if it does."""


class BusyError(Exception):
    """Too many texts wait already."""


class Turns:
    """Whose turn it is to compute: one at a time, in the order in which they came."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[threading.Event] = deque()

    @contextmanager
    def taken(self, *, first: bool) -> Iterator[None]:
        """Wait for a turn, and have it until the block ends.

        Args:
            first: of a text: it is refused where too many wait.

        Raises:
            BusyError: they do.
        """
        mine = threading.Event()
        with self._lock:
            if first and len(self._waiting) > MOST_WAITING:
                raise BusyError
            self._waiting.append(mine)
            if self._waiting[0] is mine:
                mine.set()
        try:
            mine.wait()
            yield
        finally:
            with self._lock:
                self._waiting.remove(mine)
                if self._waiting:
                    self._waiting[0].set()


class Completions:
    """Texts of one model, written in turns for all who ask.

    Args:
        model: the model.
        name: what it is called.
    """

    def __init__(self, model: LoadedModel, name: str) -> None:
        self.model = model
        self.name = name
        self._turns = Turns()

    def write(self, asked: Asked) -> Generator[Piece, None, None]:
        """Yield the texts in parts, one text after the other; to stop is to stop pulling.

        Raises:
            RequestError: a prompt has characters that the model never saw.
            BusyError: too many texts wait.
        """
        prompts = [self._prompt(text, asked.drop_unknown) for text in asked.prompts]
        seed = secrets.randbelow(2**32) if asked.seed is None else asked.seed
        index = 0
        for prompt in prompts:
            for number in range(asked.n or 1):
                yield from self._text(asked, prompt, index, seed + number)
                index += 1

    def _prompt(self, text: str, drop_unknown: bool) -> str:
        prompt = with_line_feeds(text)
        if drop_unknown:
            return self.model.tokenizer.drop_unknown(prompt)
        self.model.tokenizer.encode(prompt)
        return prompt

    def _text(self, asked: Asked, prompt: str, index: int, seed: int) -> Iterator[Piece]:
        """Yield one text, a turn at a time."""
        sampling = SamplingConfig(
            max_new_tokens=asked.max_tokens or 16,
            temperature=1.0 if asked.temperature is None else asked.temperature,
            top_k=asked.top_k,
            top_p=max(0.01, 1.0 if asked.top_p is None else asked.top_p),
            min_p=asked.min_p,
            repetition_penalty=asked.repetition_penalty,
            seed=seed % 2**63,
        )
        stops = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
        ending = _Ending([with_line_feeds(stop) for stop in stops if stop])
        if asked.echo:
            yield Piece(index, prompt, [], "")
        with closing(self._characters(asked, prompt, sampling)) as characters:
            first = True
            while True:
                taken: list[tuple[str, CharacterScore | None]] = []
                with self._turns.taken(first=first):
                    for found in characters:
                        taken.append(found)
                        if ending.read(found[0]) or len(taken) == TURN:
                            break
                first = False
                over = not taken or ending.reached
                text, count = ending.take(over=over)
                scores = [score for _, score in ending.given(taken, count) if score is not None]
                if text or scores or over:
                    finish: Literal["", "stop", "length"] = ""
                    if over:
                        finish = "stop" if ending.reached else "length"
                    yield Piece(index, text, scores, finish)
                if over:
                    return

    def _characters(
        self, asked: Asked, prompt: str, sampling: SamplingConfig
    ) -> Generator[tuple[str, CharacterScore | None], None, None]:
        model, tokenizer = self.model.model, self.model.tokenizer
        if asked.logprobs is None:
            for character in generate_stream(model, tokenizer, prompt, sampling):
                yield character, None
            return
        for (score,) in generate_scored(
            model, tokenizer, prompt, [sampling], candidates=asked.logprobs
        ):
            if score is not None:
                yield score.character, score


class _Ending:
    """What of a text may be given away while one of some stops may still come."""

    def __init__(self, stops: list[str]) -> None:
        self._stops = stops
        self._held = ""
        self._scores: list[tuple[str, CharacterScore | None]] = []
        self.reached = False

    def read(self, character: str) -> bool:
        """Take in a character; return whether a stop is reached."""
        self._held += character
        found = [self._held.find(stop) for stop in self._stops]
        places = [place for place in found if place >= 0]
        if places:
            self._held = self._held[: min(places)]
            self.reached = True
        return self.reached

    def take(self, *, over: bool) -> tuple[str, int]:
        """Return what no stop can begin in any more, and its length; all of it at the end."""
        keep = 0
        if not over:
            for stop in self._stops:
                for length in range(min(len(stop) - 1, len(self._held)), keep, -1):
                    if self._held.endswith(stop[:length]):
                        keep = length
                        break
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text, len(text)

    def given(
        self, taken: list[tuple[str, CharacterScore | None]], count: int
    ) -> list[tuple[str, CharacterScore | None]]:
        """Return the scores of the `count` characters that were given away."""
        self._scores += taken
        given, self._scores = self._scores[:count], self._scores[count:]
        return given


def choice(piece: Piece, asked: Asked, offset: int) -> dict[str, Any]:
    """Return a part of a text in OpenAI's form; `offset` characters of it came before."""
    logprobs = None
    if asked.logprobs is not None:
        logprobs = {
            "tokens": [score.character for score in piece.scores],
            "token_logprobs": [round(score.log_probability, 6) for score in piece.scores],
            "top_logprobs": [
                {character: round(value, 6) for character, value in score.candidates}
                for score in piece.scores
            ],
            "text_offset": [offset + place for place in range(len(piece.scores))],
        }
    return {
        "index": piece.number,
        "text": piece.text,
        "logprobs": logprobs,
        "finish_reason": piece.finish or None,
    }
