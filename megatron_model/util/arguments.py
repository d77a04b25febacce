"""Read the arguments of a command: a complaint is one line on stderr, and exit status 2."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn

from megatron_model.util.errors import bounded
from megatron_model.util.streams import say
from megatron_model.util.text import safe

EXIT_WRONG_REQUEST = 2


class ArgumentParser(argparse.ArgumentParser):
    """A parser whose complaint is one line, harmless to a terminal."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the arguments, and end."""
        say(f"{self.prog}: {safe(bounded(message), one_line=True)} (see {self.prog} --help)")
        sys.exit(EXIT_WRONG_REQUEST)
