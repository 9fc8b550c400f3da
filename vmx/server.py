"""The vmx process: its socket, its pid file, its one VM.

SIGTERM ends the process and not the guest: QEMU runs on, to be found again by its sockets and descriptors. A migration
under way is undone first or, past its point of no return, finished: nobody would be there to do it.
"""

import asyncio
import os

import structlog

from proto.vmx.v1 import service_pb2_grpc
from runtime.ondisk.durable import write_durably
from runtime.rpc.server import unix_server
from vmx.config import Config
from vmx.guest.cpu_time import start_time_of
from vmx.offline_vm import OfflineVm
from vmx.service import VmxService
from vmx.virtual_machine import VirtualMachine

# A power-off's or a completion's own answer still has to leave.
_STOP_GRACE_S = 2.0

_log = structlog.get_logger(__name__)


async def serve(config: Config, stop: asyncio.Event) -> None:
    """Serve until the VM has ended or `stop` is set."""
    vm = VirtualMachine(config)
    offline = OfflineVm(config, vm.end_without_guest)
    origin = f"vmx@{config.host_name}"
    server = unix_server(config.run_dir / "vmx.sock", origin)
    service_pb2_grpc.add_VmxServicer_to_server(VmxService(vm, offline, config.vm_uuid, origin), server.grpc)
    pid = os.getpid()
    write_durably(config.run_dir / "vmx.pid", f"{pid} {start_time_of(pid)}\n".encode())
    await server.start()
    _log.info("vmx_ready", vm_uuid=config.vm_uuid, run_dir=str(config.run_dir))
    waiting = [asyncio.create_task(vm.ended.wait()), asyncio.create_task(stop.wait())]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()
    await vm.let_go()
    await offline.let_go()
    await server.stop(_STOP_GRACE_S)
    _log.info("vmx_ended", guest_ended=vm.ended.is_set())
