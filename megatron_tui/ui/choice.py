"""A field with a few fixed values, in one line: left and right go through them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual.app import RenderResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget


class Choice(Widget, can_focus=True):
    """One of a few values."""

    BINDINGS: ClassVar[list[BindingType]] = [
        # Priority, so that the value is taken before the next key acts on it.
        Binding("left", "step(-1)", show=False, priority=True),
        Binding("right,space", "step(1)", show=False, priority=True),
    ]

    DEFAULT_CSS = """
    Choice {
        height: 1;
        width: 20;
        background: $panel;
        padding: 0 1;
        &:focus { background: $field-background; }
    }
    """

    value: reactive[str] = reactive("")
    """What is chosen."""

    @dataclass
    class Changed(Message):
        """Another value was chosen by hand."""

        choice: Choice
        value: str

        @property
        def control(self) -> Choice:
            """The sender."""
            return self.choice

    def __init__(self, values: Sequence[str], value: str, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._values = list(values)
        self.set_reactive(Choice.value, value)

    def render(self) -> RenderResult:
        """Return the value between its arrows."""
        space = max(0, self.size.width - 2)
        arrow = "$primary" if self.has_focus else "$quiet"
        return Content.assemble(
            ("◂", arrow), (self.value[:space].center(space), "bold"), ("▸", arrow)
        )

    def set_values(self, values: Sequence[str]) -> None:
        """Offer other values; the present one stays until it is changed."""
        self._values = list(values)

    def action_step(self, direction: int) -> None:
        """Choose the value beside the present one."""
        if not self._values:
            return
        index = self._values.index(self.value) if self.value in self._values else -direction
        self.value = self._values[(index + direction) % len(self._values)]
        self.post_message(self.Changed(self, self.value))
