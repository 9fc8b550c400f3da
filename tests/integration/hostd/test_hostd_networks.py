"""hostd and the host's virtual switch: port groups told and asked for; the switch started, kept, found, replaced."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hostd.host.process import ProcessId, identify, read_pid_file
from proto.vim.v1 import host_pb2, vm_config_pb2
from runtime.faults import CannotAccessNetwork
from tests.framework.hostd_process import ROOT, HostdHost, small_vm

pytestmark = pytest.mark.cluster


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[HostdHost]:
    shared = tmp_path / "shared"
    shared.mkdir()
    host = HostdHost(tmp_path, 43, shared)
    host.environment["HOST_PORT_GROUPS"] = "VM Network=100,Lab=200"
    host.environment["HOST_VSWITCH_PEERS"] = "127.0.1.43,127.0.1.44"
    try:
        await host.start()
        yield host
    finally:
        await host.end()


def vm_on(network: str, name: str = "web01", *, connected: bool = True) -> vm_config_pb2.VmConfig:
    config = small_vm(name)
    config.nics.add(key=4000, mac="02:00:00:00:00:01", network=network, connected=connected)
    return config


def switch_of(host: HostdHost) -> ProcessId | None:
    """The switch that serves now."""
    process = read_pid_file(host.run_directory / "net" / "vswitch.pid")
    return process if process is not None and identify(process.pid) == process else None


async def other_switch(host: HostdHost, before: ProcessId) -> ProcessId:
    """The one that serves instead of `before`."""
    async with asyncio.timeout(15):
        while (now := switch_of(host)) is None or now == before:
            await asyncio.sleep(0.02)
    return now


async def test_port_groups_are_told_and_a_switch_comes_with_the_first_nic(host: HostdHost) -> None:
    groups = (await host.info()).host.port_groups
    assert [(group.name, group.segment_id) for group in groups] == [("VM Network", 100), ("Lab", 200)]
    bare = await host.create(small_vm("bare"))
    await host.call("PowerOnVm", bare.uuid)
    unplugged = await host.create(vm_on("Elsewhere", "unplugged", connected=False))
    await host.call("PowerOnVm", unplugged.uuid)
    assert switch_of(host) is None, "nobody needs one"
    vm = await host.create(vm_on("Lab"))
    await host.call("PowerOnVm", vm.uuid)
    assert switch_of(host) is not None
    assert (host.run_directory / "net" / "200" / "switch.sock").is_socket()


async def test_nic_on_a_port_group_that_is_not_here_refuses_the_power_on(host: HostdHost) -> None:
    vm = await host.create(vm_on("Lab"))
    await host.stop()
    host.environment["HOST_PORT_GROUPS"] = "VM Network=100"
    await host.start()
    with pytest.raises(CannotAccessNetwork) as caught:
        await host.call("PowerOnVm", vm.uuid)
    assert (caught.value.network, caught.value.host, caught.value.nic) == ("Lab", host.name, "ethernet0")
    assert (await host.info()).usage.memory_reserved_bytes == 0
    assert (await host.vms())["web01"].power_state == host_pb2.POWER_STATE_POWERED_OFF


async def test_switch_that_cannot_start_refuses_the_power_on_and_says_why(host: HostdHost) -> None:
    await host.stop()
    host.environment["HOST_VSWITCH_ADDRESS"] = "192.0.2.1"  # RFC 5737: nobody's
    await host.start()
    vm = await host.create(vm_on("Lab"))
    with pytest.raises(CannotAccessNetwork, match=r"192\.0\.2\.1:4789 can't be bound"):
        await host.call("PowerOnVm", vm.uuid)
    assert (await host.info()).usage.memory_reserved_bytes == 0
    assert (await host.info()).host.name == host.name


async def test_killed_switch_is_started_again(host: HostdHost) -> None:
    vm = await host.create(vm_on("Lab"))
    await host.call("PowerOnVm", vm.uuid)
    first = switch_of(host)
    assert first is not None
    os.kill(first.pid, signal.SIGKILL)
    second = await other_switch(host, first)
    os.kill(second.pid, signal.SIGKILL)  # it lived for a moment only
    await other_switch(host, second)
    assert host.log().count("switch_died") == 2


async def test_hostds_death_leaves_the_switch_and_the_next_hostd_keeps_it(host: HostdHost) -> None:
    vm = await host.create(vm_on("Lab"))
    await host.call("PowerOnVm", vm.uuid)
    first = switch_of(host)
    assert first is not None
    await host.stop(signal.SIGKILL)
    assert switch_of(host) == first
    await host.start()
    other = await host.create(vm_on("VM Network", "web02"))
    await host.call("PowerOnVm", other.uuid)
    assert switch_of(host) == first
    assert "switch_found" in host.log()
    os.kill(first.pid, signal.SIGKILL)
    await other_switch(host, first)


async def test_switch_that_died_without_a_hostd_is_back_with_the_next(host: HostdHost) -> None:
    vm = await host.create(vm_on("Lab"))
    await host.call("PowerOnVm", vm.uuid)
    first = switch_of(host)
    assert first is not None
    await host.stop(signal.SIGKILL)
    os.kill(first.pid, signal.SIGKILL)
    await host.start()
    assert identify((await other_switch(host, first)).pid) is not None


async def test_changed_settings_replace_the_switch(host: HostdHost) -> None:
    vm = await host.create(vm_on("Lab"))
    await host.call("PowerOnVm", vm.uuid)
    first = switch_of(host)
    assert first is not None
    await host.stop()
    host.environment["HOST_PORT_GROUPS"] = "VM Network=100,Lab=200,New=300"
    await host.start()
    await other_switch(host, first)
    assert (host.run_directory / "net" / "300" / "switch.sock").is_socket()
    assert "switch_replaced" in host.log()


async def test_bad_network_settings_end_hostd_by_name(host: HostdHost) -> None:
    await host.stop()
    for name, value in (
        ("HOST_PORT_GROUPS", "VM Network"),
        ("HOST_VSWITCH_ADDRESS", "somewhere"),
        ("HOST_VSWITCH_PEERS", "127.0.0.1:x"),
        ("HOST_VSWITCH_PORT", "70000"),
    ):
        environment = {**host.environment, name: value}
        assert await _refused(environment, name), name


async def _refused(environment: dict[str, str], name: str) -> bool:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "hostd", env=environment, cwd=ROOT, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    text = await asyncio.wait_for(process.stderr.read(), 20)
    return await process.wait() == 2 and name in text.decode()
