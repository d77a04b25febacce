"""Every environment variable that is read or set: its name, what it does, and for whom.

The documentation and ``megatron-model --help`` take them from here; a test holds the code to it.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct


class Variable(Struct, frozen=True):
    """One environment variable.

    `kind` says whose it is: a person's to set (``ours``), a convention of others that is kept
    (``others``), or one that the program hands to processes it starts, or its tests need
    (``internal``). `name` may be several that belong together, separated by commas.
    """

    name: str
    help: str
    default: str = ""
    kind: Literal["ours", "others", "internal"] = "ours"


VARIABLES: tuple[Variable, ...] = (
    Variable("MEGATRON_RUNS_DIR", "where runs are kept", "`runs` in the user's data folder"),
    Variable(
        "MEGATRON_NOTIFY",
        "program to start when a run ends; it gets the run's name, how it ended, and a sentence",
        "`on-run-end` in the configuration folder, if that can be executed",
    ),
    Variable(
        "MEGATRON_TOKEN",
        "what a client of `megatron-model serve` has to know",
        "one that is made for the occasion",
    ),
    Variable(
        "MEGATRON_ASCII",
        "1 draws the workbench with plain characters, 0 with braille and lines",
        "what the terminal's type and encoding allow",
    ),
    Variable(
        "MEGATRON_STALL_SECONDS",
        "how long a terminal may take no output before the run goes on without it",
        "60",
    ),
    Variable("TMUX", "set by tmux: what is copied goes into its buffer too", kind="others"),
    Variable("NO_COLOR", "any value: the workbench is drawn without colours", kind="others"),
    Variable(
        "VISUAL, EDITOR",
        "editor in which ctrl+g opens the prompt, and `n` the note of a run",
        "the first of nano, vi, vim, emacs",
        "others",
    ),
    Variable(
        "TERM",
        "kind of terminal; linux, dumb and vt get plain characters, and dumb no line that is "
        "written over",
        kind="others",
    ),
    Variable("COLUMNS", "width of helps and tables", "that of the terminal", "others"),
    Variable("SSH_CONNECTION", "set by ssh: the redraw rate follows the connection", kind="others"),
    Variable(
        "XDG_DATA_HOME, XDG_CONFIG_HOME, XDG_STATE_HOME, XDG_CACHE_HOME",
        "where the user's folders are on Linux",
        "`~/.local/share`, `~/.config`, `~/.local/state`, `~/.cache`",
        "others",
    ),
    Variable(
        "TEXTUAL_ANIMATIONS, TEXTUAL_SMOOTH_SCROLL",
        "Textual's own; other values than these bring its animations back",
        "none, 0",
        "others",
    ),
    Variable("CUDA_VISIBLE_DEVICES", "which NVIDIA cards torch sees", kind="others"),
    Variable(
        "CUBLAS_WORKSPACE_CONFIG",
        "memory of cuBLAS; training.deterministic needs a fixed one",
        "`:4096:8` where that setting is on",
        "others",
    ),
    Variable(
        "OMP_NUM_THREADS",
        "CPU threads of each process of a run on several devices",
        "the cores divided by the processes",
        "others",
    ),
    Variable(
        "GOMP_SPINCOUNT, KMP_BLOCKTIME",
        "how long idle threads of OpenMP keep a core busy",
        "set so that they hardly do",
        "others",
    ),
    Variable(
        "GLOO_SOCKET_IFNAME",
        "network interface over which processes on CPUs exchange",
        "lo on one machine",
        "others",
    ),
    Variable(
        "RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT, "
        "TORCHELASTIC_RESTART_COUNT, TORCHELASTIC_USE_AGENT_STORE",
        "set by torchrun: which of the processes of a run this one is",
        kind="others",
    ),
    Variable(
        "MEGATRON_LINE_MARK",
        "marks the lines that are for people among those of torchrun",
        kind="internal",
    ),
    Variable(
        "MEGATRON_MEETING",
        "folder in which the processes of a run on several devices meet",
        kind="internal",
    ),
    Variable(
        "MEGATRON_LAUNCHER",
        "process that started them; they end when it is gone",
        kind="internal",
    ),
    Variable("MEGATRON_TORTURE", "1 has the tests kill more trainers", kind="internal"),
)
