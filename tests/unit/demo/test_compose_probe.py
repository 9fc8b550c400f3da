"""The program that looks at a container's network from inside."""

import json
import socket
import subprocess
import sys
from pathlib import Path

from demo.compose_probe import as_argument, parse_connections

# Of a little-endian machine: 10.77.1.11:8443 listens, is connected from 10.77.1.10:50000, and had one that is over.
TABLE = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0B014D0A:20FB 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 1 1 0
   1: 0B014D0A:20FB 0A014D0A:C350 01 00000000:00000000 00:00000000 00000000  1000        0 2 1 0
   2: 0B014D0A:20FB 0A014D0A:C351 06 00000000:00000000 00:00000000 00000000     0        0 0 3 0
"""


def test_parse_connections_keeps_living_connections_only() -> None:
    assert sys.byteorder == "little", "the table is of such a machine"
    assert parse_connections(TABLE) == {("10.77.1.11", 8443, "10.77.1.10", 50000)}


def test_probe_run_without_the_project_sees_a_connection(tmp_path: Path) -> None:
    program = as_argument(("compose_probe",), "compose_probe.main(sys.argv[1])")
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as ours,
    ):
        with subprocess.Popen(
            [sys.executable, "-IS", "-c", program, "connections"],
            cwd=tmp_path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as probe:
            assert probe.stdout is not None
            assert probe.stdout.readline() == "watching\n"
            output, _ = probe.communicate("", timeout=20)
        assert probe.returncode == 0
        assert [*ours.getsockname(), *ours.getpeername()] in json.loads(output)


def test_as_argument_with_two_modules_lets_the_second_import_the_first(tmp_path: Path) -> None:
    program = as_argument(
        ("inotify", "heartbeat_observer"),
        "print(heartbeat_observer.FileWatch is sys.modules['demo.inotify'].FileWatch)",
    )
    words = [sys.executable, "-IS", "-c", program]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout == "True\n"
