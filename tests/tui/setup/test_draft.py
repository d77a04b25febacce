"""The Setup form as data: presets, edits, errors, steps."""

from __future__ import annotations

import pytest

from megatron_model.config.presets import PRESETS
from megatron_tui.ui.draft import SetupDraft, form_fields, stepped, value_text


def test_an_untouched_draft_is_the_preset() -> None:
    for name, preset in PRESETS.items():
        checked = SetupDraft(name).check()
        assert checked.valid
        assert checked.config == preset.config


def test_an_edit_changes_the_configuration() -> None:
    checked = SetupDraft("smoke").with_text("training.steps", "1,234").check()
    assert checked.valid
    assert checked.config.training.steps == 1234


def test_typing_the_presets_own_value_is_no_edit() -> None:
    draft = SetupDraft("smoke").with_text("training.steps", "7")
    assert draft.with_text("training.steps", "200").edits == {}


def test_an_error_belongs_to_its_field_and_the_rest_still_counts() -> None:
    draft = SetupDraft("smoke").with_text("training.steps", "many")
    checked = draft.with_text("training.batch_size", "8").check()
    assert list(checked.errors) == ["training.steps"]
    assert "whole number" in checked.errors["training.steps"]
    assert checked.config.training.batch_size == 8


def test_fields_wrong_together_are_said_at_the_edited_one() -> None:
    checked = SetupDraft("smoke").with_text("model.heads", "3").check()
    assert list(checked.errors) == ["model.heads"]
    assert "multiple" in checked.errors["model.heads"]


def test_a_preset_replaces_what_was_typed_but_not_the_data() -> None:
    draft = SetupDraft("smoke").with_text("training.steps", "7")
    draft = draft.with_text("data.encoding", "latin-1").with_preset("cpu")
    assert draft.edits == {"data.encoding": "latin-1"}


@pytest.mark.parametrize(
    ("key", "text", "direction", "after"),
    [
        ("model.block_size", "256", 1, "512"),
        ("model.block_size", "256", -1, "128"),
        ("training.steps", "2000", 1, "3000"),
        ("training.steps", "1000", -1, "900"),
        ("model.layers", "1", -1, "1"),
        ("model.layers", "9", 1, "10"),
        ("training.learning_rate", "0.003", 1, "0.004"),
        ("training.learning_rate", "0.001", -1, "0.0009"),
        ("model.dropout", "0", 1, "0.1"),
        ("model.dropout", "0.9", 1, "0.9"),
        ("model.architecture", "classic", 1, "modern"),
        ("model.architecture", "modern", 1, "classic"),
        ("training.steps", "many", 1, "many"),
    ],
)
def test_stepping_a_value(key: str, text: str, direction: int, after: str) -> None:
    assert stepped(form_fields()[key], text, direction) == after


def test_values_are_shown_as_they_are_typed() -> None:
    assert value_text(0.0003) == "0.0003"
    assert value_text(0.1 + 0.2) == repr(0.1 + 0.2)
    assert value_text(16) == "16"
