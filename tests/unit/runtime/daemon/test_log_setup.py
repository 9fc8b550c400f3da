"""Logs as a daemon writes them, read from its stderr."""

import json
import subprocess
import sys

_SCRIPT = """
import logging, sys
import structlog
from runtime.daemon.log_setup import setup_logging
from runtime.rpc.operation_id import use_operation_id
setup_logging("hostd", "esx02", json={json})
use_operation_id("op-1")
with structlog.contextvars.bound_contextvars(migration_id=7):
    structlog.get_logger().info("phase_begin", zeta=1, alpha=2.5)
structlog.get_logger().debug("not_shown")
logging.getLogger("some.library").info("not shown")
logging.getLogger("some.library").warning("odd: %s", "thing")
try:
    raise ValueError("inside")
except ValueError:
    structlog.get_logger().exception("it_failed")
"""


def _lines(*, as_json: bool) -> list[str]:
    command = [sys.executable, "-c", _SCRIPT.replace("{json}", str(as_json))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_log_as_json_has_one_object_a_line_with_stable_keys() -> None:
    begin, library, failed = (json.loads(line) for line in _lines(as_json=True))
    assert list(begin) == [
        "timestamp",
        "level",
        "event",
        "daemon",
        "host",
        "operation_id",
        "migration_id",
        "zeta",
        "alpha",
    ]
    assert begin["timestamp"].endswith("Z")
    assert (begin["event"], begin["daemon"], begin["host"], begin["migration_id"]) == (
        "phase_begin",
        "hostd",
        "esx02",
        7,
    )
    assert (library["event"], library["level"], library["daemon"]) == ("odd: thing", "warning", "hostd")
    assert list(failed)[-1] == "exception"
    assert "ValueError: inside" in failed["exception"]


def test_log_for_people_without_a_terminal_has_no_colours() -> None:
    lines = _lines(as_json=False)
    assert "\x1b" not in "".join(lines)
    assert "phase_begin" in lines[0]
    assert "migration_id=7" in lines[0]
    assert any("ValueError: inside" in line for line in lines)
