"""`vpx`'s commands against a fake vpxd: requests sent, screens, JSON, exit statuses."""

import json
from pathlib import Path

import pytest

from proto.vim.v1 import fault_pb2, task_pb2, vm_config_pb2
from proto.vmotion.v1 import spec_pb2
from proto.vpxd.v1 import service_pb2
from runtime.faults import (
    DuplicateName,
    HostNotReachable,
    InsufficientMemoryResources,
    InvalidArgument,
    InvalidPowerState,
    MigrationFault,
    NoCompatibleHost,
    TaskInProgress,
)
from runtime.rpc.identity import ClusterAuthority, Role
from tests.framework.fake_vpxd import World, failed, migration_script, task
from tests.integration.cli.conftest import Vpx


def _asked(world: World, name: str) -> object:
    return next(request for asked, request in reversed(world.requests) if asked == name)


def test_host_list_as_table_shows_every_host(vpx: Vpx) -> None:
    answer = vpx("host", "list")
    assert answer.status == 0
    lines = answer.out.splitlines()
    assert lines[0].startswith("NAME")
    assert [line.split()[0] for line in lines[1:]] == ["esx01", "esx02", "esx03"]
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize(
    "words",
    [
        ("host", "list"),
        ("host", "show", "esx01"),
        ("host", "token", "esx04"),
        ("host", "add", "esx04"),
        ("host", "remove", "esx03"),
        ("vm", "list"),
        ("vm", "show", "web01"),
        ("vm", "create", "new01"),
        ("vm", "register", "[shared] a/a.vmx"),
        ("vm", "on", "db01"),
        ("vm", "off", "web01"),
        ("vm", "reset", "web01"),
        ("vm", "reconfigure", "db01", "--ram", "1GiB"),
        ("vm", "destroy", "db01"),
        ("vm", "unregister", "db01"),
        ("vm", "migrate", "web01", "--host", "esx02"),
        ("task", "list"),
        ("events",),
        ("cluster", "list"),
        ("cluster", "create", "second"),
        ("datastore", "list"),
        ("network", "list"),
        ("about",),
    ],
)
def test_json_of_every_command_is_one_document_and_nothing_else(vpx: Vpx, words: tuple[str, ...]) -> None:
    before = vpx("-o", "json", *words)
    after = vpx(*words, "-o", "json")
    assert before.status == after.status == 0, before.err + after.err
    for answer in (before, after):
        assert isinstance(answer.json, dict | list)
        assert answer.err == ""


def test_json_keys_are_there_even_with_default_values(vpx: Vpx) -> None:
    off = vpx("vm", "show", "db01", "-o", "json").json
    assert off["cpu_percent"] == 0.0
    assert off["power_state"] == "POWER_STATE_POWERED_OFF"
    assert off["config"]["ram_bytes"] == str(512 << 20)


def test_vm_list_of_one_host_asks_for_that_host(vpx: Vpx, world: World) -> None:
    vpx("vm", "list", "--host", "esx02")
    assert _asked(world, "ListVms") == service_pb2.ListVmsRequest(host="esx02")


def test_vm_list_nothing_found_says_so_beside_an_empty_output(vpx: Vpx) -> None:
    answer = vpx("vm", "list", "--name", "none")
    assert (answer.status, answer.out) == (0, "")
    assert "No VMs" in answer.err
    assert vpx("vm", "list", "--name", "none", "-o", "json").json == []


def test_vm_create_sends_the_whole_configuration(vpx: Vpx, world: World) -> None:
    world.scripts["CreateVm"] = [task(state=task_pb2.TASK_STATE_SUCCESS, result="vm-9")]
    words = ("--ram", "2GiB", "--vcpus", "2", "--cmdline", "console=ttyS0 a=b", "--host", "esx02")
    answer = vpx("vm", "create", "new01", *words)
    assert answer.out == "new01 is created: vm-9.\n"
    request = _asked(world, "CreateVm")
    assert isinstance(request, service_pb2.CreateVmRequest)
    assert (request.datastore, request.host) == ("shared", "esx02")
    assert (request.config.ram_bytes, request.config.vcpus) == (2 << 30, 2)
    assert request.config.boot.kernel == "[shared] images/vmlinuz"
    assert request.config.boot.initrd == "[shared] images/initrd.img"
    assert request.config.boot.kernel_command_line == "console=ttyS0 a=b"


def test_vm_reconfigure_sends_the_version_that_was_read(vpx: Vpx, world: World) -> None:
    assert vpx("vm", "reconfigure", "db01", "--ram", "1GiB").status == 0
    request = _asked(world, "ReconfigureVm")
    assert isinstance(request, service_pb2.ReconfigureVmRequest)
    assert (request.vm, request.config.ram_bytes, request.config.change_version) == ("vm-2", 1 << 30, 4)


@pytest.mark.parametrize(
    "words",
    [
        ("vm", "create", "x", "--ram", "512"),
        ("vm", "create", "x", "--vcpus", "0"),
        ("vm", "reconfigure", "web01"),
        ("vm", "migrate", "web01", "--verify", "--verify-before-resume"),
        ("vm", "migrate", "web01", "--watch", "--no-wait"),
        ("vm", "migrate", "web01", "--priority", "urgent"),
        ("vm", "migrate", "web01", "--bandwidth", "1Gb/s"),
        ("vm", "fly", "web01"),
        ("vm", "show"),
        ("vm", "list", "-o", "yaml"),
        ("vm", "list", "--timeout", "0"),
    ],
)
def test_usage_errors_end_with_2_and_ask_nothing(vpx: Vpx, world: World, words: tuple[str, ...]) -> None:
    answer = vpx(*words)
    assert answer.status == 2
    assert answer.out == ""
    assert not [name for name, _ in world.requests if name not in ("GetVm",)]


@pytest.mark.parametrize(
    ("refusal", "status"),
    [
        (InvalidArgument("esx01 is where it is.", "host"), 2),
        (TaskInProgress("web01 is being migrated.", "vm-1", "task-7", "migrate"), 4),
        (DuplicateName("The name is taken."), 4),
        (NoCompatibleHost("Nowhere to go."), 5),
        (MigrationFault("It failed."), 1),
        (HostNotReachable("esx02 doesn't answer."), 1),
    ],
)
def test_fault_at_once_is_said_with_its_exit_status(
    vpx: Vpx, world: World, refusal: Exception, status: int
) -> None:
    world.refusals["MigrateVm"] = refusal  # type: ignore[assignment]
    answer = vpx("vm", "migrate", "web01", "--host", "esx02")
    assert answer.status == status
    assert answer.out == ""
    assert answer.err.startswith(f"error: {refusal} ({type(refusal).__name__})")
    assert "noticed by: vpxd" in answer.err
    assert "Traceback" not in answer.err


def test_fault_of_a_task_is_said_with_its_causes_and_exit_status(vpx: Vpx, world: World) -> None:
    fault = InvalidPowerState("db01 is powered off.", "poweredOff", "poweredOn")
    fault.__cause__ = InsufficientMemoryResources("512 MiB asked, 1 MiB left.")
    world.scripts["PowerOffVm"] = [task(), failed(fault, "hostd@esx01")]
    answer = vpx("vm", "off", "db01")
    assert answer.status == 4
    assert answer.err.splitlines() == [
        "error: db01 is powered off. (InvalidPowerState)",
        "  caused by: 512 MiB asked, 1 MiB left. (InsufficientMemoryResources)",
        "  noticed by: hostd@esx01",
        "  hint: power off or move a VM of that host, or choose another host.",
    ]


def test_fault_of_a_task_with_json_is_in_the_document_too(vpx: Vpx, world: World) -> None:
    world.scripts["PowerOnVm"] = [failed(MigrationFault("It failed.", "PRE_COPY"))]
    answer = vpx("vm", "on", "db01", "-o", "json")
    assert answer.status == 1
    assert answer.json["error"]["type"] == "FAULT_TYPE_MIGRATION_FAULT"
    assert answer.json["error"]["details"] == {"phase": "PRE_COPY"}


@pytest.mark.parametrize(
    "words", [("vm", "show", "none"), ("host", "show", "none"), ("task", "show", "task-99")]
)
def test_unknown_object_ends_with_3(vpx: Vpx, words: tuple[str, ...]) -> None:
    answer = vpx(*words)
    assert answer.status == 3
    assert "There is no" in answer.err


def test_no_wait_prints_the_task_and_doesnt_watch_it(vpx: Vpx, world: World) -> None:
    world.hold = True
    answer = vpx("vm", "on", "db01", "--no-wait")
    assert (answer.status, answer.out) == (0, "task-1\n")
    assert not [name for name, _ in world.requests if name == "WatchTask"]
    assert vpx("--no-wait", "vm", "on", "db01", "-o", "json").json["id"] == "task-2"


def test_timeout_ends_with_7_and_says_that_the_task_goes_on(vpx: Vpx, world: World) -> None:
    world.scripts["PowerOnVm"] = [task(cancelable=True)]
    world.hold = True
    answer = vpx("vm", "on", "db01", "--timeout", "0.3")
    assert answer.status == 7
    assert "vpx task watch task-1" in answer.err
    assert "vpx task cancel task-1" in answer.err


def test_destroy_without_a_terminal_doesnt_ask(vpx: Vpx, world: World) -> None:
    assert vpx("vm", "destroy", "db01").out == "db01 and its files are deleted.\n"
    assert _asked(world, "DestroyVm") == service_pb2.VmOperationRequest(vm="db01")


def test_migrate_with_watch_prints_phases_passes_and_tables(vpx: Vpx, world: World) -> None:
    world.scripts["MigrateVm"] = migration_script()
    answer = vpx("vm", "migrate", "web01", "--host", "esx02", "--watch", "--verify")
    assert answer.status == 0
    shown = [line.split()[0] for line in answer.err.splitlines()]
    assert shown == ["prepare", "handshake", "pre-copy", "pass", "pass", "stun", "verify"]
    for words in ("Passes over the memory", "Phases", "Stun", "device state", "7.86 ms", "pagemap_scan"):
        assert words in answer.out
    assert "stunned for 7.86 ms" in answer.out.splitlines()[-1]
    request = _asked(world, "MigrateVm")
    assert isinstance(request, service_pb2.MigrateVmRequest)
    assert (request.vm, request.host) == ("vm-1", "esx02")
    assert request.options.verify == spec_pb2.VERIFY_MODE_AFTER_RESUME


def test_migrate_with_json_prints_the_last_state_only(vpx: Vpx, world: World) -> None:
    world.scripts["MigrateVm"] = migration_script()
    answer = vpx("vm", "migrate", "web01", "--watch", "-o", "json")
    assert answer.err == ""
    assert answer.json["migration"]["stun_ms"] == 7.86
    assert answer.json["migration"]["phase"] == "MIGRATION_PHASE_SUCCEEDED"
    assert len(answer.json["migration"]["iterations"]) == 2


def test_migrate_of_a_powered_off_vm_has_no_tables(vpx: Vpx, world: World) -> None:
    answer = vpx("vm", "migrate", "db01", "--host", "esx02", "--watch")
    assert answer.status == 0
    assert "Passes" not in answer.out
    assert answer.out.startswith("db01 has moved")


def test_task_watch_of_a_failed_migration_has_its_exit_status(vpx: Vpx, world: World) -> None:
    script = [*migration_script()[:-1], failed(NoCompatibleHost("esx02 can't take it."), "vpxd")]
    world.scripts["MigrateVm"] = script
    vpx("vm", "migrate", "web01", "--no-wait")
    assert vpx("task", "watch", "task-1").status == 5
    shown = vpx("task", "show", "task-1")
    assert shown.status == 0
    assert "esx02 can't take it." in shown.out


def test_task_cancel_asks_and_says_how_to_go_on(vpx: Vpx, world: World) -> None:
    world.scripts["MigrateVm"] = [task(cancelable=True)]
    vpx("vm", "migrate", "web01", "--no-wait")
    answer = vpx("task", "cancel", "task-1")
    assert "task-1 is being canceled" in answer.out
    assert _asked(world, "CancelTask") == service_pb2.GetTaskRequest(task="task-1")


def test_vm_check_shows_findings_and_ends_with_5_where_nothing_fits(vpx: Vpx, world: World) -> None:
    problem = task_pb2.Finding(
        error=True,
        fault=fault_pb2.Fault(
            type=fault_pb2.FAULT_TYPE_INACCESSIBLE_DATASTORE, message="esx03 doesn't see local."
        ),
        remedy="Mount it.",
    )
    bad = service_pb2.HostFindings(host="host-3", host_name="esx03", findings=[problem])
    good = service_pb2.HostFindings(host="host-2", host_name="esx02")
    world.findings = [good, bad]
    answer = vpx("vm", "check", "web01")
    assert answer.status == 0
    assert "esx02" in answer.out
    assert "esx03 doesn't see local. (InaccessibleDatastore)" in answer.out
    world.findings = [bad]
    refused = vpx("vm", "check", "web01", "--host", "esx03", "-o", "json")
    assert refused.status == 5
    assert refused.json[0]["findings"][0]["remedy"] == "Mount it."


def test_vm_check_of_a_relocation_sends_it_and_shows_findings_in_their_groups(vpx: Vpx, world: World) -> None:
    def finding(group: task_pb2.FindingGroup.ValueType, text: str, *, error: bool) -> task_pb2.Finding:
        fault = fault_pb2.Fault(type=fault_pb2.FAULT_TYPE_NO_DISK_SPACE, message=text)
        return task_pb2.Finding(error=error, fault=fault, remedy=f"mend {text}", group=group)

    found = [
        finding(task_pb2.FINDING_GROUP_NETWORK, "net", error=True),
        finding(task_pb2.FINDING_GROUP_DATASTORE, "one", error=True),
        finding(task_pb2.FINDING_GROUP_DATASTORE, "two", error=False),
    ]
    world.findings = [
        service_pb2.HostFindings(host="host-2", host_name="esx02", findings=found),
        service_pb2.HostFindings(host="host-3", host_name="esx03"),
    ]
    words = ("--datastore", "local", "--format", "thin", "--policy", "-", "--network", "LAN=DMZ")
    answer = vpx("vm", "check", "web01", *words)
    request = _asked(world, "CheckRelocate")
    assert isinstance(request, service_pb2.RelocateVmRequest)
    assert request.spec == service_pb2.RelocateSpec(
        datastore="local",
        format=vm_config_pb2.DISK_FORMAT_THIN,
        policy="-",
        networks=[service_pb2.NicMapping(from_network="LAN", network="DMZ")],
    )
    lines = [line.split() for line in answer.out.splitlines()]
    assert [line[0] for line in lines] == [
        "esx02", "datastore", "remedy:", "warning:", "remedy:", "network", "remedy:", "esx03",
    ]  # fmt: skip
    assert lines[0][1:] == ["2", "errors,", "1", "warning"]
    assert lines[-1] == ["esx03", "ok"]
    assert vpx("vm", "check", "web01", "--network", "LAN").status == 2


def test_console_into_a_pipe_has_the_bytes_as_they_are(vpx: Vpx, world: World) -> None:
    world.console = [b"boot\n\x1b[31mred", b"\x1b[0m\n"]
    answer = vpx("vm", "console", "web01", "--tail", "4KiB", "--port", "heartbeat")
    assert answer.out == "boot\n\x1b[31mred\x1b[0m\n"
    request = _asked(world, "ReadConsole")
    assert request == service_pb2.ReadConsoleRequest(vm="web01", tail_bytes=4096, port="heartbeat")


def test_console_follow_ends_with_the_timeout(vpx: Vpx, world: World) -> None:
    world.console = [b"line\n"]
    answer = vpx("vm", "console", "web01", "--follow", "--timeout", "0.3")
    assert (answer.status, answer.out) == (0, "line\n")


def test_events_follow_prints_old_and_new_ones(vpx: Vpx, world: World) -> None:
    world.events = [task_pb2.Event(id=3, type="VmMigratedEvent", message="web01 moved", entity_name="web01")]
    answer = vpx("events", "--follow", "--timeout", "0.3", "-o", "json")
    assert answer.status == 0
    assert [json.loads(line)["id"] for line in answer.out.splitlines()] == ["3"]
    assert _asked(world, "WatchEvents") == service_pb2.ListEventsRequest(after_id=3, limit=100)


def test_nobody_listens_ends_with_6(vpx: Vpx, config: Path) -> None:
    config.write_text(json.dumps({"server": "127.0.0.1:1"}))
    answer = vpx("host", "list")
    assert answer.status == 6
    assert "nothing listens there" in answer.err


def test_client_of_another_cluster_ends_with_6(vpx: Vpx, config: Path, tmp_path: Path) -> None:
    other = ClusterAuthority.create(tmp_path / "other", "another cluster")
    other.new_identity(Role.CLIENT, "admin").save(config.parent)
    answer = vpx("host", "list")
    assert answer.status == 6
    assert "Traceback" not in answer.err


def test_identity_missing_ends_with_6(vpx: Vpx, config: Path) -> None:
    (config.parent / "key.pem").unlink()
    answer = vpx("host", "list")
    assert answer.status == 6
    assert "identity" in answer.err
