"""The table from faults to exit statuses."""

from demo.cluster_layout import PROJECT
from proto.vim.v1 import fault_pb2
from vpxd.cli.app import app
from vpxd.cli.exit_status import MEANING, STATUS_OF, ExitStatus, status_of_fault


def test_status_of_every_fault_type_has_its_status() -> None:
    assert set(STATUS_OF) == set(fault_pb2.FaultType.values())


def test_status_of_a_fault_never_claims_success_or_interruption() -> None:
    assert not {ExitStatus.OK, ExitStatus.INTERRUPTED} & set(STATUS_OF.values())


def test_status_of_an_unknown_fault_is_failed() -> None:
    assert status_of_fault(10_000) is ExitStatus.FAILED


def test_meaning_of_every_status_is_in_the_help() -> None:
    assert set(MEANING) == set(ExitStatus)
    epilog = app.info.epilog
    assert isinstance(epilog, str)
    for status, meaning in MEANING.items():
        assert f"{status.value} {meaning}" in epilog


def test_meaning_of_every_status_is_in_the_documentation() -> None:
    page = (PROJECT / "docs" / "cli.md").read_text()
    for status, meaning in MEANING.items():
        assert f"| {status.value} | {meaning} |" in page
