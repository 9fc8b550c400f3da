"""Who knocks on a vMotion port: whatever a stranger does costs that one connection, and the right peer gets in."""

import asyncio
import contextlib
import dataclasses
import secrets
import socket
from collections.abc import AsyncIterator

import pytest

from tests.wire.recording_relay import recording_relay
from vmx.stream import handshake
from vmx.stream.errors import (
    ChannelsMissing,
    ConnectFailed,
    HandshakeTimeout,
    NotOurProtocol,
    ProofRejected,
    RefusalCode,
    RefusedByPeer,
)
from vmx.stream.handshake import Hello
from vmx.stream.rendezvous import MAX_PENDING_HANDSHAKES, ChannelListener, OpenedChannel, open_channel
from vmx.stream.spec import FIRST_PORT, Encryption, ReceiverSpec, StreamSecret, StreamSpec, StreamTimeouts

SOURCE, DESTINATION, STRANGER = "127.0.2.1", "127.0.2.2", "127.0.2.66"
SECRET = StreamSecret(4711, secrets.token_bytes(32), secrets.token_bytes(32))
QUICK = StreamTimeouts(connect_s=2.0, handshake_s=1.0)
HELLO = Hello(0, 2, SECRET.migration_id, Encryption.AES_256_GCM, bytes(32))


@dataclasses.dataclass
class Waiting:
    """A listener that waits for its source."""

    listener: ChannelListener
    accepting: asyncio.Task[list[OpenedChannel]]
    spec: StreamSpec

    async def right_peer_gets_in(self) -> None:
        """The source comes, now: all its channels are let in and agree on their keys."""
        opened = await asyncio.gather(*(open_channel(self.spec, index) for index in range(3)))
        async with asyncio.timeout(5):
            accepted = await self.accepting
        assert [c.index for c in accepted] == [0, 1, 2]
        assert [c.keys for c in accepted] == [c.keys for c in opened]
        assert len({c.keys.to_destination for c in accepted}) == 3
        for channel in [*accepted, *opened]:
            channel.sock.close()


@contextlib.asynccontextmanager
async def waiting(timeouts: StreamTimeouts = QUICK, deadline_s: float = 30.0) -> AsyncIterator[Waiting]:
    listener = ChannelListener.bind(ReceiverSpec(SECRET, DESTINATION, (SOURCE,), 2, timeouts=timeouts))
    spec = StreamSpec(SECRET, SOURCE, DESTINATION, listener.port, 1 << 20, 2, timeouts=timeouts)
    accepting = asyncio.create_task(listener.accept_all(deadline_s))
    try:
        yield Waiting(listener, accepting, spec)
    finally:
        accepting.cancel()
        for outcome in await asyncio.gather(accepting, return_exceptions=True):
            if isinstance(outcome, list):
                for channel in outcome:
                    channel.sock.close()
        listener.close()


async def connect(port: int, address: str = SOURCE) -> socket.socket:
    sock = socket.socket()
    sock.setblocking(False)
    sock.bind((address, 0))
    await asyncio.get_running_loop().sock_connect(sock, (DESTINATION, port))
    return sock


async def all_that_comes(sock: socket.socket) -> bytes:
    """What the listener says until it hangs up."""
    data = b""
    async with asyncio.timeout(5):
        try:
            while part := await asyncio.get_running_loop().sock_recv(sock, 4096):
                data += part
        except ConnectionResetError:
            return data
    return data


GARBAGE = {
    "http": b"GET / HTTP/1.1\r\nHost: esx02\r\n\r\n" * 4,
    "zeros": bytes(4096),
    "noise": secrets.token_bytes(4096),
    "magic_then_noise": handshake.MAGIC + secrets.token_bytes(200),
    "nothing": b"",
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
async def test_garbage_gets_no_answer_and_harms_nobody(garbage: bytes) -> None:
    async with waiting() as w:
        sock = await connect(w.listener.port)
        await asyncio.get_running_loop().sock_sendall(sock, garbage)
        sock.shutdown(socket.SHUT_WR)
        assert await all_that_comes(sock) == b""
        sock.close()
        assert w.listener.refused_count == 1
        await w.right_peer_gets_in()


REFUSED = {
    "wrong_version": (dataclasses.replace(HELLO, oldest_version=7, newest_version=9), RefusalCode.VERSION),
    "wrong_migration": (dataclasses.replace(HELLO, migration_id=1), RefusalCode.MIGRATION_ID),
    "wrong_count": (dataclasses.replace(HELLO, channel_count=5), RefusalCode.CHANNEL),
    "index_too_high": (dataclasses.replace(HELLO, channel_index=3), RefusalCode.CHANNEL),
    "in_the_clear": (dataclasses.replace(HELLO, encryption=Encryption.DISABLED), RefusalCode.ENCRYPTION),
}


@pytest.mark.parametrize(("hello", "code"), REFUSED.values(), ids=REFUSED.keys())
async def test_unwelcome_hello_is_refused_with_its_reason(hello: Hello, code: RefusalCode) -> None:
    async with waiting() as w:
        sock = await connect(w.listener.port)
        await asyncio.get_running_loop().sock_sendall(sock, handshake.encode_hello(hello))
        assert await all_that_comes(sock) == handshake.encode_refusal(code)
        sock.close()
        await w.right_peer_gets_in()


@pytest.mark.parametrize("field", ["token", "key"])
async def test_source_with_another_secret_finds_no_destination(field: str) -> None:
    """The listener proves itself first: a source with other secrets ends the handshake itself."""
    async with waiting() as w:
        other = dataclasses.replace(SECRET, **{field: secrets.token_bytes(32)})  # type: ignore[arg-type]
        with pytest.raises(ProofRejected):
            await open_channel(dataclasses.replace(w.spec, secret=other), 0)
        await w.right_peer_gets_in()


async def test_peer_that_goes_on_without_the_token_is_refused() -> None:
    async with waiting() as w:
        loop = asyncio.get_running_loop()
        sock = await connect(w.listener.port)
        hello = handshake.encode_hello(HELLO)
        await loop.sock_sendall(sock, hello)
        challenge = await loop.sock_recv(sock, handshake.CHALLENGE_BYTES)
        transcript = handshake.Transcript(hello, challenge[:-32], 1)
        guess = dataclasses.replace(SECRET, token=secrets.token_bytes(32))
        await loop.sock_sendall(sock, handshake.encode_proof(guess, transcript))
        assert await all_that_comes(sock) == handshake.encode_refusal(RefusalCode.PROOF)
        sock.close()
        await w.right_peer_gets_in()


async def test_replayed_handshake_is_refused() -> None:
    """Everything the right source said on a channel, said again: the destination's nonce is another one."""
    async with waiting() as w, recording_relay((DESTINATION, w.listener.port), SOURCE) as (relay, port):
        (first,) = [
            await open_channel(dataclasses.replace(w.spec, destination_address="127.0.2.9", port=port), 1)
        ]
        recorded = relay.recordings[0].to_destination
        assert len(recorded) == handshake.HELLO_BYTES + handshake.PROOF_MESSAGE_BYTES
        sock = await connect(w.listener.port)
        await asyncio.get_running_loop().sock_sendall(sock, recorded)
        answer = await all_that_comes(sock)
        assert answer[handshake.CHALLENGE_BYTES :] == handshake.encode_refusal(RefusalCode.PROOF)
        sock.close()
        rest = [await open_channel(w.spec, index) for index in (0, 2)]
        accepted = await w.accepting
        for channel in [first, *rest, *accepted]:
            channel.sock.close()


async def test_channel_index_used_twice_is_refused() -> None:
    async with waiting() as w:
        first = await open_channel(w.spec, 1)
        with pytest.raises(RefusedByPeer) as caught:
            await open_channel(w.spec, 1)
        assert caught.value.code == RefusalCode.CHANNEL
        rest = [await open_channel(w.spec, index) for index in (0, 2)]
        for channel in [first, *rest, *(await w.accepting)]:
            channel.sock.close()


async def test_slow_peer_is_cut_off_by_one_deadline() -> None:
    """A byte now and then resets no clock: the whole handshake has one deadline."""
    async with waiting(StreamTimeouts(handshake_s=0.3)) as w:
        sock = await connect(w.listener.port)
        hanging_up = asyncio.create_task(all_that_comes(sock))
        for byte in handshake.encode_hello(HELLO):
            with contextlib.suppress(ConnectionError):
                await asyncio.get_running_loop().sock_sendall(sock, bytes([byte]))
            done, _ = await asyncio.wait({hanging_up}, timeout=0.05)
            if done:
                break
        assert await hanging_up == b""
        sock.close()
        await w.right_peer_gets_in()


async def test_stranger_address_is_dropped_unread() -> None:
    async with waiting() as w:
        sock = await connect(w.listener.port, STRANGER)
        assert await all_that_comes(sock) == b""
        sock.close()
        await w.right_peer_gets_in()


async def test_flood_of_silent_connections_blocks_nobody() -> None:
    """Many more connections than handshakes may be pending, all silent, from the source's own address."""
    async with waiting(StreamTimeouts(handshake_s=20.0)) as w:
        socks = [await connect(w.listener.port) for _ in range(3 * MAX_PENDING_HANDSHAKES)]
        try:
            await w.right_peer_gets_in()
            assert len(socks) > MAX_PENDING_HANDSHAKES
        finally:
            for sock in socks:
                sock.close()


async def test_accept_all_too_late_raises_and_closes_what_came() -> None:
    async with waiting(deadline_s=0.3) as w:
        channel = await open_channel(w.spec, 0)
        with pytest.raises(ChannelsMissing) as caught:
            await w.accepting
        assert (caught.value.present, caught.value.required) == (1, 3)
        assert await all_that_comes(channel.sock) == b""
        channel.sock.close()
        with pytest.raises(ConnectFailed):
            await open_channel(w.spec, 0)


async def test_bind_two_listeners_take_the_first_free_ports() -> None:
    spec = ReceiverSpec(SECRET, DESTINATION, (SOURCE,), 2)
    first, second = ChannelListener.bind(spec), ChannelListener.bind(spec)
    try:
        assert FIRST_PORT <= first.port < second.port
    finally:
        first.close()
        second.close()


@contextlib.asynccontextmanager
async def false_destination(answer: bytes) -> AsyncIterator[StreamSpec]:
    """Somebody else listens where the destination should be."""
    held: list[asyncio.StreamWriter] = []

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)
        writer.write(answer)
        await writer.drain()

    server = await asyncio.start_server(serve, DESTINATION, 0)
    try:
        port = server.sockets[0].getsockname()[1]
        yield StreamSpec(
            SECRET, SOURCE, DESTINATION, port, 1 << 20, 2, timeouts=StreamTimeouts(handshake_s=0.3)
        )
    finally:
        server.close()
        for writer in held:
            writer.close()


async def test_source_other_service_answers_is_not_our_protocol() -> None:
    async with false_destination(b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n" * 4) as spec:
        with pytest.raises(NotOurProtocol):
            await open_channel(spec, 0)


async def test_source_silent_destination_times_out() -> None:
    async with false_destination(b"") as spec:
        with pytest.raises(HandshakeTimeout):
            await open_channel(spec, 0)


async def test_source_nobody_listens_fails_to_connect() -> None:
    spec = StreamSpec(SECRET, SOURCE, DESTINATION, 1, 1 << 20, 2)
    with pytest.raises(ConnectFailed):
        await open_channel(spec, 0)


async def test_source_foreign_address_is_never_used() -> None:
    """The connection comes from the spec's own vMotion address or not at all."""
    async with waiting() as w:
        with pytest.raises(ConnectFailed):
            await open_channel(dataclasses.replace(w.spec, source_address="192.0.2.1"), 0)
        channel = await open_channel(w.spec, 0)
        assert channel.sock.getsockname()[0] == SOURCE
        assert channel.sock.getpeername()[0] == DESTINATION
        channel.sock.close()
