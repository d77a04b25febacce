"""Another user of this machine finds nothing of a run on several devices to talk to."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import stat
import struct
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import psutil

from megatron_model.distributed.board import Board
from megatron_model.events.schema import RunFinished
from megatron_model.run.folder import RunFolder
from tests.model.distributed.ranks import start_ranks
from tests.survival.processes import PATIENCE, make_run, reports, wait_for_reports


@contextlib.contextmanager
def launched(folder: RunFolder, cwd: Path) -> Iterator[psutil.Process]:
    """Two processes that train the run, started as a user would."""
    program = Path(sysconfig.get_path("scripts")) / "megatron-model"
    with subprocess.Popen(
        [program, "train", "--resume", str(folder.path), "--devices", "2"],
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(cwd), "GLOO_SOCKET_IFNAME": ""},
    ) as launcher:
        try:
            wait_for_reports(folder, 2)
            yield psutil.Process(launcher.pid)
        finally:
            launcher.terminate()
            launcher.wait(60)


def answers_as_store(host: str, port: int, seconds: float = 0.5) -> bool:
    """Whether this is one of torch's stores, which takes whatever from whomever."""
    with socket.create_connection((host, port)) as stranger:
        stranger.settimeout(seconds)
        # Its greeting, and a question that is answered with the same number.
        stranger.sendall(struct.pack("=BI", 0, 0x3C85F7CE) + struct.pack("=BI", 13, 7))
        try:
            return stranger.recv(4) == struct.pack("=I", 7)
        except OSError:
            return False


def test_only_this_users_own_can_reach_the_ranks(
    runs_dir: Path, corpus: Path, tmp_path: Path
) -> None:
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    assert answers_as_store("127.0.0.1", store.port, PATIENCE)
    here = tmp_path / "here"
    here.mkdir()
    # What Python would find first if the ranks looked into the folder they were started in.
    for name in ("torch", "msgspec", "megatron_model"):
        (here / f"{name}.py").write_text("open('ran', 'w').close()\n")
    folder = make_run(runs_dir, corpus)
    with launched(folder, here) as launcher:
        ranks = launcher.children(recursive=True)
        assert len(ranks) == 2
        addresses = [
            connection.laddr
            for process in [launcher, *ranks]
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert all(ipaddress.ip_address(address.ip).is_loopback for address in addresses)
        for address in addresses:
            assert not answers_as_store(address.ip, address.port)
            with socket.create_connection((address.ip, address.port)) as stranger:
                stranger.sendall(bytes(range(256)))
        meeting = here.glob("megatron-*")
        assert [stat.S_IMODE(path.stat().st_mode) for path in meeting] == [0o700]
        assert not (here / "ran").exists()
        before = reports(folder)
        wait_for_reports(folder)
        assert reports(folder) > before
    # They ended in order, and left nothing.
    assert isinstance(folder.read_events()[0][-1], RunFinished)
    assert not list(here.glob("megatron-*"))


def tell_texts(folder: str) -> None:
    """Exchange texts, and fail where one of them is unpickled."""
    import pickle

    import torch.distributed as dist

    from megatron_model.distributed.team import Team

    def refuse(*_arguments: object, **_options: object) -> None:
        raise AssertionError("what came from another process was unpickled")

    pickle.loads = pickle.load = refuse  # type: ignore[assignment]
    dist.distributed_c10d._unpickler = refuse  # type: ignore[assignment]
    team = Team()
    told = team.gather_texts(["", "naïve — 文字\n" * 1000][team.rank])
    Path(folder, str(team.rank)).write_text("|".join(told), encoding="utf-8")
    team.end()
    os._exit(0)


def test_texts_of_the_ranks_are_no_pickles(tmp_path: Path) -> None:
    with start_ranks(2, tell_texts, str(tmp_path)) as ranks:
        assert ranks.wait() == [0, 0]
    expected = "|" + "naïve — 文字\n" * 1000
    assert [(tmp_path / str(rank)).read_text(encoding="utf-8") for rank in (0, 1)] == [expected] * 2


def test_the_first_word_on_a_board_stands(tmp_path: Path) -> None:
    one, other = Board(tmp_path), Board(tmp_path)
    assert not one.check(["found"])
    one.compare_set("found", "", "first")
    other.compare_set("found", "", "second")
    assert other.check(["found"])
    assert one.get("found") == other.get("found") == b"first"
    one.set("pulse/0", "1")
    one.set("pulse/0", "2")
    assert other.multi_get(["pulse/0", "pulse/1"]) == [b"2", b""]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["found", "pulse-0"]
    assert stat.S_IMODE((tmp_path / "found").stat().st_mode) == 0o600
