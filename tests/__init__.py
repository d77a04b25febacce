"""Tests mirror the packages: model, tui, and snapshots of the screens."""
