"""The demonstration: a Linux VM moves esx01 → esx02 → esx03 → esx01 while it runs, and proves that it lived through it.

It drives the product as any client would, over gRPC, and judges from outside: the guest stamps and checks its own
memory and says so on its console; an observer of its own times the guest's heartbeat on the datastore; vpxd's status
says what was measured inside. Whatever happens, nothing that was started runs afterwards.
"""

import asyncio
import itertools
import json
import shutil
import signal
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import TypeVar

from demo.cluster_layout import PROJECT, ClusterLayout, free_ports
from demo.errors import ClusterError
from demo.guest_console import GuestSilent, read_all, wait_for
from demo.heartbeat_observer import HeartbeatObserver, guest_gap_ms
from demo.local_cluster import LocalCluster
from demo.orders import order, power_off_and_destroy, watched
from demo.result import Migration, Result, heartbeat_problems, migration_problems
from demo.screen import Screen
from images.cmdline import HEARTBEAT_MS_DEFAULT, kernel_command_line
from proto.vim.v1 import task_pb2, vm_config_pb2
from proto.vmotion.v1 import spec_pb2
from proto.vpxd.v1 import service_pb2
from runtime.faults import VimFault
from runtime.ondisk.durable import write_durably
from vpxd.cli.client import VpxdClient, connect
from vpxd.cli.errors import CliError
from vpxd.cli.vm_commands import DEFAULT_INITRD, DEFAULT_KERNEL

VM = "demo01"
RAM_BYTES = 512 << 20
STAMPER_MIB, RATE_MIB_S = 64, 20
ROUTE = ("esx01", "esx02", "esx03", "esx01")
DIRECTORY = PROJECT / "out" / "demo-cluster"
RESULT_FILE = PROJECT / "out" / "demo.json"
BLOCK = 1  # of addresses: beside a `make up` cluster
_BOOT_TIMEOUT_S = 90.0
_STATUS_TIMEOUT_S = 30.0
_STEADY_LINES = 2
EXIT_INTERRUPTED = 130
Found = TypeVar("Found")


async def run(screen: Screen) -> Result:
    """The whole demonstration; every failure is a problem in the result, and nothing is left running."""
    result = Result()
    began_s = time.monotonic()
    ports = free_ports(2)
    layout = ClusterLayout(DIRECTORY, len(set(ROUTE)), BLOCK, ports[0], ports[1])
    cluster = LocalCluster(layout, say=screen.say)
    try:
        await _clear_earlier_run(cluster)
        async with cluster.running():
            result.seconds["cluster_up"] = time.monotonic() - began_s
            await _on_cluster(cluster, screen, result)
    except (VimFault, CliError, ClusterError, GuestSilent, OSError) as error:
        result.problems.append(f"{type(error).__name__}: {error}")
    except ExceptionGroup as group:
        result.problems.append(f"{group.message}: {'; '.join(map(str, group.exceptions))}")
    left = cluster.leftovers()
    if left:
        result.problems.append(f"processes are left: {left}")
    result.seconds["all"] = time.monotonic() - began_s
    return result


async def _clear_earlier_run(cluster: LocalCluster) -> None:
    """Ends what a demonstration left that was killed outright (its folder names its processes), then its files."""
    await cluster.down()
    await asyncio.to_thread(shutil.rmtree, DIRECTORY, ignore_errors=True)


async def _on_cluster(cluster: LocalCluster, screen: Screen, result: Result) -> None:
    result.idle_rss_mib.update(cluster.rss_mib())
    async with connect(cluster.client_config) as client:
        began_s = time.monotonic()
        await _create_and_power_on(client, screen)
        facts = await wait_for(client, VM, _STEADY_LINES, _BOOT_TIMEOUT_S)
        result.seconds["guest_ready"] = time.monotonic() - began_s
        screen.say(
            f"{VM} is up: Linux, {STAMPER_MIB} MiB rewritten at {RATE_MIB_S} MiB/s, {facts.wrong} wrong stamps"
        )
        result.idle_rss_mib.update(cluster.vmx_rss_mib())

        observer = HeartbeatObserver()
        heartbeat = cluster.layout.shared_datastore / VM / "heartbeat.log"
        spans: list[tuple[str, str, task_pb2.TaskInfo, int, int]] = []
        async with observer.watching(PROJECT, heartbeat):
            await observer.ready()
            for source, destination in itertools.pairwise(ROUTE):
                begin_ns = time.monotonic_ns()
                task = await _migrate(client, screen, source, destination)
                # Alive at the destination: the stamper has told of a second that began there.
                told = len((await read_all(client, VM)).statuses)
                await wait_for(client, VM, 1, _STATUS_TIMEOUT_S, beyond=told)
                spans.append((source, destination, task, begin_ns, time.monotonic_ns()))
        _judge(result, observer, spans)
        await _judge_console(client, result)
        for one in result.migrations:
            screen.report(one)
        await power_off_and_destroy(client, VM)
        screen.say(f"{VM} is powered off and deleted")


def _judge(
    result: Result,
    observer: HeartbeatObserver,
    spans: list[tuple[str, str, task_pb2.TaskInfo, int, int]],
) -> None:
    result.heartbeats = len(observer.beats)
    result.problems += heartbeat_problems([beat.line for beat in observer.beats])
    for source, destination, task, begin_ns, end_ns in spans:
        gap = guest_gap_ms(observer.beats, begin_ns, end_ns, HEARTBEAT_MS_DEFAULT)
        one = Migration(source, destination, task.migration, gap)
        result.migrations.append(one)
        result.problems += migration_problems(one)


async def _judge_console(client: VpxdClient, result: Result) -> None:
    facts = await read_all(client, VM)
    result.wrong_stamps = facts.wrong
    result.problems += [f"the guest says: {line}" for line in facts.complaints]
    if facts.wrong:
        result.problems.append(f"the guest found {facts.wrong} wrong stamps in its memory")
    if facts.boots != 1:
        result.problems.append(f"the guest has booted {facts.boots} times")


async def _create_and_power_on(client: VpxdClient, screen: Screen) -> None:
    config = vm_config_pb2.VmConfig(
        name=VM,
        vcpus=1,
        ram_bytes=RAM_BYTES,
        boot=vm_config_pb2.Boot(
            kernel=DEFAULT_KERNEL,
            initrd=DEFAULT_INITRD,
            kernel_command_line=kernel_command_line(STAMPER_MIB, RATE_MIB_S),
        ),
    )
    request = service_pb2.CreateVmRequest(config=config, datastore="shared", host=ROUTE[0])
    await order(client, client.stub.CreateVm, request)
    await order(client, client.stub.PowerOnVm, service_pb2.VmOperationRequest(vm=VM))
    screen.say(f"{VM} is powered on at {ROUTE[0]}: {RAM_BYTES >> 20} MiB; waiting for its Linux")


async def _migrate(client: VpxdClient, screen: Screen, source: str, destination: str) -> task_pb2.TaskInfo:
    """:raises VimFault: the migration failed; the VM runs where it did."""
    options = spec_pb2.MigrationOptions(
        verify=spec_pb2.VERIFY_MODE_AFTER_RESUME, encryption=spec_pb2.ENCRYPTION_MODE_REQUIRED
    )
    request = service_pb2.MigrateVmRequest(vm=VM, host=destination, options=options)
    task = await client.call(client.stub.MigrateVm, request)
    return await watched(client, screen, f"{VM}: {source} → {destination}", task)


def save(result: Result, path: Path = RESULT_FILE) -> None:
    """Writes demo.json. Blocking."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(
        path, json.dumps(result.document(), indent=2, ensure_ascii=False).encode() + b"\n", mode=0o644
    )


async def unless_terminated(work: Coroutine[None, None, Found]) -> Found:
    """SIGTERM ends it as Ctrl-C does: in good order."""
    task = asyncio.ensure_future(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task


def main() -> int:
    """The exit status: 0 only if everything held."""
    screen = Screen()
    RESULT_FILE.unlink(missing_ok=True)  # an earlier run's word must not pass for this one's
    try:
        result = asyncio.run(unless_terminated(run(screen)))
    except (KeyboardInterrupt, asyncio.CancelledError):
        screen.say("interrupted; everything that was started has been stopped")
        return EXIT_INTERRUPTED
    save(result)
    screen.conclude(result, RESULT_FILE)
    return 0 if result.ok else 1
