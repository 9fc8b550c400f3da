"""`vpx` as a process of its own: start, signals, pipes, completion."""

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from demo.cluster_layout import PROJECT
from proto.vim.v1 import task_pb2
from tests.framework.fake_vpxd import World, migration_script, task

_VPX = (sys.executable, "-m", "vpxd.cli")


def _environment(config: Path | None, **more: str) -> dict[str, str]:
    base = {"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT), "HOME": "/nonexistent"}
    return {**base, **({"VPX_CONFIG": str(config)} if config else {}), **more}


def _run(config: Path | None, *words: str, **more: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*_VPX, *words],
        env=_environment(config, **more),
        cwd="/",
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_help_imports_neither_grpc_nor_rich_nor_cryptography() -> None:
    script = (
        "import sys, vpxd.cli.app; print(*[m for m in ('grpc', 'rich', 'cryptography') if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", script],
        env=_environment(None),
        cwd="/",
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert found.stdout.strip() == ""


def test_help_tells_the_exit_statuses() -> None:
    told = _run(None, "--help")
    assert told.returncode == 0
    assert "130 interrupted" in " ".join(told.stdout.split())


def test_command_finds_vpxd_by_the_variable_from_any_folder(config: Path) -> None:
    told = _run(config, "vm", "list", "-o", "json")
    assert (told.returncode, told.stderr) == (0, "")


def test_ctrl_c_in_a_watch_stops_watching_and_says_how_to_go_on(config: Path, world: World) -> None:
    world.scripts["MigrateVm"] = [task(cancelable=True, migration=migration_script()[0].migration)]
    world.hold = True
    with subprocess.Popen(
        [*_VPX, "vm", "migrate", "web01", "--watch"],
        env=_environment(config),
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert first.startswith("prepare")
    assert process.returncode == 130
    assert "Stopped watching; task-1 (migrate) goes on." in err
    assert "vpx task cancel task-1" in err
    assert "Traceback" not in err + out
    assert not [name for name, _ in world.requests if name == "CancelTask"]


def test_reader_that_leaves_early_is_no_error(config: Path, world: World) -> None:
    world.console = [b"x" * 60_000 + b"\n"] * 40
    command = f"{sys.executable} -m vpxd.cli vm console web01 | head -c 10; echo ${{PIPESTATUS[0]}}"
    told = subprocess.run(
        ["bash", "-c", command],
        env=_environment(config),
        cwd="/",
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert told.stdout == "xxxxxxxxxx0\n"
    assert told.stderr == ""


def test_watch_outlives_a_stream_that_breaks(config: Path, world: World) -> None:
    world.scripts["PowerOnVm"] = [task(), task()]  # the stream ends before the task does
    with subprocess.Popen(
        [*_VPX, "vm", "on", "db01"],
        env=_environment(config),
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 20
        while sum(name == "WatchTask" for name, _ in world.requests) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        world.tasks["task-1"][-1].state = task_pb2.TASK_STATE_SUCCESS
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, "db01 is powered on.\n"), err


def _complete(config: Path | None, line: str) -> list[str]:
    told = _run(
        config, COMP_WORDS=line, COMP_CWORD=str(len(line.split(" ")) - 1), _VPX_COMPLETE="complete_bash"
    )
    assert told.stderr == ""
    return told.stdout.split()


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("vpx vm show w", ["web01"]),
        ("vpx vm migrate web01 --host e", ["esx01", "esx02", "esx03"]),
        ("vpx host show esx02", ["esx02"]),
        ("vpx vm create x --datastore s", ["shared"]),
        ("vpx vm mi", ["migrate"]),
    ],
)
def test_completion_asks_vpxd_for_names(config: Path, line: str, names: list[str]) -> None:
    assert _complete(config, line) == names


def test_completion_without_vpxd_is_silent(tmp_path: Path, config: Path) -> None:
    config.write_text('{"server": "127.0.0.1:1"}')
    assert _complete(config, "vpx vm show w") == []
    assert _complete(tmp_path / "none.json", "vpx vm show w") == []


def test_live_view_on_a_terminal_draws_bars_and_leaves_the_tables(config: Path, world: World) -> None:
    world.scripts["MigrateVm"] = migration_script()
    world.step_s = 0.05
    leader, follower = os.openpty()
    with subprocess.Popen(
        [*_VPX, "vm", "migrate", "web01", "--host", "esx02", "--watch"],
        env=_environment(config, TERM="xterm-256color", COLUMNS="110", LINES="50"),
        cwd="/",
        stdin=follower,
        stdout=follower,
        stderr=follower,
    ) as process:
        os.close(follower)
        text = bytearray()
        while select.select([leader], [], [], 20)[0]:
            try:
                data = os.read(leader, 65536)
            except OSError:  # EIO: the other side is closed
                break
            text += data
    os.close(leader)
    screen = text.decode("utf-8", "replace")
    assert process.returncode == 0
    for words in ("pass 0", "pages remain", "━", "✓", "Passes over the memory", "device state"):
        assert words in screen
