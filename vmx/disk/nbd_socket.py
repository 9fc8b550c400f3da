"""Whole messages over a blocking socket, with a deadline for each: what NBD's server and client share."""

from __future__ import annotations

import socket
import struct

from vmx.disk.errors import NbdClosed, NbdTimeout

__all__ = ["NbdSocket"]


class NbdSocket:
    """A connected stream socket, owned. Reading and writing may be done by one thread each.

    Closing it does not wake a thread that waits in it; `shut_down` does, from any thread.
    """

    def __init__(self, connection: socket.socket, deadline_s: float) -> None:
        self._connection = connection
        self._deadline_s = deadline_s
        connection.settimeout(None)
        # The kernel's own deadlines (socket(7)): Python's would cost a poll(2) for every message, and every write of a
        # mirrored guest waits for several.
        whole_s, part_s = divmod(deadline_s, 1)
        kernel_deadline = struct.pack("ll", int(whole_s), int(part_s * 1e6))
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            connection.setsockopt(socket.SOL_SOCKET, option, kernel_deadline)

    def receive(self, byte_count: int, doing: str) -> bytes:
        """Exactly `byte_count` bytes.

        :raises NbdClosed: the connection ended before. :raises NbdTimeout: the peer paused for too long.
        """
        buffer = bytearray(byte_count)
        self.receive_into(memoryview(buffer), doing)
        return bytes(buffer)

    def receive_into(self, buffer: memoryview, doing: str) -> None:
        """Fills `buffer`. :raises: as `receive`."""
        while buffer:
            try:
                count = self._connection.recv_into(buffer)
            except BlockingIOError:
                raise NbdTimeout(doing, self._deadline_s) from None
            except OSError as error:
                raise NbdClosed(doing, str(error)) from error
            if count == 0:
                raise NbdClosed(doing)
            buffer = buffer[count:]

    def receive_message(self, byte_count: int, doing: str) -> bytes:
        """The head of the next message, however long it takes to come; empty when the peer has closed instead.

        The peer is allowed to have nothing to say; `shut_down` ends the wait.

        :raises NbdClosed: the connection broke. :raises NbdTimeout: the head began and did not go on.
        """
        while True:
            try:
                head = self._connection.recv(byte_count)
            except BlockingIOError:
                continue
            except OSError as error:
                raise NbdClosed(doing, str(error)) from error
            if len(head) in (0, byte_count):
                return head
            return head + self.receive(byte_count - len(head), doing)

    def send(self, data: bytes, doing: str) -> None:
        """Sends all of it. :raises NbdClosed, NbdTimeout: see `receive`."""
        try:
            self._connection.sendall(data)
        except BlockingIOError:
            raise NbdTimeout(doing, self._deadline_s) from None
        except OSError as error:
            raise NbdClosed(doing, str(error)) from error

    def shut_down(self) -> None:
        """Ends the connection for both sides at once; whoever waits in it is woken. Idempotent."""
        try:
            self._connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # not connected any more: that is what was wanted

    def close(self) -> None:
        """Closes the descriptor; for the thread that uses it. Idempotent."""
        self._connection.close()
