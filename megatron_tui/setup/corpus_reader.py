"""Read the chosen corpus in the background, in the way that the settings ask for."""

from __future__ import annotations

from collections.abc import Callable

from megatron_tui.setup.corpus_facts import CorpusFacts, inspect_corpus
from megatron_tui.setup.plan import SetupPlan
from megatron_tui.ui.background import InBackground


class CorpusReader:
    """Puts what it finds out about the corpus into the plan; what is out of date is dropped.

    Args:
        plan: says what to read, and is told what was found.
        in_background: where the reading happens.
        changed: called after each thing that was found.
        finished: called when the whole text was read, or could not be.
    """

    def __init__(
        self,
        plan: SetupPlan,
        in_background: InBackground,
        *,
        changed: Callable[[], object],
        finished: Callable[[], object],
    ) -> None:
        self._plan = plan
        self._in_background = in_background
        self._changed, self._finished = changed, finished
        self._asked = CorpusFacts("")
        """The corpus that was asked for last and how it is read, with nothing known of it."""

    def choose(self, spec: str) -> None:
        """Take another corpus, or the same one again if it could not be read."""
        # The list announces its choice again when it is refilled: what is known stays known.
        if spec != self._plan.facts.spec or self._plan.facts.error:
            self._asked = CorpusFacts("")
            self._plan.facts = CorpusFacts(spec)
            self._changed()

    def read(self) -> None:
        """Begin to read, unless this corpus was asked for in this way before."""
        draft, data = self._plan.draft, self._plan.checked.config.data
        spec = self._plan.facts.spec
        asked = CorpusFacts(spec, draft.text("data.encoding"), data.errors, data.reading)
        if not spec or asked == self._asked:
            return
        self._asked = self._plan.facts = asked
        self._in_background(
            lambda: inspect_corpus(asked.spec, asked.encoding, asked.errors, asked.rules),
            self._take,
            self._finished,
            group="corpus",
            exclusive=True,
        )

    def _take(self, facts: CorpusFacts) -> None:
        if facts.unread() == self._asked:
            self._plan.facts = facts
            self._changed()
