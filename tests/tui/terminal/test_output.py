"""What a terminal without UTF-8 gets, cell for cell."""

from __future__ import annotations

import codecs
import subprocess
import sys
from pathlib import Path

from megatron_tui.terminal.ascii import as_ascii, lookalike


def test_glyphs_have_lookalikes_of_the_same_width() -> None:
    codecs.register_error("lookalike", lookalike)
    assert "╭─ loss ─╮│⡀⠱⣿│● ✓…日".encode("ascii", "lookalike") == b"+- loss -+|.**|* +~??"
    assert "naïve ●".encode("latin-1", "lookalike") == "naïve *".encode("latin-1")


def test_the_filter_and_the_encoding_give_the_same_characters() -> None:
    codecs.register_error("lookalike", lookalike)
    drawn = "".join(chr(code) for code in range(0x2190, 0x2900)) + "◂●…–×日é"
    assert drawn.encode("ascii", "lookalike").decode() == as_ascii(drawn)
    assert as_ascii("⠀⡀⡄⣿") == " .:*"


def test_must_training_logs_are_never_painted_on_the_screen(tmp_path: Path) -> None:
    """What a library writes past Python goes to the log; the screen gets what is drawn, counted."""
    log = tmp_path / "state" / "workbench.log"
    program = (
        "import os, sys, warnings, logging\n"
        "from pathlib import Path\n"
        "from megatron_tui.terminal.output import isolate_native_output\n"
        "sent = []\n"
        f"isolate_native_output(Path({str(log)!r}), lambda count, seconds: sent.append(count))\n"
        "os.write(1, b'CUDA warning\\n'); os.write(2, b'OMP: info\\n')\n"
        "os.system('echo from a child')\n"
        "print('a print', flush=True)\n"
        "sys.__stderr__.write('drawn\\n')\n"
        "sys.__stderr__.write(str(sum(sent)) + '\\n')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "drawn\n6\n"
    written = log.read_text()
    for words in ("CUDA warning", "OMP: info", "from a child", "a print"):
        assert words in written
