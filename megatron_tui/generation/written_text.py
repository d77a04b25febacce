"""A text that a model wrote, with all it takes to write it again; saved under that as a header."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from megatron_model.config.fields import SamplingConfig
from megatron_model.config.schema import fields_of
from megatron_model.util.errors import RequestError
from megatron_model.util.text import plural, safe
from megatron_model.util.user_folders import expanded
from megatron_tui.services.model_cache import Live, Weights
from megatron_tui.ui.draft import value_text

RULE = "# " + "-" * 70
"""The last line of the header; the text begins after it."""


@dataclass
class WrittenText:
    """What was asked and what came of it."""

    weights: Weights
    run: str
    which: str
    """The weights in words, such as "best, step 400"."""
    sampling: SamplingConfig
    prompt: str = ""
    _pieces: list[str] = field(default_factory=list)
    length: int = 0
    """Characters written after the prompt."""

    def append(self, piece: str) -> None:
        """Add what was written."""
        self._pieces.append(piece)
        self.length += len(piece)

    @property
    def written(self) -> str:
        """What stands after the prompt."""
        if len(self._pieces) > 1:
            self._pieces = ["".join(self._pieces)]
        return self._pieces[0] if self._pieces else ""

    @property
    def text(self) -> str:
        """Prompt and all."""
        return self.prompt + self.written

    @property
    def provenance(self) -> str:
        """What wrote it, in a line: run, weights, seed, and the settings that are not as usual."""
        words = [f"{self.run}, {self.which}", f"seed {self.sampling.seed}"]
        for each in fields_of(SamplingConfig):
            value = getattr(self.sampling, each.name)
            usual = value == each.default and each.name != "temperature"
            if not usual and each.name not in ("seed", "max_new_tokens"):
                shown = repr(value) if each.kind is str else value_text(value)
                words.append(f"{each.name.replace('_', ' ')} {shown}")
        return safe(" · ".join(words), one_line=True)

    def command(self) -> str:
        """Return the command that writes the text again; empty where there is none."""
        if isinstance(self.weights, Live):
            return ""
        words = ["megatron-model", "sample", str(self.weights.resolve())]
        options = {"prompt": self.prompt, "max_new_tokens": str(self.length)}
        for each in fields_of(SamplingConfig):
            value = getattr(self.sampling, each.name)
            if each.name != "max_new_tokens" and value != each.default or each.name == "seed":
                options[each.name] = value_text(value)
        for name, value in options.items():
            # In one word with its option: a value may begin with a dash.
            words.append(f"--{name.replace('_', '-')}={value}")
        return " ".join(_for_shell(word) for word in words)

    def header(self) -> str:
        """Return the lines that say how the text was written, and how to write it again."""
        command = self.command()
        words = [
            f"{each.name.replace('_', ' ')} {value_text(getattr(self.sampling, each.name))}"
            for each in fields_of(SamplingConfig)
            if each.name != "max_new_tokens" and each.kind is not str
        ]
        for name, value in (
            ("stop text", self.sampling.stop),
            ("forbidden", self.sampling.forbidden),
            ("only", self.sampling.only),
        ):
            if value:
                words.append(f"{name} {value!r}")
        lines = [
            f"written by the run {self.run}, {self.which}",
            f"{plural(self.length, 'character')} after a prompt of {len(self.prompt):,}",
            safe(", ".join(words), one_line=True),
            f"again: {command}"
            if command
            else "the weights were those of a run in training, and are not kept",
        ]
        return "\n".join(f"# {line}" for line in lines) + f"\n{RULE}\n"

    def save(self, path: Path, *, over: bool = False) -> None:
        """Write header and text into a file.

        Raises:
            RequestError: it is there already and not to be written over, or cannot be written.
        """
        try:
            with path.open("w" if over else "x", encoding="utf-8", newline="") as file:
                file.write(self.header() + self.text + "\n")
        except FileExistsError:
            raise RequestError(
                f"{path} already exists; press enter again to overwrite it, or type another name."
            ) from None
        except OSError as error:
            raise RequestError(f"Cannot write {path}: {error.strerror}.") from None

    def save_as(self, typed: str, over: bool) -> str:
        """Save under a name that a person typed; return why that cannot be, else nothing."""
        path = expanded(typed.strip())
        if not typed.strip() or os.path.isdir(path):
            return "Give the name of a file."
        try:
            self.save(path, over=over)
        except RequestError as error:
            return str(error)
        return ""

    @property
    def file_name(self) -> str:
        """A name to save it under."""
        step = "-".join(self.which.replace(",", "").split())
        return f"{self.run}-{step}-seed-{self.sampling.seed}.txt"


def _for_shell(word: str) -> str:
    """Return a word as bash, zsh and ksh read it; in one line, and harmless to show."""
    if word.isprintable():
        return shlex.quote(word)
    escaped = "".join(
        character
        if character.isprintable() and character not in "'\\"
        else {"\n": "\\n", "\t": "\\t", "'": "\\'", "\\": "\\\\"}.get(character, _code(character))
        for character in word
    )
    return f"$'{escaped}'"


def _code(character: str) -> str:
    number = ord(character)
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
