"""What the demonstrations order of vpxd: a task and its success, and a migration that is shown while it runs."""

from collections.abc import Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, TypeVar

from demo.screen import Screen
from proto.vim.v1 import task_pb2
from proto.vpxd.v1 import service_pb2
from vpxd.cli.client import VpxdClient, task_error

if TYPE_CHECKING:
    import grpc

    Request = TypeVar("Request")
    Method = Callable[..., grpc.aio.UnaryUnaryCall[Request, task_pb2.TaskInfo]]
else:
    Request = TypeVar("Request")

TASK_TIMEOUT_S = 120.0


async def order(client: VpxdClient, method: "Method[Request]", request: Request) -> task_pb2.TaskInfo:
    """Starts a task and waits for its success. Raises as VpxdClient.wait."""
    task = await client.call(method, request)
    return await client.wait(task.id, TASK_TIMEOUT_S)


async def power_off_and_destroy(client: VpxdClient, vm: str) -> None:
    """The VM and its files are gone. Raises as VpxdClient.wait."""
    await order(client, client.stub.PowerOffVm, service_pb2.VmOperationRequest(vm=vm))
    await order(client, client.stub.DestroyVm, service_pb2.VmOperationRequest(vm=vm))


async def watched(
    client: VpxdClient, screen: Screen, title: str, begun: task_pb2.TaskInfo
) -> task_pb2.TaskInfo:
    """Shows a migration's task until its success.

    :raises VimFault: it failed; the VM is as it was.
    """
    task = begun
    with screen.migration(title) as view:
        async with aclosing(client.watch(begun.id, TASK_TIMEOUT_S)) as states:
            async for task in states:
                view.update(task)
    if task.state == task_pb2.TASK_STATE_ERROR:
        raise task_error(task)
    return task
