"""What each letter means on every screen, and the few places where it cannot mean that.

A letter that acts in two places does the same kind of thing in both. A new key takes the letter of
its meaning; a test compares this table with what the screens declare.
"""

from __future__ import annotations

LETTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "B": ("a batch: several at once", ("setup.batch", "generation.several")),
    "C": ("change it", ("training.change", "microscope.change")),
    "D": ("delete", ("runs.delete", "queue.remove", "microscope.drop")),
    "E": ("encoding", ("setup.encoding", "xray.encoding")),
    "F": ("fork: a new run from these weights", ("training.fork", "runs.learn_on")),
    "G": (
        "to the end",
        ("heat.end", "stream.end", "settings.last", "table.end", "text.end"),
    ),
    "N": ("the one before", ("duel.previous", "surprise.previous")),
    "R": ("name it", ("setup.name", "runs.rename")),
    "S": (
        "stop",
        ("training.stop", "samples.stop", "duel.stop", "filling.stop", "lines.stop",
         "microscope.stop"),
    ),
    "W": ("weights", ("setup.weights", "generation.model")),
    "X": ("X-ray", ("setup.xray", "xray.close")),
    "c": ("compare", ("training.compare", "compare.close", "runs.compare", "comparison.close")),
    "d": ("detach, or take back", ("training.detach", "training.take_back")),
    "g": (
        "let the model write, or see what it wrote",
        ("training.sample", "runs.write", "generation.continue", "surprise.written", "duel.texts",
         "microscope.continue"),
    ),
    "h": ("left", ("heat.left", "settings.less", "chart.left", "compare.left", "comparison.left")),
    "i": ("type a text", ("generation.prompt", "surprise.paste")),
    "j": (
        "down",
        ("heat.down", "pick.down", "settings.down", "runs.down", "table.down", "text.down",
         "help.down", "comparison.down"),
    ),
    "k": (
        "up",
        ("heat.up", "pick.up", "settings.up", "runs.up", "table.up", "text.up", "help.up",
         "comparison.up"),
    ),
    "l": (
        "right", ("heat.right", "settings.more", "chart.right", "compare.right", "comparison.right")
    ),
    "L": ("logarithmic loss", ("chart.log", "comparison.log")),
    "m": ("measurement", ("setup.measure", "chart.metric")),
    "n": ("the next one", ("duel.next", "surprise.next", "training.alert", "microscope.one")),
    "o": ("order", ("runs.order", "xray.sort")),
    "p": ("presets", ("setup.presets", "generation.presets")),
    "q": (
        "leave what is in front",
        ("app.quit_q", "view.close", "pick.cancel", "xray.close", "help.close", "compare.close",
         "comparison.close"),
    ),
    "r": (
        "go on training, or write again",
        ("training.resume", "pick.resume", "runs.resume", "generation.again", "duel.again",
         "samples.again", "filling.again", "queue.retry"),
    ),
    "s": ("start", ("setup.start", "runs.again")),
    "t": ("temperature", ("generation.cooler",)),
    "u": ("undo", ("setup.undo", "runs.undo")),
    "v": (
        "the text of the corpus", ("setup.preview", "surprise.validation", "duel.difference")
    ),
    "w": (
        "write to a file",
        ("training.save", "setup.save", "generation.save", "compare.write", "comparison.write",
         "flipbook.export", "runs.export"),
    ),
    "x": ("axis", ("chart.axis", "comparison.axis")),
    "y": ("copy", ("setup.copy", "generation.copy", "lines.copy")),
}  # fmt: skip
"""By letter: what it means, and the actions that have it. A letter of one action needs no entry."""

EXCEPTIONS = {
    "generation.fewer": "k is how everybody writes the setting; no list is there to move in",
    "generation.more": "the larger of k",
    "generation.attention": "its own first letter; nothing waits in a queue there",
    "generation.lines": "each line; a prompt has no encoding",
    "generation.flipbook": "its own first letter; a text cannot be forked",
    "generation.fill": "its own first letter; no run lends its settings there",
    "generation.microscope": "a closer look; a text has no axis",
    "microscope.pace": "no corpus is there",
    "generation.narrower": "o and O stand beside t, k: the settings of sampling in one row",
    "generation.wider": "the larger of o",
    "browser.folder": "only in the file browser, where f is the folder",
    "runs.note": "a list of runs has no next one but by j",
    "runs.tag": "no temperature is there",
    "runs.archived": "the other list of runs",
    "runs.turn": "the order the other way round, of o",
    "compare.view": "the comparison in full",
}
"""Actions whose letter means something else elsewhere, and why."""

QUESTIONS = ("dialog.", "stop.", "leave.")
"""The answers to a question have its own first letters: nothing else acts while it stands."""


def meaning_of(letter: str, identifier: str) -> str:
    """Return what a letter means in an action: its own word where the table has none."""
    meaning, actions = LETTERS.get(letter, ("", ()))
    return meaning if identifier in actions else identifier


def markdown() -> str:
    """Return the table as Markdown."""
    lines = ["| key | what it means everywhere |", "| --- | --- |"]
    order = sorted(LETTERS, key=lambda letter: (letter.lower(), letter.isupper()))
    lines += [f"| `{letter}` | {LETTERS[letter][0]} |" for letter in order]
    return "\n".join(lines) + "\n"
