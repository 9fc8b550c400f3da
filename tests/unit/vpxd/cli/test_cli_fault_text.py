"""How faults are said."""

from runtime.faults import (
    HostNotConnected,
    InsufficientMemoryResources,
    MigrationFault,
    SystemFault,
    TaskInProgress,
    VimFault,
)
from runtime.rpc.faults import CLASS_OF, fault_from_proto, fault_to_proto
from vpxd.cli.errors import NoConnection
from vpxd.cli.exit_status import ExitStatus
from vpxd.cli.fault_text import fault_name, hint_of, say, status_of


def _with_cause(outer: VimFault, cause: VimFault) -> VimFault:
    cause.origin = "hostd@esx02"
    outer.__cause__ = cause
    return fault_from_proto(fault_to_proto(outer, "vpxd"))


def test_say_tells_sentence_causes_origin_and_hint() -> None:
    fault = _with_cause(
        MigrationFault("web01 can't be moved to esx02."),
        InsufficientMemoryResources("512 MiB asked, 128 MiB left."),
    )
    assert say(fault) == [
        "error: web01 can't be moved to esx02. (MigrationFault)",
        "  caused by: 512 MiB asked, 128 MiB left. (InsufficientMemoryResources)",
        "  noticed by: hostd@esx02",
        "  hint: power off or move a VM of that host, or choose another host.",
    ]


def test_say_cause_with_the_same_words_is_not_repeated() -> None:
    lines = say(_with_cause(HostNotConnected("esx02 is silent."), HostNotConnected("esx02 is silent.")))
    assert sum("esx02 is silent." in line for line in lines) == 1


def test_say_hostile_text_has_no_control_characters() -> None:
    lines = say(MigrationFault("a\x1b[2Jb\nc"))
    assert all(line.isprintable() for line in lines)


def test_hint_of_task_in_progress_names_the_task() -> None:
    assert "vpx task watch task-7" in hint_of(TaskInProgress("busy", "vm-1", "task-7", "migrate"))


def test_hint_of_system_fault_names_log_and_operation() -> None:
    fault = fault_from_proto(fault_to_proto(SystemFault("oops", "op-1"), "vpxa@esx01"))
    assert "vpxa@esx01" in hint_of(fault)
    assert "op-1" in hint_of(fault)


def test_say_own_error_has_its_hint_and_status() -> None:
    error = NoConnection("No connection.", "Is it there?")
    assert say(error) == ["error: No connection.", "  hint: Is it there?"]
    assert status_of(error) is ExitStatus.NO_CONNECTION


def test_fault_name_of_every_type_is_the_class_name() -> None:
    for number, cls in CLASS_OF.items():
        if cls is not SystemFault:
            assert fault_name(number).lower() == cls.__name__.lower()


def test_fault_name_of_an_unknown_type_is_its_number() -> None:
    assert fault_name(12345) == "Fault(12345)"
