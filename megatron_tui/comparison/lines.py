"""The letter and the colour by which runs that are laid over each other are told apart. Pure."""

from __future__ import annotations

from string import ascii_uppercase

COLOURS = ("chart-compare-1", "chart-compare-2", "chart-compare-3", "chart-compare-4")


def sign_of(place: int) -> str:
    """Return the letter of a run by its place; after the last they begin again."""
    return ascii_uppercase[place % len(ascii_uppercase)]


def colour_of(place: int) -> str:
    """Return the colour of a run by its place: 52 runs differ in colour or letter."""
    return COLOURS[place % len(COLOURS)]
