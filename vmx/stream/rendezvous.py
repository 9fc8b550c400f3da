"""How the channels of a stream come to be: the destination's listener, the source's connections.

The listener waits on the vMotion address, on the first free port from 8000 up, until the source has opened its control
channel and all its other channels. Whoever else knocks (a scanner, a replayed recording, a peer that sends a byte per
second, another migration) costs that one connection and nothing more: handshakes run side by side, each under one
deadline, in a bounded number; where the bound is reached the oldest unfinished one has to go, so the right peer, whose
handshake takes milliseconds, always finds a place.
"""

import asyncio
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from vmx.stream import handshake
from vmx.stream.errors import (
    ChannelRefused,
    ChannelsMissing,
    ConnectFailed,
    HandshakeError,
    HandshakeTimeout,
    ListenFailed,
    NotOurProtocol,
    StrangerAddress,
)
from vmx.stream.handshake import Hello, SessionKeys
from vmx.stream.spec import (
    FIRST_PORT,
    PORT_COUNT,
    ChannelPlan,
    ChannelRole,
    ReceiverSpec,
    StreamSpec,
    StreamTimeouts,
)

MAX_PENDING_HANDSHAKES: Final = 32
_BACKLOG: Final = 64
# accept(2) fails at once and for long when descriptors run out: asking again without a pause would spin.
_ACCEPT_RETRY_S: Final = 0.2

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class OpenedChannel:
    """One connection whose handshake is done. The socket is non-blocking and belongs to the holder of this."""

    index: int
    sock: socket.socket
    keys: SessionKeys


def send_limit_s(role: ChannelRole, timeouts: StreamTimeouts) -> float:
    """How long the peer of such a channel may take nothing. Disks stall (a full cache, a slow array) where memory
    doesn't; whether their peer lives is what the control channel knows."""
    if role in {ChannelRole.DISKS, ChannelRole.MIRROR}:
        return max(timeouts.silent_peer_s, timeouts.disk_write_s)
    return timeouts.silent_peer_s


def tune(sock: socket.socket, role: ChannelRole, timeouts: StreamTimeouts) -> None:
    """Socket options of every channel.

    Buffers are left to the kernel: setting SO_SNDBUF or SO_RCVBUF turns its autotuning off and is capped by
    net.core.{w,r}mem_max (212992 by default), a 50th of what one 10 GbE stream at 1 ms round trip fills.
    TCP_USER_TIMEOUT (tcp(7)) ends a connection whose peer acknowledges nothing, or has no room for so long; keepalive
    probes do so when idle.
    """
    silent_ms = int(send_limit_s(role, timeouts) * 1000)
    probe_s = max(1, int(timeouts.silent_peer_s / 4))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, silent_ms)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, probe_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, probe_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


async def _read_exactly(sock: socket.socket, length: int) -> bytes:
    loop = asyncio.get_running_loop()
    data = bytearray()
    while len(data) < length:
        part = await loop.sock_recv(sock, length - len(data))
        if not part:
            raise NotOurProtocol(f"The connection ended after {len(data)} of {length} handshake bytes.")
        data += part
    return bytes(data)


async def _read_answer(sock: socket.socket, length: int) -> bytes:
    head = await _read_exactly(sock, handshake.ANSWER_HEAD_BYTES)
    handshake.refusal_or_none(head)
    return head + await _read_exactly(sock, length - len(head))


async def open_channel(spec: StreamSpec, index: int) -> OpenedChannel:
    """Connect one channel from the source's vMotion address and get it through the handshake.

    :raises ConnectFailed: the address can't be bound, or nobody answers within `connect_s`.
    :raises HandshakeError: the other side is not our destination, or refused us; no socket is left open.
    """
    family = socket.AF_INET6 if ":" in spec.destination_address else socket.AF_INET
    loop = asyncio.get_running_loop()
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        try:
            tune(sock, spec.channels.role(index), spec.timeouts)
            sock.bind((spec.source_address, 0))
            async with asyncio.timeout(spec.timeouts.connect_s):
                await loop.sock_connect(sock, (spec.destination_address, spec.port))
        except TimeoutError:
            reason = f"no answer within {spec.timeouts.connect_s:g} s"
            raise ConnectFailed(spec.destination_address, spec.port, reason) from None
        except OSError as error:
            raise ConnectFailed(spec.destination_address, spec.port, str(error)) from error
        try:
            async with asyncio.timeout(spec.timeouts.handshake_s):
                return OpenedChannel(index, sock, await _introduce(spec, index, sock))
        except TimeoutError:
            raise HandshakeTimeout(spec.timeouts.handshake_s) from None
        except OSError as error:
            raise NotOurProtocol(f"The connection broke in its handshake: {error}.") from error
    except BaseException:
        sock.close()
        raise


async def _introduce(spec: StreamSpec, index: int, sock: socket.socket) -> SessionKeys:
    loop = asyncio.get_running_loop()
    hello = handshake.encode_hello(
        Hello(
            index,
            spec.channel_count,
            spec.secret.migration_id,
            spec.encryption,
            secrets.token_bytes(handshake.NONCE_BYTES),
            handshake.oldest_version_for(spec.channels),
            disk_channel_count=spec.channels.disks,
        )
    )
    await loop.sock_sendall(sock, hello)
    challenge = await _read_answer(sock, handshake.CHALLENGE_BYTES)
    transcript = handshake.decode_challenge(spec.secret, hello, challenge)
    await loop.sock_sendall(sock, handshake.encode_proof(spec.secret, transcript))
    handshake.check_accept(spec.secret, transcript, await _read_answer(sock, handshake.ACCEPT_BYTES))
    return handshake.session_keys(spec.secret, transcript)


class ChannelListener:
    """The destination's door: bound at once by `bind`, served by `accept_all`, closed by `close`."""

    def __init__(self, spec: ReceiverSpec, listener: socket.socket) -> None:
        self._spec = spec
        self._listener = listener
        self._channels: dict[int, OpenedChannel] = {}
        self._complete = asyncio.Event()
        self._pending: dict[asyncio.Task[bool], None] = {}
        self.refused_count = 0

    @classmethod
    def bind(cls, spec: ReceiverSpec) -> "ChannelListener":
        """Listen on the first free port of the vMotion address.

        :raises SpecInvalid: the specification makes no sense.
        :raises ListenFailed: the address isn't this host's, or all its ports are taken.
        """
        spec.check()
        family = socket.AF_INET6 if ":" in spec.listen_address else socket.AF_INET
        reason = "no port is free"
        for port in range(FIRST_PORT, FIRST_PORT + PORT_COUNT):
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
            try:
                # Takes a port with connections in TIME_WAIT, never one that somebody listens on (socket(7)).
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind((spec.listen_address, port))
                sock.listen(_BACKLOG)
            except OSError as error:
                sock.close()
                reason = str(error)
                continue
            return cls(spec, sock)
        raise ListenFailed(spec.listen_address, reason)

    @property
    def port(self) -> int:
        """The port that this listener got."""
        port: int = self._listener.getsockname()[1]
        return port

    async def accept_all(self, deadline_s: float) -> list[OpenedChannel]:
        """Wait until the source has opened all channels; then stop listening.

        :returns: the channels by index: control first.
        :raises ChannelsMissing: not within `deadline_s`; what was opened is closed again.
        """
        required = self._spec.channels.total
        accepting = asyncio.create_task(self._accept_loop(), name="stream-accept")
        try:
            async with asyncio.timeout(deadline_s):
                await self._complete.wait()
            return [self._channels.pop(index) for index in range(required)]
        except TimeoutError:
            raise ChannelsMissing(len(self._channels), required, deadline_s) from None
        finally:
            accepting.cancel()
            (outcome,) = await asyncio.gather(accepting, return_exceptions=True)
            self.close()
            if isinstance(outcome, Exception):
                raise outcome

    def close(self) -> None:
        """Stop listening and close every channel that nobody took. Idempotent."""
        self._listener.close()
        for channel in self._channels.values():
            channel.sock.close()
        self._channels.clear()

    async def _accept_loop(self) -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            while True:
                try:
                    sock, address = await loop.sock_accept(self._listener)
                except OSError as error:
                    _log.warning("stream_accept_failed", error=str(error))
                    await asyncio.sleep(_ACCEPT_RETRY_S)
                    continue
                peer_address = str(address[0])
                if peer_address not in self._spec.source_addresses:
                    self._refuse(sock, peer_address, StrangerAddress(peer_address))
                    continue
                if len(self._pending) >= MAX_PENDING_HANDSHAKES:
                    oldest = next(iter(self._pending))
                    del self._pending[oldest]
                    oldest.cancel()
                task = group.create_task(self._admit(sock, peer_address))
                self._pending[task] = None
                # In a callback: a task that is cancelled before its first step never reaches a clean-up of its own.
                task.add_done_callback(self._forget(sock))

    def _forget(self, sock: socket.socket) -> Callable[[asyncio.Task[bool]], None]:
        def forget(task: asyncio.Task[bool]) -> None:
            self._pending.pop(task, None)
            if task.cancelled() or task.exception() is not None or not task.result():
                sock.close()

        return forget

    async def _admit(self, sock: socket.socket, peer_address: str) -> bool:
        """One connection from its first byte to its place in the stream: whether it got one. No failure leaves it."""
        try:
            async with asyncio.timeout(self._spec.timeouts.handshake_s):
                channel = await self._examine(sock)
            self._channels[channel.index] = channel
        except TimeoutError:
            self._refuse(sock, peer_address, HandshakeTimeout(self._spec.timeouts.handshake_s))
        except HandshakeError as error:
            self._refuse(sock, peer_address, error)
        except OSError as error:
            self._refuse(sock, peer_address, NotOurProtocol(f"The connection broke: {error}."))
        else:
            if len(self._channels) == self._spec.channels.total:
                self._complete.set()
            return True
        return False

    async def _examine(self, sock: socket.socket) -> OpenedChannel:
        loop = asyncio.get_running_loop()
        spec = self._spec
        channels: ChannelPlan = spec.channels
        hello_bytes = await _read_exactly(sock, handshake.HELLO_BYTES)
        hello = handshake.decode_hello(hello_bytes)
        version = handshake.check_hello(hello, spec.secret, spec.encryption, channels.pages, channels.disks)
        tune(sock, hello.role, spec.timeouts)
        nonce = secrets.token_bytes(handshake.NONCE_BYTES)
        challenge, transcript = handshake.encode_challenge(spec.secret, hello_bytes, version, nonce)
        await loop.sock_sendall(sock, challenge)
        proof = await _read_exactly(sock, handshake.PROOF_MESSAGE_BYTES)
        handshake.check_proof(spec.secret, transcript, proof)
        # Only a proven peer can learn that an index is taken, and only it can take one.
        if hello.channel_index in self._channels:
            raise ChannelRefused(hello.channel_index, "it is open already")
        keys = handshake.session_keys(spec.secret, transcript)
        channel = OpenedChannel(hello.channel_index, sock, keys)
        # 48 bytes into an empty send buffer: this send can't wait, so nothing comes between the check and the taking.
        sock.send(handshake.encode_accept(spec.secret, transcript))
        return channel

    def _refuse(self, sock: socket.socket, peer_address: str, error: HandshakeError) -> None:
        self.refused_count += 1
        _log.warning(
            "stream_handshake_refused", peer=peer_address, cause=type(error).__name__, error=str(error)
        )
        if error.refusal is not None:
            try:
                sock.send(handshake.encode_refusal(error.refusal))
            except OSError as lost:
                _log.debug("stream_refusal_not_sent", peer=peer_address, error=str(lost))
        sock.close()
