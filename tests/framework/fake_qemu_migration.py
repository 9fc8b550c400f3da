"""The fake QEMU's migration: the statuses, events and pauses of QEMU 7.2, a device state of its own.

source   none -> setup -> active -> [STOP] -> (pre-switchover -> device ->) completed
                   └── migrate_cancel: cancelled, socket lost: failed; the guest runs on if it ran
stream   b"FAKEQEMU" | ROM part (checked, thrown away) | u32 length, u32 CRC-32, JSON of GuestState
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import struct
import sys
import threading
import zlib
from collections.abc import Callable

from tests.framework.fake_qemu_guest import FakeGuest, GuestState

_MAGIC = b"FAKEQEMU"
_ROM_PART = bytes(range(256)) * 256
_HEADER = struct.Struct("<II")
_STATE_BYTES_MAX = 1 << 20

Emit = Callable[[str, dict[str, object]], None]


class MigrationRefused(Exception):
    """The monitor's GenericError."""


class RunStateCell:
    """The one run state, changed by the monitor and by the migration."""

    def __init__(self, state: str) -> None:
        self.state = state


class FakeMigration:
    """Both directions; one at a time."""

    def __init__(self, guest: FakeGuest, run_state: RunStateCell, emit: Emit) -> None:
        self._guest = guest
        self._run_state = run_state
        self._emit = emit
        self._capabilities: dict[str, bool] = {}
        self._status = "none"
        self._error = ""
        self._transferred = 0
        self._may_go_on = threading.Event()
        self._is_cancelled = False
        self._connection: socket.socket | None = None

    # ---- monitor commands

    def set_capabilities(self, arguments: dict[str, object]) -> None:
        """migrate-set-capabilities."""
        entries = arguments.get("capabilities")
        for entry in entries if isinstance(entries, list) else []:
            self._capabilities[str(entry["capability"])] = bool(entry["state"])

    def query(self) -> dict[str, object]:
        """query-migrate."""
        if self._status == "none":
            return {}
        answer: dict[str, object] = {"status": self._status, "ram": {"transferred": self._transferred}}
        if self._error:
            answer["error-desc"] = self._error
        return answer

    def start(self, uri: str) -> None:
        """migrate."""
        if self._status in ("setup", "active", "pre-switchover", "device"):
            raise MigrationRefused("There's a migration process in progress")
        if self._run_state.state == "inmigrate":
            raise MigrationRefused("Guest is waiting for an incoming migration")
        if self._run_state.state == "postmigrate":
            raise MigrationRefused("Can't migrate the vm that was paused due to previous migration")
        if not self._capabilities.get("x-ignore-shared"):
            raise MigrationRefused("the fake can't stream RAM")
        self._is_cancelled, self._error, self._transferred = False, "", 0
        self._may_go_on.clear()
        self._set_status("setup")
        threading.Thread(target=self._send, args=(_path_of(uri),), name="live_migration", daemon=True).start()

    def go_on(self) -> None:
        """migrate-continue."""
        if self._status != "pre-switchover":
            raise MigrationRefused(f"Migration not in expected state: {self._status}")
        self._may_go_on.set()

    def cancel(self) -> None:
        """migrate_cancel; nothing happens where nothing goes on."""
        self._is_cancelled = True
        self._may_go_on.set()
        if self._connection is not None:
            try:
                self._connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                return  # it has ended by itself

    def listen(self, uri: str) -> None:
        """migrate-incoming."""
        if self._run_state.state != "inmigrate" or self._status != "none":
            raise MigrationRefused("The incoming migration has already been started")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(_path_of(uri))
        except OSError as error:
            raise MigrationRefused(f"Failed to bind socket to {_path_of(uri)}: {error.strerror}") from error
        listener.listen(1)
        self._set_status("setup")
        threading.Thread(target=self._receive, args=(listener,), name="incoming", daemon=True).start()

    # ---- source

    def _send(self, path: str) -> None:
        was_running = False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.connect(path)
                self._connection = connection
                self._set_status("active")
                connection.sendall(_MAGIC + _ROM_PART)
                self._transferred = len(_ROM_PART)
                was_running = self._stop_guest()
                if self._capabilities.get("pause-before-switchover"):
                    self._set_status("pre-switchover")
                    self._may_go_on.wait()
                    if not self._is_cancelled:
                        self._set_status("device")
                if self._is_cancelled:
                    raise ConnectionAbortedError("cancelled")
                connection.sendall(_encode(self._guest.state))
        except OSError as error:
            self._connection = None
            self._give_up(str(error), was_running)
            return
        self._connection = None
        self._run_state.state = "postmigrate"
        self._set_status("completed")

    def _stop_guest(self) -> bool:
        was_running = self._guest.stop()
        self._run_state.state = "finish-migrate"
        if was_running:
            self._emit("STOP", {})
        return was_running

    def _give_up(self, reason: str, was_running: bool) -> None:
        if was_running:
            self._guest.cont()
            self._run_state.state = "running"
            self._emit("RESUME", {})
        elif self._run_state.state == "finish-migrate":
            self._run_state.state = "postmigrate"
        self._error = "" if self._is_cancelled else reason
        self._set_status("cancelled" if self._is_cancelled else "failed")

    # ---- destination

    def _receive(self, listener: socket.socket) -> None:
        with listener:
            connection, _ = listener.accept()
        self._set_status("active")
        try:
            with connection, connection.makefile("rb") as stream:
                if stream.read(len(_MAGIC) + len(_ROM_PART)) != _MAGIC + _ROM_PART:
                    raise ValueError("not a fake QEMU's stream, or cut short")
                self._guest.install(_decode(stream.read(_HEADER.size), stream.read))
        except (OSError, ValueError, TypeError) as error:
            # As QEMU: an incoming guest without its state is of no use, the process ends.
            self._set_status("failed")
            print(f"fake-qemu: load of migration failed: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        self._run_state.state = "paused"
        self._set_status("completed")

    def _set_status(self, status: str) -> None:
        self._status = status
        if self._capabilities.get("events"):
            self._emit("MIGRATION", {"status": status})


def _path_of(uri: str) -> str:
    if not uri.startswith("unix:"):
        raise MigrationRefused(f"unknown migration protocol: {uri}")
    return uri.removeprefix("unix:")


def _encode(state: GuestState) -> bytes:
    text = json.dumps(dataclasses.asdict(state)).encode().ljust(4096)
    return _HEADER.pack(len(text), zlib.crc32(text)) + text


def _decode(header: bytes, read: Callable[[int], bytes]) -> GuestState:
    if len(header) != _HEADER.size:
        raise ValueError("the device state was cut short")
    length, checksum = _HEADER.unpack(header)
    if length > _STATE_BYTES_MAX:
        raise ValueError("the device state is too long")
    text = read(length)
    if len(text) != length or zlib.crc32(text) != checksum:
        raise ValueError("the device state was cut short or changed on the way")
    return GuestState(**json.loads(text))
