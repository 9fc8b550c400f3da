"""The answer to a call that streams upwards, when the peer ends it before all has been sent.

gRPC's asyncio client fails the message that is on its way then, and puts "Internal error from Core" in the place of the
status that the peer gives (`set_internal_error` in grpc/_cython/_cygrpc/aio/call.pyx.pxi, found with grpcio 1.85): a
fault such as NoDiskSpace would be lost. The peer's status comes before that, and is noted at that moment, or a little
after it, and is waited for.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import grpc

_T = TypeVar("_T")
_CORE_DETAILS = "Internal error from Core"
_STATUS_TIMEOUT_S = 2.0
# Nothing tells that a status was replaced: it is looked at this often, for as long as the above at most.
_STATUS_INTERVAL_S = 0.005


async def answer_of(call: "grpc.aio.StreamUnaryCall[Any, _T]") -> _T:
    """The peer's answer to a call that was made just now.

    :raises grpc.aio.AioRpcError: with the peer's status, where it gave one.
    """
    told: list[grpc.aio.AioRpcError] = []

    def note(ended: "grpc.aio.StreamUnaryCall[Any, _T]") -> None:
        details = _known(ended.details())
        if details != _CORE_DETAILS:
            trailing = _known(ended.trailing_metadata())
            told.append(grpc.aio.AioRpcError(_known(ended.code()), grpc.aio.Metadata(), trailing, details))

    call.add_done_callback(note)
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        if error.details() != _CORE_DETAILS:
            raise
        deadline = asyncio.get_running_loop().time() + _STATUS_TIMEOUT_S
        while not told and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(_STATUS_INTERVAL_S)
            note(call)
        if not told:
            raise
        raise told[0] from None


def _known(value: Coroutine[Any, Any, _T]) -> _T:
    """What a coroutine that has nothing to wait for returns, without waiting."""
    try:
        value.send(None)
    except StopIteration as result:
        return result.value  # type: ignore[no-any-return]
    value.close()
    raise RuntimeError("the call has ended, but its status isn't known")
