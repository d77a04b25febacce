"""`serve`: answer completions on a port of this machine, and a page to type into."""

from __future__ import annotations

import argparse
import os
import secrets

from megatron_model.cli.asked import add_model, model_asked
from megatron_model.cli.console import say
from megatron_model.config.schema import whole_number
from megatron_model.util.errors import RequestError
from megatron_model.util.text import safe

TOKEN = "MEGATRON_TOKEN"

EXAMPLES = """\
megatron-model serve first
megatron-model serve first --port 0 --latest
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    add_model(parser, latest=True)
    parser.add_argument(
        "--port", type=whole_number, default=8000, metavar="N", help="default 8000; 0: a free one"
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="where to listen (default 127.0.0.1: this machine alone)",
    )
    parser.add_argument(
        "--no-token",
        action="store_true",
        help="answer every user of this machine; else only who knows the token, which is made, or "
        "taken from MEGATRON_TOKEN",
    )


def run(options: argparse.Namespace) -> int:
    """Serve until the signal to end comes."""
    if not 0 <= options.port < 1 << 16:
        raise RequestError(f"--port is {options.port}; it must be 0 to 65535.")
    token = os.environ.get(TOKEN, "") or secrets.token_urlsafe(18)
    if not token.isascii() or not token.isprintable() or " " in token:
        raise RequestError(f"{TOKEN} must be of plain characters, without blanks.")
    model, path = model_asked(options)
    from megatron_model.run.taken_recipe import name_of
    from megatron_model.serving.completions import Completions
    from megatron_model.serving.server import Server

    name = safe(name_of(path), one_line=True)
    token = "" if options.no_token else token
    with Server(Completions(model, name), options.host, options.port, token) as server:
        say(f"{name}, step {model.step:,}, answers at {server.address}v1/completions until Ctrl+C")
        print(server.url, flush=True)
        server.serve_forever(poll_interval=0.2)
    return 0
