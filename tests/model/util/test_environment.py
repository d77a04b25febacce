"""The table of environment variables, as the command line's help shows it."""

from __future__ import annotations

from megatron_model.cli.parser import build_parser
from megatron_model.util.environment import VARIABLES


def test_the_help_names_the_variables_a_person_may_set_and_no_others() -> None:
    text = build_parser().format_help()
    for variable in VARIABLES:
        assert (variable.name in text) == (variable.kind == "ours"), variable.name
