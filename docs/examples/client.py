"""Five minutes with the API: create a VM, power it on, migrate it while it runs, read how long it was stunned.

    python docs/examples/client.py [--config client.json] [--name web01]

It needs a running cluster (`make up`). Everything is gRPC: `vpxd.stub` has the rpcs of proto/vpxd/v1/service.proto.
"""

import argparse
import asyncio
from pathlib import Path

from proto.vim.v1.vm_config_pb2 import Boot, VmConfig
from proto.vmotion.v1.spec_pb2 import VERIFY_MODE_AFTER_RESUME, MigrationOptions
from proto.vmotion.v1.status_pb2 import MigrationPhase
from proto.vpxd.v1.service_pb2 import (
    CreateVmRequest,
    ListHostsRequest,
    MigrateVmRequest,
    VmOperationRequest,
)
from runtime.faults import VimFault
from vpxd.cli.client import VpxdClient, connect, task_error
from vpxd.cli.config import config_from_environment


async def tour(vpxd: VpxdClient, name: str) -> None:
    """:raises VimFault: what vpxd or a host refused, with typed fields and the chain of causes."""
    # 1. The inventory. Certificates are checked both ways; without one of this cluster nobody gets an answer.
    hosts = (await vpxd.call(vpxd.stub.ListHosts, ListHostsRequest())).hosts
    for host in hosts:
        print(f"{host.name}: {host.vm_count} VMs, vMotion on {host.info.vmotion_address}")
    source, destination = hosts[0].name, hosts[1].name

    # 2. Operations are tasks: the rpc answers at once, `wait` follows the task to its end.
    config = VmConfig(
        name=name,
        vcpus=1,
        ram_bytes=512 << 20,
        boot=Boot(
            kernel="[shared] images/vmlinuz",
            initrd="[shared] images/initrd.img",
            kernel_command_line="console=ttyS0 quiet panic=-1",
        ),
    )
    task = await vpxd.call(
        vpxd.stub.CreateVm, CreateVmRequest(config=config, datastore="shared", host=source)
    )
    vm = (await vpxd.wait(task.id)).result
    task = await vpxd.call(vpxd.stub.PowerOnVm, VmOperationRequest(vm=vm))
    await vpxd.wait(task.id)
    print(f"{name} is {vm}, and runs on {source}")

    # 3. A live migration. While its task runs it carries a MigrationStatus: phase, pass, pages, rates.
    options = MigrationOptions(verify=VERIFY_MODE_AFTER_RESUME)
    task = await vpxd.call(vpxd.stub.MigrateVm, MigrateVmRequest(vm=vm, host=destination, options=options))
    migration = task.id
    async for task in vpxd.watch(migration):
        phase = MigrationPhase.Name(task.migration.phase).removeprefix("MIGRATION_PHASE_").lower()
        print(f"{task.progress_percent:3} %  {phase}  {task.description}")
    if task.HasField("error"):
        raise task_error(task)

    # 4. What it cost: the guest stood still for `stun_ms`, and these are its parts.
    status = task.migration
    parts = status.stun_parts
    print(f"{name} runs on {destination}: stunned for {status.stun_ms:.1f} ms")
    print(
        f"  stop {parts.stop_ms:.1f}, last pages {parts.last_pages_ms:.1f}, device state {parts.device_state_ms:.1f}"
    )
    print(f"  hand-over {parts.hand_over_ms:.1f}, resume {parts.resume_ms:.1f}")
    print(f"  memory verified: {status.memory_verified}, encrypted: {status.encrypted}")

    # 5. Clean up.
    for method in (vpxd.stub.PowerOffVm, vpxd.stub.DestroyVm):
        task = await vpxd.call(method, VmOperationRequest(vm=vm))
        await vpxd.wait(task.id)


async def main() -> None:
    """Reads the arguments and takes the tour."""
    parser = argparse.ArgumentParser(description="A tour of the API.")
    parser.add_argument("--config", type=Path, help="client.json; else as `vpx` finds it")
    parser.add_argument("--name", default="tour01", help="the VM's name")
    arguments = parser.parse_args()
    async with connect(config_from_environment(arguments.config)) as vpxd:
        try:
            await tour(vpxd, arguments.name)
        except VimFault as fault:
            raise SystemExit(f"{type(fault).__name__}: {fault} (noticed by {fault.origin})") from fault


if __name__ == "__main__":
    asyncio.run(main())
