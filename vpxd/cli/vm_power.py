"""`vpx vm on|off|reset|destroy|unregister`: operations that name nothing but the VM."""

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from proto.vim.v1 import task_pb2
from proto.vpxd.v1 import service_pb2
from vpxd.cli.command import command
from vpxd.cli.errors import UsageError
from vpxd.cli.session import Session
from vpxd.cli.vm_commands import VmName, app

if TYPE_CHECKING:
    from collections.abc import Callable

    import grpc

    from proto.vpxd.v1.service_pb2_grpc import VpxdAsyncStub

    Call = grpc.aio.UnaryUnaryCall[service_pb2.VmOperationRequest, task_pb2.TaskInfo]
    ChooseMethod = Callable[[VpxdAsyncStub], Callable[..., Call]]


@dataclass(frozen=True)
class OneVm:
    vm: VmName


@dataclass(frozen=True)
class DestroyVm:
    vm: VmName
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask, even on a terminal.")] = False


@command(app, "on", OneVm, task=True)
async def power_on(session: Session, arguments: OneVm) -> None:
    """Power a VM on."""
    await _operate(session, arguments.vm, lambda stub: stub.PowerOnVm, "is powered on")


@command(app, "off", OneVm, task=True)
async def power_off(session: Session, arguments: OneVm) -> None:
    """Power a VM off at once, as pulling its plug would."""
    await _operate(session, arguments.vm, lambda stub: stub.PowerOffVm, "is powered off")


@command(app, "reset", OneVm, task=True)
async def reset(session: Session, arguments: OneVm) -> None:
    """Reset a powered-on VM: the guest boots anew."""
    await _operate(session, arguments.vm, lambda stub: stub.ResetVm, "is reset")


@command(app, "unregister", OneVm, task=True)
async def unregister(session: Session, arguments: OneVm) -> None:
    """Forget a powered-off VM; its files stay."""
    await _operate(session, arguments.vm, lambda stub: stub.UnregisterVm, "is unregistered; its files stay")


@command(app, "destroy", DestroyVm, task=True)
async def destroy(session: Session, arguments: DestroyVm) -> None:
    """Delete a powered-off VM and its files."""
    if not arguments.yes and sys.stdin.isatty():
        session.stderr.print(f"Delete {arguments.vm} and all its files? [y/N] ", end="")
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise UsageError("Nothing was deleted.")
    await _operate(session, arguments.vm, lambda stub: stub.DestroyVm, "and its files are deleted")


async def _operate(session: Session, vm: str, choose: "ChooseMethod", done: str) -> None:
    from vpxd.cli.task_progress import finish

    async with session.connect() as client:
        request = service_pb2.VmOperationRequest(vm=vm)
        task = await client.call(choose(client.stub), request, session.call_timeout_s)
        await finish(session, client, task, f"{task.entity_name or vm} {done}.")
