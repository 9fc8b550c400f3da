"""Where page data flows and what it looks like there: by the sockets and by the bytes on the wire.

A pattern that is nowhere else is written into the guest's RAM. All packets of the machine's loopback interface are
looked at while the VM moves. The migration that is in the clear by explicit wish is the control: there the pattern
is seen, so the search would find it.
"""

import asyncio
import os
import secrets
import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from demo.processes import ProcessId, command_of
from proto.host.v1 import operations_pb2
from proto.vim.v1 import task_pb2
from proto.vmotion.v1 import spec_pb2, status_pb2
from runtime import faults
from runtime.rpc.faults import fault_from_proto
from tests.framework.cluster_rig import MIB, ClusterRig, small_vm, until
from tests.framework.packet_capture import Capture, loopback_capture
from tests.framework.tcp_sockets import TcpSocket, tcp_sockets
from vmx.guest.pages import PAGE_BYTES
from vmx.stream import SourceStreams, StreamSecret, StreamSpec
from vmx.stream.frames import FrameHeader, FrameType

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="package")]
PATTERN_OFFSET = 32 * MIB
PATTERN_BYTES = 4 * MIB
LITTLE_BYTES = 256 * 1024


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def web01(rig: ClusterRig) -> AsyncIterator[str]:
    """A VM that runs on esx01 at the start of the module."""
    yield await rig.power_on_new("web01", "esx01", config=small_vm(rate_mib_s=1))
    await rig.remove("web01")


def guest_memory(guest: ProcessId) -> Path:
    """The guest's RAM: the memfd that its QEMU has open."""
    for entry in os.scandir(f"/proc/{guest.pid}/fd"):
        with suppress(OSError):
            if os.readlink(entry.path).startswith("/memfd:"):
                return Path(entry.path)
    raise AssertionError("the guest has no memfd")


def write_pattern(guest: ProcessId) -> bytes:
    """Fills 4 MiB of the guest's RAM with a secret of 32 bytes, again and again; answers it."""
    secret = secrets.token_bytes(32)
    with guest_memory(guest).open("r+b", buffering=0) as memory:
        os.pwrite(memory.fileno(), secret * (PATTERN_BYTES // len(secret)), PATTERN_OFFSET)
    return secret


def has_pattern(guest: ProcessId, secret: bytes) -> bool:
    with guest_memory(guest).open("rb", buffering=0) as memory:
        found = os.pread(memory.fileno(), PATTERN_BYTES, PATTERN_OFFSET)
    return found == secret * (PATTERN_BYTES // len(secret))


def vmotion_addresses(rig: ClusterRig) -> set[str]:
    """Of esx01 and esx02, between which the VM moves."""
    return {rig.layout.vmotion_address(number) for number in (1, 2)}


def cluster_pids(rig: ClusterRig) -> list[int]:
    daemons = [rig.cluster.process(daemon.name) for daemon in rig.layout.daemons()]
    return [one.pid for one in (*daemons, *rig.cluster.vm_processes()) if one is not None]


async def captured_migration(rig: ClusterRig, host: str, options: spec_pb2.MigrationOptions) -> Capture:
    """All packets of a migration, and only those of this cluster's connections; from sockets and addresses."""
    own: set[tuple[str, int]] = set()
    try:
        with loopback_capture() as capture:
            task = asyncio.ensure_future(rig.migrate("web01", host, options))
            while not task.done():
                own |= {(one.address, one.port) for one in tcp_sockets(cluster_pids(rig))}
                await asyncio.wait({task}, timeout=0.02)
            await task
    except PermissionError:
        pytest.skip("capturing packets needs CAP_NET_RAW: run the test as root")
    assert capture.lost == 0
    addresses = {address for address, _ in own} - {"127.0.0.1", "0.0.0.0", "::"}
    for flow in list(capture.payloads):
        if not (flow.ends & own or flow.addresses & addresses):
            del capture.payloads[flow]  # somebody else's on this machine
    return capture


async def test_encrypted_migration_shows_nothing_of_the_guest_and_flows_between_vmotion_addresses_only(
    rig: ClusterRig, web01: str
) -> None:
    (guest,) = rig.guests()
    secret = write_pattern(guest)
    capture = await captured_migration(rig, "esx02", spec_pb2.MigrationOptions())
    (guest,) = rig.guests()
    assert has_pattern(guest, secret), "the pattern didn't get there, so nothing was proved"
    assert capture.flows_with(secret) == []
    assert capture.flows_with(secret[:8]) == []
    volume: Counter[frozenset[str]] = Counter()
    for flow, payload in capture.payloads.items():
        volume[flow.addresses] += len(payload)
    pair = frozenset(vmotion_addresses(rig))
    assert volume[pair] > PATTERN_BYTES
    others = {tuple(sorted(key)): size for key, size in volume.items() if key != pair}
    assert len(others) >= 2, "the management network wasn't seen at all"
    assert all(size < LITTLE_BYTES for size in others.values()), others
    assert not any(set(addresses) & pair for addresses in others), others
    await rig.assert_alive("web01", "esx02")


async def test_migration_in_the_clear_by_explicit_wish_shows_the_pattern_between_vmotion_addresses(
    rig: ClusterRig, web01: str
) -> None:
    (guest,) = rig.guests()
    secret = write_pattern(guest)
    options = spec_pb2.MigrationOptions(encryption=spec_pb2.ENCRYPTION_MODE_DISABLED)
    capture = await captured_migration(rig, "esx01", options)
    found = capture.flows_with(secret)
    assert found, "the negative control: in the clear the search has to find it"
    assert {flow.addresses for flow in found} == {frozenset(vmotion_addresses(rig))}
    (guest,) = rig.guests()
    assert has_pattern(guest, secret)
    await rig.assert_alive("web01", "esx01")


async def test_sockets_of_vmx_are_bound_to_vmotion_addresses_and_qemu_has_none(
    rig: ClusterRig, web01: str
) -> None:
    task = await rig.start_slow("web01", "esx02")
    guests = {guest.pid for guest in rig.guests()}
    vmx = {one.pid for one in rig.cluster.vm_processes() if command_of(one)[-2:] == ["-m", "vmx"]}
    assert (len(guests), len(vmx)) == (2, 2)
    sockets = tcp_sockets(vmx)
    assert len(sockets) >= 4, "control and pages, at both ends"
    for one in sockets:
        assert {one.address, one.remote_address} == vmotion_addresses(rig), one
    assert tcp_sockets(guests) == []
    daemons = set(cluster_pids(rig)) - vmx
    assert not [one for one in tcp_sockets(daemons) if one.address in vmotion_addresses(rig)]
    await rig.cancel(task)
    await rig.ended(task)
    await rig.assert_alive("web01", "esx01")


# -- strangers on the vMotion port ----------------------------------------------------------------------------------


async def listening_port(rig: ClusterRig, number: int) -> TcpSocket:
    """Where the destination's vmx on host `number` waits for its source."""
    found: list[TcpSocket] = []

    def listens() -> bool:
        pids = [one.pid for one in rig.cluster.vm_processes()]
        found[:] = [one for one in tcp_sockets(pids) if one.listens]
        return bool(found)

    await until(listens, "the destination listens")
    (one,) = found
    assert one.address == rig.layout.vmotion_address(number)
    return one


async def knock(source: str, door: TcpSocket, data: bytes) -> bytes:
    """All that is answered to these bytes until the other side closes the connection."""

    def talk() -> bytes:
        with socket.create_connection(
            (door.address, door.port), timeout=15, source_address=(source, 0)
        ) as sock:
            answer = b""
            try:
                sock.sendall(data)
                while part := sock.recv(4096):
                    answer += part
            except ConnectionError:
                return answer
            return answer

    return await asyncio.to_thread(talk)


def hello(migration_id: int) -> bytes:
    """A well-formed first message of somebody who knows the protocol but not the secret (PROTOCOL.md)."""
    magic = b"\x89VPXMIG\n"
    numbers = b"".join(number.to_bytes(2, "little") for number in (0, 2, 1, 1, 2))
    return (
        magic
        + bytes((1, 1))
        + numbers
        + migration_id.to_bytes(8, "little")
        + secrets.token_bytes(32)
        + bytes(4)
    )


async def test_oversize_frame_of_a_proven_peer_ends_the_destination_with_a_typed_fault(
    rig: ClusterRig, web01: str
) -> None:
    spec = await rig.spec("web01", "esx02")
    spec.options.streams = 1
    async with rig.vpxa("esx02") as vpxa:
        prepared = await vpxa.PrepareDestination(
            operations_pb2.PrepareDestinationRequest(spec=spec), timeout=20
        )
        ticket = prepared.ticket
        await rig.until_reserved("esx02", spec.vm.ram_bytes)
        streams = await SourceStreams.connect(
            StreamSpec(
                StreamSecret(spec.migration_id, spec.key, ticket.token),
                spec.source.vmotion_address,
                ticket.vmotion_address,
                ticket.port,
                spec.vm.ram_bytes,
                1,
            )
        )
        try:
            frame = FrameHeader(FrameType.PAGES, 300 * PAGE_BYTES, 0, 1, 0, 300)
            streams._workers[0].channel.send_frame(frame)
            request = operations_pb2.MigrationRequest(migration_id=spec.migration_id)
            last = [update async for update in vpxa.WatchMigration(request, timeout=20)][-1]
        finally:
            with suppress(grpc.RpcError, OSError):
                await streams.close()
    assert last.status.phase == status_pb2.MIGRATION_PHASE_FAILED
    fault = fault_from_proto(last.fault)
    assert isinstance(fault, faults.MigrationFault)
    assert fault.origin.endswith("@esx02")
    await rig.until_reserved("esx02", 0, within_s=5)
    await rig.assert_alive("web01", "esx01")
    assert len(rig.guests()) == 1


async def test_strangers_on_the_vmotion_port_get_nothing_and_the_migration_succeeds(
    rig: ClusterRig, web01: str
) -> None:
    source, elsewhere = rig.layout.vmotion_address(1), rig.layout.management_address(1)
    # The source's hostd is stopped, so the destination waits for it while strangers knock.
    rig.cluster.signal("esx01-hostd", signal.SIGSTOP)
    try:
        options = spec_pb2.MigrationOptions(
            bandwidth_bytes_per_s=4 * MIB, verify=spec_pb2.VERIFY_MODE_AFTER_RESUME
        )
        task = await rig.start_migration("web01", "esx02", options)
        door = await listening_port(rig, 2)
        first = hello(1)
        answers = await asyncio.gather(
            knock(source, door, b"GET / HTTP/1.1\r\n\r\n" + bytes(64)),
            knock(source, door, secrets.token_bytes(1 << 20)),
            knock(source, door, bytes(64)),
            knock(source, door, first),
            knock(source, door, first + secrets.token_bytes(4096)),
            knock(elsewhere, door, first),
        )
    finally:
        rig.cluster.signal("esx01-hostd", signal.SIGCONT)
    for answer in answers:
        assert len(answer) <= 16, (
            answer
        )  # a REFUSAL at most: no challenge without the migration's id, no secret
    info = await rig.ended(task)
    assert info.state == task_pb2.TASK_STATE_SUCCESS, info.error
    assert info.migration.memory_verified
    await rig.assert_alive("web01", "esx02")
    log = (
        rig.layout.host_run_directory("esx02") / (await rig.vm("web01")).config.uuid[:13] / "vmx.log"
    ).read_text()
    assert log.count("stream_handshake_refused") == len(answers)
    assert "StrangerAddress" in log
