"""The keys of the Generation screen; a letter acts wherever nothing is typed."""

from __future__ import annotations

from textual.binding import Binding, BindingType


def _key(
    name: str,
    keys: str,
    action: str,
    word: str,
    tip: str,
    *,
    shown: bool = False,
    priority: bool = False,
) -> Binding:
    return Binding(
        keys, action, word, show=shown, priority=priority, tooltip=tip, id=f"generation.{name}"
    )


GENERATION_KEYS: list[BindingType] = [
    # Priority while a text is being written: it must stop wherever the focus is.
    _key("stop", "escape,ctrl+c", "stop", "Stop", "Stop writing", shown=True, priority=True),
    _key("unknown", "ctrl+d", "unknown", "Unknown", "What to do with characters that the model "
         "never saw: block, drop or replace", shown=True, priority=True),
    _key("leave", "escape", "leave", "Keys", "Leave the prompt for the text, where letters act",
         shown=True),
    _key("prompt", "i", "prompt", "Prompt", "Type a prompt", shown=True),
    _key("again", "r", "again", "Again", "Write once more from the same prompt, with the next "
         "seed unless it is locked", shown=True),
    _key("continue", "a", "continue", "Go on", "Go on with the text", shown=True),
    _key("surprise", "H", "surprise", "Surprise", "See what surprised the model, character by "
         "character", shown=True),
    _key("attention", "A", "attention", "Attention", "See where the model looks", shown=True),
    _key("duel", "D", "duel", "Duel", "Let two models write side by side", shown=True),
    _key("several", "S", "several", "Several", "Write several texts at once", shown=True),
    _key("ladder", "L", "ladder", "Ladder", "The same prompt at rising temperatures", shown=True),
    _key("model", "m", "model", "Weights", "Choose among all checkpoints", shown=True),
    _key("copy", "y", "copy", "Copy", "Copy the text", shown=True),
    _key("save", "w", "save", "Save", "Save the text with all it takes to write it again",
         shown=True),
    _key("presets", "p", "presets", "Presets", "Choose a way of sampling", shown=True),
    _key("search", "ctrl+r", "search", "History", "Search the prompts of the past", shown=True),
    _key("editor", "ctrl+g", "editor", "Editor", "Edit the prompt in your own editor",
         shown=True),
    _key("pace", "v", "pace", "Pace", "As fast as it goes, or as fast as one reads"),
    _key("cooler", "t", "nudge('temperature', -1)", "Temperature", "Lower the temperature"),
    _key("hotter", "T", "nudge('temperature', 1)", "Temperature", "Raise the temperature"),
    _key("fewer", "k", "nudge('top_k', -1)", "Top k", "Draw from fewer of the likeliest"),
    _key("more", "K", "nudge('top_k', 1)", "Top k", "Draw from more of the likeliest"),
    _key("narrower", "o", "nudge('top_p', -1)", "Top p", "Draw from a smaller share"),
    _key("wider", "O", "nudge('top_p', 1)", "Top p", "Draw from a larger share"),
    _key("greedy", "g", "greedy", "Greedy", "Always take the likeliest, or draw again"),
    _key("seed", "z,ctrl+n", "new_seed", "New seed", "Another seed, another text"),
    _key("lock", "Z", "lock", "Lock seed", "Keep the seed from text to text, or let it go on"),
]  # fmt: skip
