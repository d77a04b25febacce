"""The colours of the workbench: one dark and one light theme, and the names charts draw with.

Every hue keeps its distance from the background when a terminal has 256 or 16 colours only, and no
meaning rests on hue alone: states carry a word or a sign beside their colour.
"""

from __future__ import annotations

from textual.theme import Theme

DARK = Theme(
    name="megatron",
    dark=True,
    background="#0e1319",
    surface="#141b23",
    panel="#1d2731",
    foreground="#d5dde5",
    primary="#4fc3b1",
    secondary="#9aa7f0",
    accent="#f0b45b",
    success="#86cf7d",
    warning="#f0b45b",
    error="#f2777a",
    variables={
        "chart-raw": "#356f6b",
        "chart-train": "#4fc3b1",
        "chart-validation": "#f0b45b",
        "chart-memory": "#9aa7f0",
        "chart-axis": "#66758a",
        "quiet": "#8493a5",
        "line": "#33414f",
        "scrollbar": "#33414f",
        "scrollbar-hover": "#8493a5",
        "scrollbar-active": "#4fc3b1",
        "scrollbar-background": "#0e1319",
        "scrollbar-background-hover": "#0e1319",
        "scrollbar-background-active": "#0e1319",
        "scrollbar-corner-color": "#0e1319",
        "border": "#4fc3b1",
        "input-cursor-background": "#4fc3b1",
        "input-selection-background": "#4fc3b1 30%",
        "footer-background": "#141b23",
    },
)

LIGHT = Theme(
    name="megatron-light",
    dark=False,
    background="#f6f4ee",
    surface="#fdfcf9",
    panel="#e9e5da",
    foreground="#26303a",
    primary="#00796b",
    secondary="#4a55b5",
    accent="#a85600",
    success="#2e7d32",
    warning="#a85600",
    error="#b3261e",
    variables={
        "chart-raw": "#8fbdb6",
        "chart-train": "#00796b",
        "chart-validation": "#a85600",
        "chart-memory": "#4a55b5",
        "chart-axis": "#7b8794",
        "quiet": "#65727f",
        "line": "#c9c3b4",
        "scrollbar": "#c9c3b4",
        "scrollbar-hover": "#65727f",
        "scrollbar-active": "#00796b",
        "scrollbar-background": "#f6f4ee",
        "scrollbar-background-hover": "#f6f4ee",
        "scrollbar-background-active": "#f6f4ee",
        "scrollbar-corner-color": "#f6f4ee",
        "border": "#00796b",
        "input-cursor-background": "#00796b",
        "input-selection-background": "#00796b 25%",
        "footer-background": "#e9e5da",
    },
)

FALLBACKS = {
    "chart-raw": "ansi_cyan",
    "chart-train": "ansi_bright_cyan",
    "chart-validation": "ansi_yellow",
    "chart-memory": "ansi_blue",
    "chart-axis": "ansi_bright_black",
    "quiet": "ansi_bright_black",
    "line": "ansi_bright_black",
}
"""Our own variables for themes that do not know them."""
