"""The keys of the Setup screen, each declared once: in help, key bar, palette and keys.toml.

A letter acts wherever nothing is typed; what is needed in a text field too has a control key.
"""

from __future__ import annotations

from textual.binding import Binding, BindingType


def _key(
    name: str,
    keys: str,
    action: str,
    word: str,
    tip: str,
    *,
    shown: bool = True,
    priority: bool = False,
) -> Binding:
    return Binding(
        keys,
        action,
        word,
        show=shown,
        priority=priority,
        tooltip=tip,
        id=f"setup.{name}",
    )


SETUP_KEYS: list[BindingType] = [
    _key("start", "ctrl+r,s", "start", "Start", "Start the run"),
    _key("queue", "A", "queue", "Queue", "Add the run to the queue"),
    # Priority, so that keys typed ahead find the focus where the one before put it.
    _key("next", "enter", "next", "Next", "Accept it and go to the next part", priority=True),
    _key("presets", "p", "presets", "Presets", "List the presets with their cost"),
    _key("browse", "b,ctrl+o", "browse", "Browse", "Browse for a corpus"),
    _key("preview", "v,ctrl+t", "preview", "Text", "Read the text of the corpus"),
    _key("xray", "X", "xray", "X-ray", "Look through the corpus"),
    _key("find", "slash", "find", "Find", "Find a setting"),
    _key("fix", "exclamation_mark", "fix", "Fix", "Change what the preflight objects to"),
    _key("measure", "m", "measure", "Measure", "Measure real steps, or stop measuring"),
    _key("copy", "y", "copy_command", "Copy", "Copy the command that starts this run"),
    _key("undo", "u", "undo", "Undo", "Undo the last change"),
    _key("redo", "U,ctrl+y", "redo", "Redo", "Redo the change", shown=False),
    _key("changes", "equals_sign", "changes", "Differs", "List what differs from the preset"),
    _key("device", "at", "device", "Device", "Choose the device"),
    _key("save", "ctrl+s,w", "save", "Save", "Save the settings as TOML"),
    _key("load", "ctrl+l", "load", "Load", "Load settings from TOML", shown=False),
    _key("encoding", "E", "encoding", "Encoding", "Choose the encoding of the text", shown=False),
    _key("from_run", "f", "from_run", "From run", "Take a run's settings, or resume", shown=False),
    _key("weights", "W", "weights", "Weights", "Begin with the weights of a run", shown=False),
    _key("batch", "B", "measure_batches", "Batch", "Take the fastest batch size", shown=False),
    _key("name", "R", "name", "Name", "Name the run", shown=False),
]
