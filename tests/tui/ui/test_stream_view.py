"""What is written stays in view, however tall the prompt before it."""

from __future__ import annotations

import pytest
from textual.app import App, ComposeResult

from megatron_tui.ui.stream_view import StreamView

PROMPT = "\n".join(f"prompt line {number}" for number in range(40)) + "\n"


class Viewer(App[None]):
    """One view, ten rows high."""

    def __init__(self, *, follow: bool) -> None:
        super().__init__()
        self.view = StreamView(follow=follow)

    def compose(self) -> ComposeResult:
        """The view; a prompt is there before it is laid out."""
        self.view.restart(PROMPT)
        yield self.view


def shown(view: StreamView) -> str:
    return "\n".join(view.render_line(y).text.rstrip() for y in range(view.size.height))


@pytest.mark.parametrize("anew", [False, True])
async def test_text_after_a_tall_prompt_is_followed(anew: bool) -> None:
    app = Viewer(follow=True)
    async with app.run_test(size=(40, 10)) as pilot:
        if anew:
            app.view.restart(PROMPT)
        await pilot.pause()
        assert "prompt line 39" in shown(app.view)
        for number in range(30):
            app.view.append(f"written line {number}\n")
            assert f"written line {number}" in shown(app.view)
        app.view.scroll_to(y=0, animate=False, immediate=True)
        app.view.append("more\n")
        assert "prompt line 0" in shown(app.view), "who scrolled up reads there"
        app.view.scroll_end(animate=False, immediate=True)
        app.view.append("and more\n")
        assert "and more" in shown(app.view)
        app.view.restart("short\n")
        app.view.append("text")
        assert shown(app.view).startswith("short\ntext")


@pytest.mark.parametrize("anew", [False, True])
async def test_beside_others_the_beginning_of_what_is_written_is_shown(anew: bool) -> None:
    app = Viewer(follow=False)
    async with app.run_test(size=(40, 10)) as pilot:
        if anew:
            app.view.restart(PROMPT)
        await pilot.pause()
        for number in range(30):
            app.view.append(f"written line {number}\n")
        assert "prompt line 39\nwritten line 0\nwritten line 1\n" in shown(app.view)
        app.view.scroll_to(y=2, animate=False, immediate=True)
        app.view.append("more\n")
        assert shown(app.view).startswith("prompt line 2\n")
        await pilot.resize_terminal(30, 10)
        await pilot.pause()
        assert shown(app.view).startswith("prompt line 2\n")
        app.view.restart("short\n")
        for number in range(30):
            app.view.append(f"written line {number}\n")
        assert shown(app.view).startswith("short\nwritten line 0\n")
        await pilot.resize_terminal(40, 6)
        app.view.restart(PROMPT)
        app.view.append("written " * 60)
        await pilot.resize_terminal(40, 12)
        await pilot.pause()
        assert "prompt line 39\nwritten written" in shown(app.view)
