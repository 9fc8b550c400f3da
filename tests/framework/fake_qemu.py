"""A fake QEMU: a process that takes vmx's own QEMU command line and answers as QEMU would, without a machine.

For tests of daemons where a real guest is too slow. It has what a migration is about: real shared memory that is
written and checked all the time, QMP with its commands, states and events, a device state without which the guest
can't go on, and a death of its own. It passes the same contract tests as QEMU. Standard library only, and nothing
of vmx: it starts in well under 200 ms.

    main thread    QMP, one client at a time; console clients
    CPU 0/FAKE     the guest (fake_qemu_guest)
    live_migration, incoming      (fake_qemu_migration)

Environment, for tests: FAKE_QEMU_DIE_WITH_PARENT=1 ends it when its parent ends.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

if not __package__:  # started as a program
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.framework import fake_cpu_models
from tests.framework.fake_qemu_guest import FakeGuest, StamperOptions, open_memory
from tests.framework.fake_qemu_migration import FakeMigration, MigrationRefused, RunStateCell

_VERSION: dict[str, object] = {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": "fake"}
_GREETING: dict[str, object] = {"QMP": {"version": _VERSION, "capabilities": ["oob"]}}
_MACHINES = ("pc-q35-7.2", "q35", "pc-i440fx-7.2", "pc")
_CPU_MODELS = tuple(fake_cpu_models.FEATURES)
_FLAGS = frozenset({"-S", "-nodefaults", "-no-user-config"})
_COMMAND_BYTES_MAX = 1 << 20

JsonObject = dict[str, object]


class CommandLineError(Exception):
    """What QEMU prints before it ends with exit code 1."""


class CommandLine:
    """vmx's command line, taken apart by QEMU's rules."""

    def __init__(self, arguments: list[str]) -> None:
        self._options: list[tuple[str, str]] = []
        words = iter(arguments)
        for word in words:
            value = "" if word in _FLAGS else next(words, None)
            if value is None or not word.startswith("-"):
                raise CommandLineError(f"{word}: requires an argument")
            self._options.append((word, value))

    def values(self, option: str) -> list[str]:
        """Every value of an option, in order."""
        return [value for name, value in self._options if name == option]

    def value(self, option: str, default: str = "") -> str:
        """The last value of an option."""
        return (self.values(option) or [default])[-1]

    def has(self, option: str) -> bool:
        """Whether the option is given."""
        return bool(self.values(option))

    def chardev(self, identifier: str) -> dict[str, str]:
        """The properties of a character device."""
        for value in self.values("-chardev"):
            properties = split_option(value)
            if properties.get("id") == identifier:
                return properties
        raise CommandLineError(f"chardev {identifier} not found")


def split_option(value: str) -> dict[str, str]:
    """`socket,id=a,path=/x,,y` as {"": "socket", "id": "a", "path": "/x,y"}."""
    parts = value.replace(",,", "\0").split(",")
    pairs = (part.partition("=") for part in parts)
    return {
        (name if equals else ""): (text if equals else name).replace("\0", ",")
        for name, equals, text in pairs
    }


class Console:
    """Serial port 0: a server socket and a log file."""

    def __init__(self, properties: dict[str, str]) -> None:
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        Path(properties["path"]).unlink(missing_ok=True)
        self.listener.bind(properties["path"])
        self.listener.listen(1)
        self._log = open(properties["logfile"], "ab", buffering=0)  # noqa: SIM115 - for the process's life
        self._client: socket.socket | None = None

    def accept(self) -> None:
        """Takes a new client in place of the old one."""
        client, _ = self.listener.accept()
        client.setblocking(False)
        self._client, old = client, self._client
        if old is not None:
            old.close()

    def write(self, text: str) -> None:
        """To the log always; to a client that keeps up."""
        self._log.write(text.encode())
        if self._client is not None:
            try:
                self._client.sendall(text.encode())
            except OSError:
                self._client.close()
                self._client = None


class Monitor:
    """QMP on a listening socket that was inherited; one client at a time, the next waits."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.client: socket.socket | None = None
        self._is_negotiated = False
        self._buffer = b""
        self._send_lock = threading.Lock()

    def accept(self) -> None:
        """Greets a new client."""
        client, _ = self.listener.accept()
        self._is_negotiated, self._buffer = False, b""
        with self._send_lock:
            self.client = client
        self._send(_GREETING)

    def emit(self, name: str, data: JsonObject) -> None:
        """Sends an event, if anybody listens. From any thread."""
        now = time.time()
        stamp = {"seconds": int(now), "microseconds": int(now % 1 * 1e6)}
        event: JsonObject = {"event": name, "timestamp": stamp}
        if data:
            event["data"] = data
        if self._is_negotiated:
            self._send(event)

    def serve(self, execute: Callable[[str, JsonObject], object]) -> None:
        """Reads what the client has sent and answers every whole command."""
        assert self.client is not None, "called when it is readable"
        try:
            received = self.client.recv(65536)
        except OSError:
            received = b""
        self._buffer += received
        if not received or len(self._buffer) > _COMMAND_BYTES_MAX:
            self._drop()
        while (request := self._next_request()) is not None:
            self._answer(request, execute)

    def _next_request(self) -> JsonObject | None:
        """A whole JSON object from the buffer: nothing but its end ends it, a line feed need not follow."""
        text = self._buffer.decode(errors="replace").lstrip()
        try:
            request, end = json.JSONDecoder().raw_decode(text)
        except ValueError:
            if "\n" not in text:
                return None  # not all of it is here
            request, end = None, text.index("\n")
        self._buffer = text[end:].encode()
        return request if isinstance(request, dict) else {}

    def _answer(self, request: JsonObject, execute: Callable[[str, JsonObject], object]) -> None:
        command = request.get("execute", request.get("exec-oob"))
        arguments = request.get("arguments")
        reply: JsonObject = {"id": request["id"]} if "id" in request else {}
        try:
            if not self._is_negotiated and command != "qmp_capabilities":
                raise KeyError(command)
            self._is_negotiated = True
            reply["return"] = execute(str(command), arguments if isinstance(arguments, dict) else {})
        except KeyError:
            desc = f"The command {command} has not been found"
            reply["error"] = {"class": "CommandNotFound", "desc": desc}
        except MigrationRefused as refused:
            reply["error"] = {"class": "GenericError", "desc": str(refused)}
        self._send(reply)

    def _send(self, message: JsonObject) -> None:
        with self._send_lock:
            if self.client is not None:
                try:
                    self.client.sendall(json.dumps(message).encode() + b"\r\n")
                except OSError:
                    return  # it has gone; the main thread reads its end

    def _drop(self) -> None:
        with self._send_lock:
            if self.client is not None:
                self.client.close()
            self.client = None
            self._is_negotiated = False
            self._buffer = b""


class FakeQemu:
    """The whole process."""

    def __init__(self, line: CommandLine) -> None:
        self._line = line
        if line.has("-kernel") and not os.path.isfile(line.value("-kernel")):
            raise CommandLineError(
                f"could not open kernel file '{line.value('-kernel')}': No such file or directory"
            )
        memory = split_option(line.value("-object"))
        machine = split_option(line.value("-machine"))
        if machine.get("") not in _MACHINES:
            raise CommandLineError(f"unsupported machine type '{machine.get('')}'")
        self._monitor = Monitor(socket.socket(fileno=int(line.chardev("qmp")["fd"])))
        self._console = Console(line.chardev("console"))
        heartbeat = os.open(line.chardev("heartbeat")["path"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        ram_bytes = int(memory["size"].removesuffix("B"))
        options = (
            StamperOptions.from_kernel_command_line(line.value("-append")) if line.has("-kernel") else None
        )
        self._guest = FakeGuest(
            open_memory(memory["mem-path"], ram_bytes),
            ram_bytes,
            options,
            self._console.write,
            lambda text: void(os.write(heartbeat, text.encode())),
        )
        self._run_state = RunStateCell("inmigrate" if line.has("-incoming") else "prelaunch")
        self._migration = FakeMigration(self._guest, self._run_state, self._monitor.emit)
        self._is_quitting = False

    def run(self) -> None:
        """Until `quit`, or the parent's end where that is asked for."""
        parent = os.getppid() if os.environ.get("FAKE_QEMU_DIE_WITH_PARENT") == "1" else None
        while not self._is_quitting:
            monitor = self._monitor.client or self._monitor.listener
            readable, _, _ = select.select([monitor, self._console.listener], [], [], 0.2 if parent else None)
            if parent is not None and os.getppid() != parent:
                return
            if self._console.listener in readable:
                self._console.accept()
            if monitor not in readable:
                continue
            if self._monitor.client is None:
                self._monitor.accept()
            else:
                self._monitor.serve(self._execute)

    def _execute(self, command: str, arguments: JsonObject) -> object:
        commands: dict[str, Callable[[], object]] = {
            "qmp_capabilities": lambda: None,
            "query-status": lambda: {
                "status": self._run_state.state,
                "running": self._run_state.state == "running",
            },
            "query-version": lambda: _VERSION,
            "query-name": lambda: {"name": split_option(self._line.value("-name")).get("guest", "")},
            "query-uuid": lambda: {"UUID": self._line.value("-uuid")},
            "query-machines": lambda: [{"name": name} for name in _MACHINES],
            "query-cpu-definitions": lambda: [{"name": name} for name in _CPU_MODELS],
            "query-cpus-fast": lambda: [{"qom-path": "/machine/cpu", "cpu-index": 0}],
            "qom-get": lambda: fake_cpu_models.unavailable(self._line.value("-cpu")),
            "stop": self._stop,
            "cont": self._cont,
            "system_reset": self._reset,
            "system_powerdown": lambda: self._monitor.emit("POWERDOWN", {}),
            "quit": self._quit,
            "migrate-set-capabilities": lambda: self._migration.set_capabilities(arguments),
            "migrate": lambda: self._migration.start(str(arguments.get("uri"))),
            "migrate-continue": self._migration.go_on,
            "migrate_cancel": self._migration.cancel,
            "migrate-incoming": lambda: self._migration.listen(str(arguments.get("uri"))),
            "query-migrate": self._migration.query,
            "migrate-set-parameters": lambda: None,
            "announce-self": lambda: None,
            "set_link": lambda: None,
        }
        answer = commands[command]()
        return {} if answer is None else answer

    def _stop(self) -> None:
        if self._guest.stop():
            self._run_state.state = "paused"
            self._monitor.emit("STOP", {})

    def _cont(self) -> None:
        # Before its state has arrived a guest is only told to start by itself afterwards. vmx never asks for that.
        if self._run_state.state == "inmigrate":
            return
        if self._guest.cont():
            self._run_state.state = "running"
            self._monitor.emit("RESUME", {})

    def _reset(self) -> None:
        self._guest.reset()
        self._monitor.emit("RESET", {"guest": False, "reason": "host-qmp-system-reset"})

    def _quit(self) -> None:
        self._monitor.emit("SHUTDOWN", {"guest": False, "reason": "host-qmp-quit"})
        self._is_quitting = True


def void(_written: int) -> None:
    """For callbacks whose result nobody wants."""


def answer_questions() -> None:
    """Without a machine (`-machine none -qmp stdio`) QEMU is only asked what it can do."""
    answers: dict[str, object] = {
        "query-version": _VERSION,
        "query-machines": [{"name": name} for name in _MACHINES],
        "query-cpu-definitions": [{"name": name} for name in _CPU_MODELS],
    }
    print(json.dumps(_GREETING), flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        command = question["execute"]
        answer = answers.get(command, {})
        if command == "query-cpu-model-expansion":
            answer = fake_cpu_models.expansion(question["arguments"]["model"]["name"])
        reply = {"error": {"class": "GenericError"}} if answer is None else {"return": answer}
        print(json.dumps(reply), flush=True)
        if command == "quit":
            return


def main(arguments: list[str]) -> int:
    """The process; returns its exit code."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    try:
        line = CommandLine(arguments)
        if line.value("-machine") == "none" and line.value("-qmp") == "stdio":
            answer_questions()
        else:
            FakeQemu(line).run()
    except (CommandLineError, OSError) as error:
        print(f"fake-qemu: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
