"""Faults and operation ids across two hops: caller -> vpxa (network) -> hostd (unix socket)."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc
import pytest
import structlog
from structlog.testing import capture_logs

from proto.host.v1 import operations_pb2
from proto.hostd.v1 import service_pb2_grpc as hostd_grpc
from proto.vpxa.v1 import service_pb2_grpc as vpxa_grpc
from runtime.faults import (
    FileLocked,
    GuestStartFailed,
    HostNotReachable,
    InvalidPowerState,
    NotSupported,
    RequestCanceled,
    SystemFault,
    TimedOut,
    VimFault,
)
from runtime.rpc.channel import network_channel, unix_channel
from runtime.rpc.faults import remote_faults, remote_stream
from runtime.rpc.identity import Role
from runtime.rpc.operation_id import current_operation_id, use_operation_id
from runtime.rpc.server import Context, RpcServer, network_server, unix_server
from tests.integration.runtime.conftest import Pki

Serve = Callable[[RpcServer], Awaitable[RpcServer]]
_TIMEOUT_S = 10.0


class _FakeHostd(hostd_grpc.HostdServicer):
    """Raises what it is given."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.cause: BaseException | None = None
        self.operation_ids: list[str] = []
        self.watcher_ended = asyncio.Event()
        self.watcher_began = asyncio.Event()

    async def GetHost(
        self, request: operations_pb2.GetHostRequest, context: Context
    ) -> operations_pb2.GetHostResponse:
        self.operation_ids.append(current_operation_id())
        if self.error is not None:
            raise self.error from self.cause
        return operations_pb2.GetHostResponse()

    async def WatchHost(
        self, request: operations_pb2.WatchHostRequest, context: Context
    ) -> AsyncIterator[operations_pb2.WatchHostResponse]:
        self.operation_ids.append(current_operation_id())
        try:
            yield operations_pb2.WatchHostResponse()
            if self.error is not None:
                raise self.error from self.cause
            self.watcher_began.set()
            await asyncio.Event().wait()
        finally:
            self.watcher_ended.set()


class _FakeVpxa(vpxa_grpc.VpxaServicer):
    """Hands everything to hostd."""

    def __init__(self, hostd: grpc.aio.Channel) -> None:
        self._hostd = hostd_grpc.HostdStub(hostd)

    async def GetHost(
        self, request: operations_pb2.GetHostRequest, context: Context
    ) -> operations_pb2.GetHostResponse:
        with remote_faults("hostd@esx01"):
            return await self._hostd.GetHost(request, timeout=_TIMEOUT_S)

    async def WatchHost(
        self, request: operations_pb2.WatchHostRequest, context: Context
    ) -> AsyncIterator[operations_pb2.WatchHostResponse]:
        async for response in remote_stream(self._hostd.WatchHost(request), "hostd@esx01"):
            yield response


class Chain:
    """Both daemons and the caller's stub."""

    def __init__(self, hostd: _FakeHostd, hostd_server: RpcServer, stub: "vpxa_grpc.VpxaAsyncStub") -> None:
        self.hostd = hostd
        self.hostd_server = hostd_server
        self.stub = stub

    async def get_host(self) -> None:
        with remote_faults("vpxa@esx01"):
            await self.stub.GetHost(operations_pb2.GetHostRequest(), timeout=_TIMEOUT_S)

    async def watch_host(self) -> list[operations_pb2.WatchHostResponse]:
        seen = []
        call = self.stub.WatchHost(operations_pb2.WatchHostRequest(), timeout=_TIMEOUT_S)
        async for response in remote_stream(call, "vpxa@esx01"):
            seen.append(response)
            self.last_seen = seen
        return seen


@pytest.fixture
async def chain(pki: Pki, serve: Serve, run_directory: Path) -> AsyncIterator[Chain]:
    hostd = _FakeHostd()  # type: ignore[abstract]
    hostd_server = unix_server(run_directory / "hostd.sock", "hostd@esx01")
    hostd_grpc.add_HostdServicer_to_server(hostd, hostd_server.grpc)
    await serve(hostd_server)
    async with unix_channel(run_directory / "hostd.sock") as to_hostd:
        vpxa_server = network_server("127.0.0.1:0", pki.host, frozenset({Role.VPXD}), "vpxa@esx01")
        vpxa = _FakeVpxa(to_hostd)  # type: ignore[abstract]
        vpxa_grpc.add_VpxaServicer_to_server(vpxa, vpxa_server.grpc)
        await serve(vpxa_server)
        async with network_channel(vpxa_server.address, pki.vpxd, Role.HOST, "esx01") as to_vpxa:
            yield Chain(hostd, hostd_server, vpxa_grpc.VpxaStub(to_vpxa))


async def test_fault_across_two_hops_keeps_class_fields_cause_and_origin(chain: Chain) -> None:
    chain.hostd.error = GuestStartFailed("The guest didn't start.", "no memory")
    chain.hostd.cause = FileLocked("Locked.", "[shared] web01/web01.runlock", "esx03")
    with pytest.raises(GuestStartFailed) as caught:
        await chain.get_host()
    fault, cause = caught.value, caught.value.__cause__
    assert (str(fault), fault.reason, fault.origin) == ("The guest didn't start.", "no memory", "hostd@esx01")
    assert isinstance(cause, FileLocked)
    assert (cause.path, cause.owner, cause.origin) == ("[shared] web01/web01.runlock", "esx03", "hostd@esx01")


async def test_fault_in_a_stream_arrives_after_what_was_sent(chain: Chain) -> None:
    chain.hostd.error = InvalidPowerState("It is off.", "poweredOff", "poweredOn")
    with pytest.raises(InvalidPowerState) as caught:
        await chain.watch_host()
    assert len(chain.last_seen) == 1
    assert (caught.value.required, caught.value.origin) == ("poweredOn", "hostd@esx01")


async def test_canceled_task_is_no_cancelled_error_at_the_caller(chain: Chain) -> None:
    chain.hostd.error = RequestCanceled("The user canceled it.", "pre-copy")
    with pytest.raises(RequestCanceled) as caught:
        await chain.get_host()
    assert caught.value.phase == "pre-copy"


@pytest.mark.parametrize("streaming", [False, True])
async def test_unhandled_exception_is_logged_once_and_tells_the_caller_nothing(
    chain: Chain, streaming: bool
) -> None:
    chain.hostd.error = ValueError("secret: /etc/shadow")
    use_operation_id("op-77")
    with capture_logs() as logs, pytest.raises(SystemFault) as caught:
        await (chain.watch_host() if streaming else chain.get_host())
    told = repr(caught.value) + repr(caught.value.__cause__)
    assert "secret" not in told
    assert "Traceback" not in told
    assert (caught.value.origin, caught.value.operation_id) == ("hostd@esx01", "op-77")
    errors = [entry for entry in logs if entry["event"] == "system_error"]
    assert len(errors) == 1
    assert str(errors[0]["exc_info"]) == "secret: /etc/shadow"


async def test_exception_group_of_a_task_group_tells_its_fault(chain: Chain) -> None:
    chain.hostd.error = ExceptionGroup("unhandled errors in a TaskGroup", [FileLocked("Locked.", "a", "b")])
    with pytest.raises(FileLocked):
        await chain.get_host()


async def test_operation_id_reaches_every_daemon_and_its_log(chain: Chain) -> None:
    use_operation_id("3f2a91bc")
    await chain.get_host()
    await chain.get_host()
    assert chain.hostd.operation_ids == ["3f2a91bc", "3f2a91bc"]


async def test_operation_ids_of_concurrent_calls_stay_apart(chain: Chain) -> None:
    async def call(number: int) -> None:
        use_operation_id(f"op-{number}")
        await chain.get_host()

    async with asyncio.TaskGroup() as group:
        for number in range(20):
            group.create_task(call(number))
    assert sorted(chain.hostd.operation_ids) == sorted(f"op-{number}" for number in range(20))


async def test_call_outside_of_any_operation_gets_a_fresh_id(chain: Chain) -> None:
    structlog.contextvars.clear_contextvars()
    await chain.get_host()
    assert len(chain.hostd.operation_ids[0]) == 8


async def test_hostd_that_stops_ends_a_stream_with_host_not_reachable(chain: Chain) -> None:
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(_fault_of_watch(chain))
        await chain.hostd.watcher_began.wait()
        await chain.hostd_server.stop(0.0)
    assert isinstance(watching.result(), HostNotReachable)
    with pytest.raises(HostNotReachable):
        await chain.get_host()


async def _fault_of_watch(chain: Chain) -> VimFault | None:
    try:
        await chain.watch_host()
    except VimFault as fault:
        return fault
    return None


async def test_caller_that_leaves_a_stream_ends_it_at_the_far_end(chain: Chain) -> None:
    watching = asyncio.create_task(chain.watch_host())
    await chain.hostd.watcher_began.wait()
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
    async with asyncio.timeout(_TIMEOUT_S):
        await chain.hostd.watcher_ended.wait()


async def test_caller_that_stops_reading_a_stream_ends_it_at_the_far_end(chain: Chain) -> None:
    call = chain.stub.WatchHost(operations_pb2.WatchHostRequest(), timeout=60)
    async for _ in remote_stream(call, "vpxa@esx01"):
        break
    async with asyncio.timeout(_TIMEOUT_S):
        await chain.hostd.watcher_ended.wait()
    assert chain.hostd.watcher_began.is_set()


async def test_deadline_becomes_timed_out(chain: Chain) -> None:
    with pytest.raises(TimedOut), remote_faults("vpxa@esx01"):
        async for _ in chain.stub.WatchHost(operations_pb2.WatchHostRequest(), timeout=0.3):
            pass


async def test_method_that_isnt_there_becomes_not_supported(chain: Chain) -> None:
    with pytest.raises(NotSupported) as caught, remote_faults("vpxa@esx01"):
        await chain.stub.PowerOnVm(operations_pb2.VmRequest(), timeout=_TIMEOUT_S)
    assert caught.value.origin == "vpxa@esx01"
    with pytest.raises(NotSupported), remote_faults("vpxa@esx01"):
        async for _ in chain.stub.WatchMigration(operations_pb2.MigrationRequest(), timeout=_TIMEOUT_S):
            pass
    async with unix_channel(Path(chain.hostd_server.address.removeprefix("unix:"))) as channel:
        unknown: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            "/no.such.Service/Method"
        )
        with pytest.raises(NotSupported), remote_faults("hostd@esx01"):
            await unknown(b"", timeout=_TIMEOUT_S)


async def test_long_fault_fits_into_the_trailers(chain: Chain) -> None:
    error: VimFault = InvalidPowerState("x" * 5000, "s" * 5000, "r" * 5000)
    chain.hostd.cause = InvalidPowerState("y" * 5000, "ü" * 5000, "r" * 5000)
    chain.hostd.error = error
    with pytest.raises(InvalidPowerState) as caught:
        await chain.get_host()
    assert caught.value.state.startswith("sss")
