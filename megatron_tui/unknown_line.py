"""What is said below a prompt with characters that the model never saw."""

from __future__ import annotations

from textual.content import Content

from megatron_model.prompting import Policy
from megatron_model.text import safe

POLICIES: tuple[Policy, ...] = ("block", "drop", "replace")


def unknown_line(unknown: list[str], alike: dict[str, str], policy: Policy) -> Content:
    """Return what is said below a prompt with characters that the model never saw."""
    some = unknown[:8]
    names = " ".join(
        f"{_name(one)}→{_name(alike[one]) if alike[one] else 'nothing'}" if alike else _name(one)
        for one in some
    )
    more = f" and {len(unknown) - len(some)} more" if len(unknown) > len(some) else ""
    what = {
        "block": ("Never seen by the model: ", "; it is not read like this. "),
        "drop": ("Left out, for the model never saw ", ". "),
        "replace": ("Read as ", ". "),
    }[policy]
    following = POLICIES[(POLICIES.index(policy) + 1) % len(POLICIES)]
    return Content.assemble(
        (what[0], "$warning"), (names + more, "bold $warning"), (what[1], "$warning"),
        ("ctrl+d", "bold $primary"), (f" {following}s them." if following != "block"
                                      else " blocks on them.", "$quiet"),
    )  # fmt: skip


def _name(text: str) -> str:
    shown = safe(text)
    if shown == text and shown.isprintable() and shown != " ":
        return shown
    return " ".join(f"U+{ord(character):04X}" for character in text)
