"""`vpx vm migrate` by flags and by a specification, against a fake vpxd: requests sent, panels, exit statuses."""

import json
from pathlib import Path

import pytest

from proto.vim.v1 import fault_pb2, task_pb2, vm_config_pb2
from proto.vmotion.v1 import spec_pb2
from proto.vpxd.v1 import service_pb2
from tests.framework.fake_vpxd import World
from tests.integration.cli.conftest import Vpx

_ALL = (
    "--cluster", "Cluster", "--datastore", "shared", "--disk-format", "eager", "--policy", "-",
    "--disk", "2000:datastore=a,b,format=lazy,policy=gold", "--disk", "2001:format=thin",
    "--network", "LAN=DMZ", "--nic", "4000=LAN", "--priority", "high", "--verify", "--encryption", "disabled",
    "--bandwidth", "125MB/s", "--streams", "4", "--switchover-goal-ms", "20", "--max-iterations", "7",
    "--tracer", "hash_scan",
)  # fmt: skip
_REQUEST = service_pb2.RelocateVmRequest(
    spec=service_pb2.RelocateSpec(
        cluster="Cluster",
        datastore="shared",
        format=vm_config_pb2.DISK_FORMAT_THICK_EAGER_ZEROED,
        policy="-",
        disks=[
            service_pb2.DiskLocator(
                key=2000,
                datastore="a,b",
                format=vm_config_pb2.DISK_FORMAT_THICK_LAZY_ZEROED,
                policy="gold",
            ),
            service_pb2.DiskLocator(key=2001, format=vm_config_pb2.DISK_FORMAT_THIN),
        ],
        networks=[
            service_pb2.NicMapping(from_network="LAN", network="DMZ"),
            service_pb2.NicMapping(nic=4000, network="LAN"),
        ],
    ),
    options=spec_pb2.MigrationOptions(
        verify=spec_pb2.VERIFY_MODE_AFTER_RESUME,
        encryption=spec_pb2.ENCRYPTION_MODE_DISABLED,
        priority=spec_pb2.PRIORITY_HIGH,
        switchover_goal_ms=20,
        max_iterations=7,
        streams=4,
        bandwidth_bytes_per_s=125_000_000,
        tracer="hash_scan",
    ),
)


def _asked(world: World, name: str) -> list[object]:
    return [request for asked, request in world.requests if asked == name]


def _request_for(vm: str) -> service_pb2.RelocateVmRequest:
    expected = service_pb2.RelocateVmRequest()
    expected.CopyFrom(_REQUEST)
    expected.vm = vm
    return expected


def test_migrate_with_every_flag_sends_the_whole_specification(vpx: Vpx, world: World) -> None:
    answer = vpx("vm", "migrate", "web01", *_ALL)
    assert answer.status == 0, answer.err
    assert _asked(world, "RelocateVm") == [_request_for("vm-1")]


def test_migrate_with_a_host_only_is_migrate_vm_as_ever(vpx: Vpx, world: World) -> None:
    assert vpx("vm", "migrate", "web01", "--host", "esx02").status == 0
    assert vpx("vm", "migrate", "web01", "--yes").status == 0
    assert [request.host for request in _asked(world, "MigrateVm")] == ["esx02", ""]  # type: ignore[attr-defined]
    assert not _asked(world, "RelocateVm")


def test_migrate_printed_specification_is_taken_back(vpx: Vpx, world: World, tmp_path: Path) -> None:
    printed = vpx("vm", "migrate", "--print-spec", *_ALL)
    assert printed.status == 0
    assert not world.requests
    (tmp_path / "spec.json").write_text(printed.out)
    answer = vpx("vm", "migrate", "web01", "--spec", str(tmp_path / "spec.json"))
    assert answer.status == 0, answer.err
    assert _asked(world, "RelocateVm") == [_request_for("vm-1")]


def _findings(*, error: bool) -> list[service_pb2.HostFindings]:
    found = task_pb2.Finding(
        error=error,
        fault=fault_pb2.Fault(type=fault_pb2.FAULT_TYPE_NO_DISK_SPACE, message="It is full."),
        remedy="Make room.",
        group=task_pb2.FINDING_GROUP_DATASTORE,
    )
    return [service_pb2.HostFindings(host="host-2", host_name="esx02", findings=[found])]


def test_migrate_check_shows_the_panel_and_its_status_tells(vpx: Vpx, world: World) -> None:
    world.findings = _findings(error=True)
    refused = vpx("vm", "migrate", "web01", *_ALL, "--check")
    assert refused.status == 5
    assert "datastore  error: It is full. (NoDiskSpace)" in refused.out
    assert "remedy: Make room." in refused.out
    assert "web01 can't migrate to Cluster." in refused.err
    assert _asked(world, "CheckRelocate") == [_request_for("web01")]
    world.findings = _findings(error=False)
    warned = vpx("vm", "migrate", "web01", "--host", "esx02", "--check", "-o", "json")
    assert warned.status == 0
    assert warned.json[0]["findings"][0]["remedy"] == "Make room."
    world.findings = [service_pb2.HostFindings(host="host-2", host_name="esx02")]
    fine = vpx("vm", "migrate", "web01", "--host", "esx02", "--check")
    assert (fine.status, fine.out) == (0, "Compatibility checks succeeded.\n")
    assert not _asked(world, "RelocateVm") + _asked(world, "MigrateVm")


def test_migrate_check_without_destination_looks_where_placement_would(vpx: Vpx, world: World) -> None:
    world.findings = [service_pb2.HostFindings(host="host-2", host_name="esx02")]
    assert vpx("vm", "migrate", "web01", "--check").status == 0
    (request,) = _asked(world, "CheckRelocate")
    assert isinstance(request, service_pb2.RelocateVmRequest)
    assert request.spec == service_pb2.RelocateSpec(cluster="domain-c1")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--disk", "2000"), "--disk takes KEY:"),
        (("--disk", "2000:size=4"), "--disk takes KEY:"),
        (("--disk", "2000:format=thin,format=lazy"), "--disk takes KEY:"),
        (("--disk", "root:format=thin"), "device's key"),
        (("--disk", "2000:format=fat"), "'fat' is no format"),
        (("--network", "LAN"), "--network takes FROM=TO"),
        (("--nic", "4000"), "--nic takes KEY=NETWORK"),
        (("--nic", "x=LAN"), "device's key"),
        (("--plaintext", "--encryption", "required"), "contradict"),
        (("--check", "--print-spec"), "either"),
        (("--spec", "spec.json", "--host", "esx02"), "--host contradicts --spec"),
        (("--spec", "spec.json", "--priority", "high"), "--priority contradicts --spec"),
        (("--spec", "/nonexistent/spec.json"), "can't be read"),
        (("--print-spec", "--disk-format", "thin"), "format needs a datastore"),
        (("--print-spec", "--host", "a", "--cluster", "b"), "cluster contradicts its host"),
    ],
)
def test_migrate_flags_that_cant_be_end_with_2_and_ask_nothing(
    vpx: Vpx, world: World, words: tuple[str, ...], told: str
) -> None:
    answer = vpx("vm", "migrate", "web01", *words)
    assert answer.status == 2
    assert told in answer.err
    assert (answer.out, world.requests) == ("", [])


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ({"hots": "esx02"}, "specification's hots is unknown"),
        ({"disks": [{"key": 2000, "format": "fat"}]}, "specification's disks[0].format must be thin"),
        ({"options": {"streams": "4"}}, "specification's options.streams must be a whole number"),
    ],
)
def test_migrate_bad_specification_names_its_field(
    vpx: Vpx, world: World, tmp_path: Path, document: object, told: str
) -> None:
    (tmp_path / "spec.json").write_text(json.dumps(document))
    answer = vpx("vm", "migrate", "web01", "--spec", str(tmp_path / "spec.json"))
    assert answer.status == 2
    assert told in answer.err
    assert not world.requests


def test_migrate_specification_that_is_no_text_is_a_usage_error(vpx: Vpx, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_bytes(b"\xff\xfe{}")
    answer = vpx("vm", "migrate", "web01", "--spec", str(tmp_path / "spec.json"))
    assert answer.status == 2
    assert "UTF-8" in answer.err
