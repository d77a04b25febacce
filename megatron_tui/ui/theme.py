"""The colours of the workbench: one dark and one light theme, for every number of colours.

A terminal with 256 or 16 colours shows the nearest it has, which would make one colour of two; for
those each theme has a palette of its own, made of their colours. No meaning rests on hue alone:
states carry a word or a sign beside their colour.
"""

from __future__ import annotations

from dataclasses import dataclass

from textual.theme import Theme


@dataclass(frozen=True)
class Palette:
    """The colours that a theme is made of."""

    background: str
    surface: str
    panel: str
    foreground: str
    quiet: str
    """Text that matters less."""
    line: str
    """Frames, and what is still empty of a bar: nothing to be read."""
    axis: str
    primary: str
    secondary: str
    accent: str
    success: str
    error: str
    raw: str
    """The train loss before it is smoothed, beside `primary` after that."""
    parent: str
    compared: tuple[str, str, str, str]
    """The curves of other runs."""
    focus: str
    """The frame of the panel with the focus."""
    chosen: tuple[str, str]
    """What is under the cursor where the focus is: the text and what is behind it."""
    waiting: tuple[str, str]
    """The same where the focus is not."""
    field: str
    """Behind a field that is typed into."""
    heat_ink: str = ""
    """Letters on a strong tint, where it is not `foreground`."""


TRUE_DARK = Palette(
    background="#0e1319", surface="#141b23", panel="#1d2731", foreground="#d5dde5",
    quiet="#8493a5", line="#33414f", axis="#66758a",
    primary="#4fc3b1", secondary="#9aa7f0", accent="#f0b45b", success="#86cf7d", error="#f2777a",
    raw="#356f6b", parent="#5b6a7d", compared=("#9aa7f0", "#f2777a", "#86cf7d", "#d9a0dc"),
    focus="#4fc3b1 60%", chosen=("#d5dde5", "#4fc3b1 35%"), waiting=("#d5dde5", "#4fc3b1 25%"),
    field="#4fc3b1 25%",
)  # fmt: skip

TRUE_LIGHT = Palette(
    background="#f6f4ee", surface="#fdfcf9", panel="#e9e5da", foreground="#26303a",
    quiet="#5f6c79", line="#c9c3b4", axis="#7b8794",
    primary="#00796b", secondary="#4a55b5", accent="#a85600", success="#2e7d32", error="#b3261e",
    raw="#8fbdb6", parent="#97a1ab", compared=("#4a55b5", "#b3261e", "#2e7d32", "#8e3a93"),
    focus="#00796b 60%", chosen=("#26303a", "#00796b 35%"), waiting=("#26303a", "#00796b 25%"),
    field="#00796b 25%",
)  # fmt: skip

# Steps of the cube (00 5f 87 af d7 ff) and of the ramp of greys, of which rich takes the light ones
# a step darker.
MANY_DARK = Palette(
    background="#121212", surface="#1c1c1c", panel="#262626", foreground="#dadada",
    quiet="#949494", line="#444444", axis="#767676",
    primary="#5fd7af", secondary="#87afff", accent="#ffaf5f", success="#87d787", error="#ff8787",
    raw="#008787", parent="#626262", compared=("#87afff", "#ff8787", "#87d700", "#d787d7"),
    focus="#5faf87", chosen=("#ffffff", "#005f5f"), waiting=("#dadada", "#303030"),
    field="#005f5f",
)  # fmt: skip

MANY_LIGHT = Palette(
    background="#f5f5f5", surface="#ffffff", panel="#e4e4e4", foreground="#262626",
    quiet="#626262", line="#bcbcbc", axis="#767676",
    primary="#00875f", secondary="#5f5faf", accent="#af5f00", success="#008700", error="#af0000",
    raw="#87afaf", parent="#949494", compared=("#5f5faf", "#d70000", "#008700", "#af00af"),
    focus="#5faf87", chosen=("#262626", "#87d7af"), waiting=("#262626", "#afd7af"),
    field="#afd7af",
)  # fmt: skip

# The sixteen, as rich numbers them. Nothing to be read is in the bright black, which some palettes
# make the background, nor in a yellow or green on white.
FEW_DARK = Palette(
    background="#000000", surface="#000000", panel="#000000", foreground="#ffffff",
    quiet="#aaaaaa", line="#555555", axis="#aaaaaa",
    primary="#55ffff", secondary="#5555ff", accent="#ffff55", success="#55ff55", error="#ff5555",
    raw="#00aaaa", parent="#aaaaaa", compared=("#5555ff", "#ff5555", "#55ff55", "#ff55ff"),
    focus="#55ffff", chosen=("#000000", "#00aaaa"), waiting=("#55ffff", "#000000"),
    field="#0000aa", heat_ink="#000000",
)  # fmt: skip

FEW_LIGHT = Palette(
    background="#ffffff", surface="#ffffff", panel="#ffffff", foreground="#000000",
    quiet="#555555", line="#aaaaaa", axis="#555555",
    primary="#0000aa", secondary="#aa00aa", accent="#aa0000", success="#0000aa", error="#aa0000",
    raw="#5555ff", parent="#555555", compared=("#aa00aa", "#00aaaa", "#00aa00", "#000000"),
    focus="#0000aa", chosen=("#ffffff", "#0000aa"), waiting=("#0000aa", "#ffffff"),
    field="#aaaaaa",
)  # fmt: skip

NAMES = ("megatron", "megatron-light")
_PALETTES: dict[str | None, tuple[Palette, Palette]] = {
    "256": (MANY_DARK, MANY_LIGHT),
    "standard": (FEW_DARK, FEW_LIGHT),
    "windows": (FEW_DARK, FEW_LIGHT),
}


def themes(colour_system: str | None = "truecolor") -> tuple[Theme, Theme]:
    """Return the dark and the light theme for what rich calls the terminal's colour system."""
    dark, light = _PALETTES.get(colour_system, (TRUE_DARK, TRUE_LIGHT))
    return _theme(NAMES[0], dark, dark=True), _theme(NAMES[1], light, dark=False)


def _theme(name: str, colours: Palette, *, dark: bool) -> Theme:
    return Theme(
        name=name,
        dark=dark,
        background=colours.background,
        surface=colours.surface,
        panel=colours.panel,
        foreground=colours.foreground,
        primary=colours.primary,
        secondary=colours.secondary,
        accent=colours.accent,
        success=colours.success,
        warning=colours.accent,
        error=colours.error,
        variables={
            "chart-raw": colours.raw,
            "chart-train": colours.primary,
            "chart-validation": colours.accent,
            "chart-memory": colours.secondary,
            "chart-axis": colours.axis,
            "chart-reference": colours.axis,
            "chart-cursor": colours.foreground,
            "chart-parent": colours.parent,
            **{f"chart-compare-{n}": colour for n, colour in enumerate(colours.compared, 1)},
            "quiet": colours.quiet,
            "line": colours.line,
            "focus-line": colours.focus,
            "chosen": colours.chosen[0],
            "chosen-background": colours.chosen[1],
            "waiting": colours.waiting[0],
            "waiting-background": colours.waiting[1],
            "field-background": colours.field,
            "heat-ink": colours.heat_ink or colours.foreground,
            "scrollbar": colours.line,
            "scrollbar-hover": colours.quiet,
            "scrollbar-active": colours.primary,
            "scrollbar-background": colours.background,
            "scrollbar-background-hover": colours.background,
            "scrollbar-background-active": colours.background,
            "scrollbar-corner-color": colours.background,
            "border": colours.primary,
            "input-cursor-background": colours.primary,
            "input-selection-background": colours.chosen[1],
            "footer-background": colours.surface if dark else colours.panel,
        },
    )


FALLBACKS = {
    "chart-raw": "ansi_cyan",
    "chart-train": "ansi_bright_cyan",
    "chart-validation": "ansi_yellow",
    "chart-memory": "ansi_blue",
    "chart-axis": "ansi_bright_black",
    "chart-reference": "ansi_bright_black",
    "chart-cursor": "ansi_white",
    "chart-parent": "ansi_bright_black",
    "chart-compare-1": "ansi_blue",
    "chart-compare-2": "ansi_red",
    "chart-compare-3": "ansi_green",
    "chart-compare-4": "ansi_magenta",
    "quiet": "ansi_bright_black",
    "line": "ansi_bright_black",
}
"""The colours of charts and of quiet text."""


def fallbacks(theme: Theme) -> dict[str, str]:
    """Return our own variables for a theme that does not know them."""
    text = theme.foreground or ("#ffffff" if theme.dark else "#000000")
    if not theme.primary.startswith("#"):
        text, strong, weak = "ansi_black", "ansi_bright_cyan", "ansi_cyan"
    else:
        strong, weak = f"{theme.primary} 35%", f"{theme.primary} 25%"
    return {
        **FALLBACKS,
        "focus-line": theme.primary,
        "chosen": text,
        "chosen-background": strong,
        "waiting": text,
        "waiting-background": weak,
        "field-background": weak,
        "heat-ink": theme.foreground or ("#ffffff" if theme.dark else "#000000"),
    }
