"""What the model can read of a prompt, and what is done with characters it has never seen."""

from __future__ import annotations

from collections.abc import Callable

from textual.content import Content

from megatron_model.inference.prompt import Policy, fit_prompt, replacements
from megatron_model.util.text import safe
from megatron_tui.generation.characters import code_points
from megatron_tui.services.model_cache import Tokenizer
from megatron_tui.services.preferences import Preferences

POLICIES: tuple[Policy, ...] = ("block", "drop", "replace")
PREFERENCE = "generation.unknown"
NAMED = 8
"""Unknown characters that are named, of more of them the first ones."""


class PromptReader:
    """Reads prompts under the policy a person chose for characters outside the vocabulary."""

    def __init__(
        self, preferences: Preferences, find_tokenizer: Callable[[], Tokenizer | None]
    ) -> None:
        """`find_tokenizer` returns that of the loaded model; None while there is none."""
        self._preferences = preferences
        self._find_tokenizer = find_tokenizer

    @property
    def policy(self) -> Policy:
        """What happens to characters that the model has never seen."""
        kept = self._preferences.get(PREFERENCE, "block")
        return next((policy for policy in POLICIES if policy == kept), "block")

    def choose_next_policy(self) -> None:
        """Go on to the next policy, and remember it."""
        self._preferences.set(PREFERENCE, _following(self.policy))

    @property
    def find_unknown(self) -> Callable[[str], list[str]] | None:
        """Finds the unknown characters of a text, once a model is loaded."""
        tokenizer = self._find_tokenizer()
        return tokenizer.unknown if tokenizer is not None else None

    def unknown(self, text: str) -> list[str]:
        """Return the characters of `text` that the model has never seen."""
        tokenizer = self._find_tokenizer()
        return tokenizer.unknown(text) if tokenizer is not None else []

    def readable(self, text: str) -> str:
        """Return `text` as the model is to read it; under "block", as it is."""
        tokenizer = self._find_tokenizer()
        return text if tokenizer is None else fit_prompt(tokenizer, text, self.policy)

    def describe_unknown(self, text: str) -> Content:
        """Return what is said below a prompt with unknown characters; else nothing."""
        tokenizer = self._find_tokenizer()
        unknown = self.unknown(text)
        if tokenizer is None or not unknown:
            return Content("")
        policy = self.policy
        alike = replacements(tokenizer, text) if policy == "replace" else {}
        names = " ".join(
            f"{_visible(one)}→{_visible(alike[one]) or 'nothing'}" if alike else _visible(one)
            for one in unknown[:NAMED]
        )
        more = f" and {len(unknown) - NAMED} more" if len(unknown) > NAMED else ""
        before, after = {
            "block": ("The model has never seen ", " and cannot read this prompt. "),
            "drop": ("Left out, because the model has never seen them: ", ". "),
            "replace": ("Replaced: ", ". "),
        }[policy]
        following = {"block": "refuses", "drop": "drops", "replace": "replaces"}[_following(policy)]
        return Content.assemble(
            (before, "$warning"), (names + more, "bold $warning"), (after, "$warning"),
            ("ctrl+d", "bold $primary"), (f" {following} them.", "$quiet"),
        )  # fmt: skip


def _following(policy: Policy) -> Policy:
    return POLICIES[(POLICIES.index(policy) + 1) % len(POLICIES)]


def _visible(text: str) -> str:
    shown = safe(text)
    return shown if shown == text and shown.isprintable() and shown != " " else code_points(text)
