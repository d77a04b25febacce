"""Styles that were parsed once with the same colours are not parsed again.

Textual parses every sheet anew when a theme is set and whenever a screen or dialog with a sheet of
its own is first opened. That is most of what opening one costs, and it shares a core with the
training.
"""

from __future__ import annotations

from textual.css.model import RuleSet
from textual.css.stylesheet import Stylesheet
from textual.css.types import CSSLocation

THEMES = 4
"""Sets of colours whose parsed rules are kept."""

_Source = tuple[str, CSSLocation, bool, int, str]
_Rules = dict[_Source, list[RuleSet]]

_parsed: dict[frozenset[tuple[str, str]], _Rules] = {}
"""Rules by the variables they were parsed with, those used last at the end."""


class RememberingStylesheet(Stylesheet):
    """A stylesheet that knows what any other one of this process has parsed."""

    def __init__(self, *, variables: dict[str, str] | None = None) -> None:
        super().__init__(variables=variables)
        self._known = _parsed_with(self._variables)

    def set_variables(self, variables: dict[str, str]) -> None:
        """Take other colours."""
        if variables != self._variables:
            super().set_variables(variables)
            self._known = _parsed_with(variables)

    def reparse(self) -> None:
        """Make the rules anew; those there are stay if a sheet has an error."""
        self.parse()

    def _parse_rules(
        self,
        css: str,
        read_from: CSSLocation,
        is_default_rules: bool = False,
        tie_breaker: int = 0,
        scope: str = "",
    ) -> list[RuleSet]:
        source = (css, read_from, is_default_rules, tie_breaker, scope)
        rules = self._known.get(source)
        if rules is None:
            rules = super()._parse_rules(*source)
            self._known[source] = rules
        return rules


def _parsed_with(variables: dict[str, str]) -> _Rules:
    colours = frozenset(variables.items())
    rules = _parsed.pop(colours, {})
    _parsed[colours] = rules
    while len(_parsed) > THEMES:
        del _parsed[next(iter(_parsed))]
    return rules
