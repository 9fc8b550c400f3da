"""The QMP connection against a server that does what QEMU only does on its worst days."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from vmx.guest.errors import (
    QmpBadReply,
    QmpConnectFailed,
    QmpConnectionLost,
    QmpError,
    QmpTimeout,
)
from vmx.guest.qmp import QemuVersion, QmpConnection
from vmx.guest.run_control import RunControl, RunState

GREETING: dict[str, object] = {
    "QMP": {"version": {"qemu": {"major": 9, "minor": 1, "micro": 2}, "package": ""}, "capabilities": []}
}
Answer = Callable[["FakeQmpServer", str], Awaitable[dict[str, object] | None]]


class FakeQmpServer:
    """One client; each command is answered by `answer`, which may send events first, or say nothing."""

    def __init__(self, answer: Answer, greeting: bytes | None = None) -> None:
        self._answer = answer
        self._greeting = json.dumps(GREETING).encode() if greeting is None else greeting
        self._writer: asyncio.StreamWriter | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        writer.write(self._greeting + b"\r\n")
        decoder, text = json.JSONDecoder(), ""
        while received := await reader.read(65536):
            text += received.decode()
            while text:
                request, end = decoder.raw_decode(text)
                text = text[end:].lstrip()
                command = request["execute"]
                answer = (
                    {"return": {}} if command == "qmp_capabilities" else await self._answer(self, command)
                )
                if answer is not None:
                    self.send({**answer, "id": request["id"]} if "id" in request else answer)
        writer.close()

    def send(self, message: dict[str, object]) -> None:
        assert self._writer is not None
        self._writer.write(json.dumps(message).encode() + b"\r\n")

    def event(self, name: str, data: dict[str, object] | None = None) -> None:
        stamp = {"seconds": 0, "microseconds": 0}
        self.send({"event": name, "timestamp": stamp, **({"data": data} if data else {})})

    def hang_up(self) -> None:
        assert self._writer is not None
        self._writer.close()


@contextlib.asynccontextmanager
async def serving(server: FakeQmpServer) -> AsyncIterator[Path]:
    with tempfile.TemporaryDirectory(prefix="qmp-") as folder:
        path = Path(folder) / "qmp.sock"
        async with await asyncio.start_unix_server(server.serve, str(path)):
            yield path


@contextlib.asynccontextmanager
async def connected(answer: Answer) -> AsyncIterator[tuple[QmpConnection, FakeQmpServer]]:
    server = FakeQmpServer(answer)
    async with serving(server) as path:
        qmp = await QmpConnection.connect(path, deadline_s=5)
        try:
            yield qmp, server
        finally:
            await qmp.close()


async def answer_nothing(server: FakeQmpServer, command: str) -> dict[str, object] | None:
    return None


async def answer_empty(server: FakeQmpServer, command: str) -> dict[str, object] | None:
    return {"return": {}}


async def test_connect_tells_version() -> None:
    async with connected(answer_empty) as (qmp, _):
        assert qmp.version == QemuVersion(9, 1, 2)
        assert str(qmp.version) == "9.1.2"
        assert qmp.version < QemuVersion(10, 0, 0)


@pytest.mark.parametrize("greeting", [b"hello", b"{}", b'{"QMP": 7}', b"[" * 100])
async def test_connect_to_what_is_no_qmp_server_fails(greeting: bytes) -> None:
    async with serving(FakeQmpServer(answer_empty, greeting)) as path:
        with pytest.raises(QmpConnectFailed):
            await QmpConnection.connect(path, deadline_s=5)


async def test_connect_silent_server_fails_at_deadline() -> None:
    async with serving(FakeQmpServer(answer_empty, b"")) as path:
        with pytest.raises(QmpConnectFailed):
            await QmpConnection.connect(path, deadline_s=0.1)


async def test_connect_nobody_listens_fails(tmp_path: Path) -> None:
    with pytest.raises(QmpConnectFailed):
        await QmpConnection.connect(tmp_path / "none.sock", deadline_s=5)


async def test_execute_error_answer_keeps_its_fields() -> None:
    async def refuse(server: FakeQmpServer, command: str) -> dict[str, object] | None:
        return {"error": {"class": "GenericError", "desc": "no"}}

    async with connected(refuse) as (qmp, _):
        with pytest.raises(QmpError) as refused:
            await qmp.execute("migrate")
        assert (refused.value.command, refused.value.error_class, refused.value.desc) == (
            "migrate",
            "GenericError",
            "no",
        )


@pytest.mark.parametrize("reply", [{}, {"error": {"class": 1}}, {"error": "x"}])
async def test_execute_senseless_answer_is_bad_reply(reply: dict[str, object]) -> None:
    async def answer(server: FakeQmpServer, command: str) -> dict[str, object] | None:
        return reply

    async with connected(answer) as (qmp, _):
        with pytest.raises(QmpBadReply):
            await qmp.execute("migrate")


async def test_query_answer_that_is_no_object_is_bad_reply() -> None:
    async def answer(server: FakeQmpServer, command: str) -> dict[str, object] | None:
        return {"return": [1]}

    async with connected(answer) as (qmp, _):
        with pytest.raises(QmpBadReply):
            await qmp.query("query-status")


async def test_execute_no_answer_times_out_and_connection_lives_on() -> None:
    async def answer(server: FakeQmpServer, command: str) -> dict[str, object] | None:
        return None if command == "slow" else {"return": {}}

    async with connected(answer) as (qmp, _):
        with pytest.raises(QmpTimeout):
            await qmp.execute("slow", deadline_s=0.05)
        assert await qmp.execute("quick") == {}


async def test_event_before_the_commands_answer_is_not_missed() -> None:
    async def answer(server: FakeQmpServer, command: str) -> dict[str, object] | None:
        server.event("STOP")
        server.event("RESUME")
        return {"return": {}}

    async with connected(answer) as (qmp, _):
        with qmp.subscribe("STOP") as events:
            await qmp.execute("stop")
            assert (await events.next(1)).name == "STOP"
            assert events.take() is None, "only what was asked for"


async def test_event_until_drops_what_is_not_wanted() -> None:
    async def answer(server: FakeQmpServer, command: str) -> dict[str, object] | None:
        for status in ("setup", "active", "completed"):
            server.event("MIGRATION", {"status": status})
        return {"return": {}}

    async with connected(answer) as (qmp, _):
        with qmp.subscribe("MIGRATION") as events:
            await qmp.execute("migrate")
            event = await events.until(lambda event: event.data["status"] == "completed", 1)
        assert event.data == {"status": "completed"}
        assert event.arrived_ns > 0


async def test_event_that_never_comes_times_out() -> None:
    async with connected(answer_empty) as (qmp, _):
        with qmp.subscribe("STOP") as events, pytest.raises(QmpTimeout):
            await events.next(0.05)


async def test_loss_of_connection_is_told_to_every_waiter() -> None:
    async with connected(answer_nothing) as (qmp, server):
        with qmp.subscribe("STOP") as stops, qmp.subscribe("RESUME") as resumes:
            waiting = [
                asyncio.create_task(waiter)
                for waiter in (stops.next(30), resumes.next(30), qmp.execute("stop"))
            ]
            await asyncio.sleep(0.05)  # until all of them wait
            server.hang_up()
            for outcome in await asyncio.gather(*waiting, return_exceptions=True):
                assert isinstance(outcome, QmpConnectionLost)
        assert not qmp.is_connected
        assert await qmp.lost()
        with qmp.subscribe("STOP") as late, pytest.raises(QmpConnectionLost):
            await late.next(30)
        with pytest.raises(QmpConnectionLost):
            await qmp.execute("stop")


async def test_events_that_came_before_the_loss_are_still_given() -> None:
    async def answer(server: FakeQmpServer, command: str) -> dict[str, object] | None:
        server.event("SHUTDOWN")
        server.hang_up()
        return None

    async with connected(answer) as (qmp, _):
        with qmp.subscribe("SHUTDOWN") as events:
            with pytest.raises(QmpConnectionLost):
                await qmp.execute("quit")
            assert (await events.next(1)).name == "SHUTDOWN"


async def test_close_is_idempotent_and_ends_what_waits() -> None:
    async with connected(answer_nothing) as (qmp, _):
        waiting = asyncio.create_task(qmp.execute("stop"))
        await asyncio.sleep(0.05)  # until it waits
        await asyncio.gather(qmp.close(), qmp.close())
        await qmp.close()
        with pytest.raises(QmpConnectionLost):
            await waiting
        assert await qmp.lost() == "closed"


async def test_run_control_event_after_the_answer_is_waited_for() -> None:
    async def answer(server: FakeQmpServer, command: str) -> dict[str, object] | None:
        if command == "query-status":
            asyncio.get_running_loop().call_later(0.05, server.event, "STOP")
            return {"return": {"status": "running"}}
        return {"return": {}}

    async with connected(answer) as (qmp, _):
        event = await RunControl(qmp).stop()
        assert event is not None
        assert event.name == "STOP"


async def test_run_control_unknown_state_is_bad_reply() -> None:
    async def answer(server: FakeQmpServer, command: str) -> dict[str, object] | None:
        return {"return": {"status": "dreaming"}}

    async with connected(answer) as (qmp, _):
        with pytest.raises(QmpBadReply):
            await RunControl(qmp).state()


def test_run_state_every_one_has_a_power_state() -> None:
    assert {state.power_state.value for state in RunState} == {"poweredOn", "poweredOff", "suspended"}
