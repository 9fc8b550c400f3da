"""Who may import whom: daemons meet only in proto and runtime, pure modules touch nothing."""

import pytest

from tests.style.tree import DAEMONS, Source, sources

# What a module that calls itself pure may not import: I/O, clocks, logging, anything asynchronous.
IMPURE = {
    "asyncio", "grpc", "logging", "os", "random", "secrets", "shutil", "signal", "socket", "sqlite3", "sqlalchemy",
    "structlog", "subprocess", "tempfile", "threading", "time", "uvloop", "io", "mmap", "fcntl", "select",
}  # fmt: skip
# os.fsencode, os.WIFSIGNALED and the names of signals compute, they touch nothing.
ALLOWED_IN_PURE = {"vmx/guest/command_line.py": {"os"}, "vmx/guest/exit_status.py": {"os", "signal"}}


def pure_sources() -> list[Source]:
    return [source for source in sources() if "Pure: no I/O" in source.docstring]


@pytest.mark.parametrize("daemon", DAEMONS)
def test_daemons_never_import_each_other(daemon: str) -> None:
    others = set(DAEMONS) - {daemon}
    checked = [source for source in sources() if source.package == daemon]
    assert checked
    for source in checked:
        foreign = {name for name in source.imports() if name.split(".")[0] in others | {"tests", "demo"}}
        assert not foreign, f"{source.path} imports {foreign}"


def test_runtime_and_proto_import_no_daemon() -> None:
    for source in sources():
        if source.package in {"runtime", "proto"}:
            foreign = {name for name in source.imports() if name.split(".")[0] in {*DAEMONS, "tests", "demo"}}
            assert not foreign, f"{source.path} imports {foreign}"


def test_the_command_line_client_imports_only_proto_and_runtime() -> None:
    checked = [source for source in sources() if source.path.startswith("vpxd/cli/")]
    assert checked
    for source in checked:
        foreign = {
            name for name in source.imports() if name.split(".")[0] in DAEMONS and not name.startswith("vpxd.cli")
        }  # fmt: skip
        assert not foreign, f"{source.path} imports {foreign}"


@pytest.mark.parametrize("folder", ["vmx/stream/", "vmx/trace/"])
def test_stream_and_trace_know_nothing_of_migrations(folder: str) -> None:
    checked = [source for source in sources() if source.path.startswith(folder)]
    assert checked
    for source in checked:
        foreign = {name for name in source.imports() if name.startswith("vmx.migration")}
        assert not foreign, f"{source.path} imports {foreign}"


def test_pure_modules_import_nothing_impure() -> None:
    assert len(pure_sources()) >= 10
    for source in pure_sources():
        allowed = ALLOWED_IN_PURE.get(source.path, set())
        impure = {name.split(".")[0] for name in source.imports()} & IMPURE - allowed
        assert not impure, f"{source.path} says it is pure and imports {impure}"


@pytest.mark.parametrize(
    "path",
    ["vmx/precopy/policy.py", "vmx/migration/switchover.py", "vmx/migration/phases.py", "vmx/stream/frames.py",
     "vmx/guest/command_line.py", "vpxd/compatibility/check.py", "vpxd/placement/choose.py"],
)  # fmt: skip
def test_deciding_modules_say_that_they_are_pure(path: str) -> None:
    assert path in {source.path for source in pure_sources()}


def test_only_config_modules_read_the_environment() -> None:
    """Daemons read their settings in config.py; their __main__ hands it the environment."""
    for source in sources():
        if source.package not in DAEMONS or source.path.startswith("vpxd/cli/"):
            continue
        if source.path.endswith(("/config.py", "/__main__.py")):
            continue
        assert "os.environ" not in source.text, f"{source.path} reads the environment"
