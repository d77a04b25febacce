"""Which runs a person means by ``val<1.5 and corpus~shake``: a small language, and nothing is run.

A comparison is a name, one of ``< <= > >= = != ~`` and a value; ``and``, ``or``, ``not`` and
parentheses join them. Which names there are says facts.py. ``~`` asks whether a text is in another;
letters count as small ones. A value with blanks or signs in it stands in quotes.
"""

from __future__ import annotations

import operator
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn, TypeAlias, get_args

from megatron_model.config.fields import all_fields
from megatron_model.config.schema import number
from megatron_model.events.state import Status
from megatron_model.planning.device_cost import parse_amount
from megatron_model.run.facts import Kind, kind_of
from megatron_model.util.errors import RequestError, nearest
from megatron_model.util.text import safe

Look: TypeAlias = Callable[[str], Any]
"""Returns what a run has under a name, as `RunFacts.value` does."""
Query: TypeAlias = Callable[[Look], bool]
"""Whether a run is meant."""

LONGEST = 1000
DEEPEST = 50
STATUSES = (*get_args(Status), "unreadable")

_TOKEN = re.compile(
    r"""\s*(?:(?P<sign><=|>=|!=|==|[<>=~])|(?P<paren>[()])|"(?P<double>[^"]*)"|'(?P<single>[^']*)'"""
    r"""|(?P<word>[^\s()<>=!~"']+))"""
)
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": operator.eq,
}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhdw])")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_MOMENTS = {"%Y-%m-%d": 86_400.0, "%Y-%m-%dT%H:%M": 60.0, "%Y-%m-%d %H:%M": 60.0}
"""How a moment is written, and how long what is written lasts."""


def parse_query(text: str) -> Query:
    """Return which runs are meant.

    Raises:
        RequestError: the text means nothing; the place is named.
    """
    if len(text) > LONGEST:
        raise RequestError(f"The filter is longer than {LONGEST:,} characters; shorten it.")
    return _Parser(text).whole()


class _Token(NamedTuple):
    kind: str
    """sign, paren, word, quoted or end."""
    text: str
    start: int


class _Parser:
    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._next = 0
        self._depth = 0

    def whole(self) -> Query:
        found = self._either()
        if self._token.kind != "end":
            _refuse(self._token, "and, or, or the end is expected")
        return found

    @property
    def _token(self) -> _Token:
        return self._tokens[self._next]

    def _take(self) -> _Token:
        token = self._token
        self._next += token.kind != "end"
        return token

    def _took(self, word: str) -> bool:
        token = self._token
        found = token.kind in ("word", "paren") and token.text.lower() == word
        self._next += found
        return found

    def _either(self) -> Query:
        parts = [self._both()]
        while self._took("or"):
            parts.append(self._both())
        return parts[0] if len(parts) == 1 else lambda look: any(part(look) for part in parts)

    def _both(self) -> Query:
        parts = [self._one()]
        while self._took("and"):
            parts.append(self._one())
        return parts[0] if len(parts) == 1 else lambda look: all(part(look) for part in parts)

    def _one(self) -> Query:
        at = self._token
        self._depth += 1
        if self._depth > DEEPEST:
            _refuse(at, f"more than {DEEPEST} parentheses and nots in each other")
        if self._took("not"):
            inner = self._one()
            found: Query = lambda look: not inner(look)  # noqa: E731
        elif self._took("("):
            found = self._either()
            if not self._took(")"):
                _refuse(self._token, f"a ) is expected for the ( at character {at.start + 1}")
        else:
            found = self._comparison()
        self._depth -= 1
        return found

    def _comparison(self) -> Query:
        name = self._take()
        if name.kind != "word":
            _refuse(name, "the name of something is expected, such as val, corpus or model.layers")
        try:
            kind = kind_of(name.text)
        except RequestError as error:
            _refuse(name, str(error))
        sign = self._take()
        if sign.kind != "sign":
            _refuse(sign, f"a comparison is expected after {name.text}: < <= > >= = != or ~")
        value = self._take()
        if value.kind not in ("word", "quoted"):
            _refuse(value, f"a value is expected after {name.text}{sign.text}")
        return _compared(name, kind, sign, value)


def _tokens(text: str) -> list[_Token]:
    found, end = [], 0
    while text[end:].strip():
        match = _TOKEN.match(text, end)
        if match is None:
            start = end + len(text[end:]) - len(text[end:].lstrip())
            sign = text[start]
            what = "the quote has no end" if sign in "\"'" else f"{safe(sign)} means nothing here"
            _refuse(_Token("", "", start), what)
        kind = match.lastgroup or ""
        start = match.start(kind) - (kind in ("double", "single"))
        kind_shown = "quoted" if kind in ("double", "single") else kind
        found.append(_Token(kind_shown, match[kind].replace("==", "="), start))
        end = match.end()
    return [*found, _Token("end", "", len(text))]


def _compared(name: _Token, kind: Kind, sign: _Token, value: _Token) -> Query:
    if kind in ("text", "words"):
        if sign.text not in ("=", "!=", "~"):
            _refuse(sign, f"{name.text} is a text; compare it by =, != or ~")
        return _compared_text(name, sign, value)
    if sign.text == "~":
        _refuse(sign, f"{name.text} is no text; compare it by < <= > >= = or !=")
    low, high = _amounts(name, kind, value)
    return _compared_amount(name.text, sign.text, low, high)


def _compared_text(name: _Token, sign: _Token, value: _Token) -> Query:
    field = all_fields().get(name.text)
    choices = STATUSES if name.text == "status" else field.choices if field else ()
    if choices and sign.text != "~" and value.text not in choices:
        known = ", ".join(choices)
        _refuse(value, f"{name.text} is one of {known}.{nearest(value.text, choices)}")
    wanted = value.text.casefold()

    def holds(look: Look) -> bool:
        had = look(name.text)
        texts = [had or ""] if isinstance(had, str) or had is None else had
        if sign.text == "~":
            return any(wanted in text.casefold() for text in texts)
        return any(wanted == text.casefold() for text in texts) == (sign.text == "=")

    return holds


def _compared_amount(name: str, sign: str, low: float, high: float) -> Query:
    """Compare with what begins at `low` and lasts until `high`, such as a day; both may be one."""

    def holds(look: Look) -> bool:
        had: float | None = look(name)
        if had is None:
            return sign == "!="
        inside = low <= had < high if low < high else had == low
        if sign in ("=", "!="):
            return inside == (sign == "=")
        if inside:
            return sign in ("<=", ">=")
        return _COMPARE[sign](had, low)

    return holds


def _amounts(name: _Token, kind: Kind, value: _Token) -> tuple[float, float]:
    """Return where the value begins and ends.

    Raises:
        RequestError: it is none of this kind.
    """
    text = value.text
    match kind:
        case "bytes":
            try:
                found = 0.0 if text == "0" else parse_amount(text, name.text)
            except RequestError:
                _refuse(value, f"{name.text} is compared with a size, such as 500MB or 2GiB")
        case "duration":
            match = _DURATION.fullmatch(text)
            if match is None:
                _refuse(value, f"{name.text} is compared with a time such as 30m, 12h, 7d or 2w")
            found = float(match[1]) * _SECONDS[match[2]]
        case "moment":
            for pattern, lasts in _MOMENTS.items():
                try:
                    begins = time.mktime(time.strptime(text, pattern))
                except (ValueError, OverflowError):
                    continue
                return begins, begins + lasts
            _refuse(
                value,
                f"{name.text} is compared with a date such as 2026-01-31, or 2026-01-31T18:30",
            )
        case _:
            try:
                found = number(text)
            except ValueError:
                found = float("nan")
            if found != found:
                _refuse(value, f"{name.text} is compared with a number")
    return found, found


def _refuse(at: _Token, what: str) -> NoReturn:
    shown = f' ("{safe(at.text, one_line=True)}")' if at.text else ""
    end = "" if what.endswith((".", "?")) else "."
    raise RequestError(f"The filter is wrong at character {at.start + 1}{shown}: {what}{end}")
