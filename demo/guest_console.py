"""What the demonstration's guest says on its console, read through vpxd, and what it proves."""

import re
from contextlib import aclosing
from dataclasses import dataclass

from images.guest_output import FAILED, READY, StampStatus, parse_status, parse_wrong
from proto.vpxd.v1 import service_pb2
from vpxd.cli.client import VpxdClient
from vpxd.cli.errors import NoAnswer

_BOOT = re.compile(re.escape(READY))


class GuestSilent(Exception):
    """The guest didn't say what was waited for, in time."""


@dataclass(frozen=True)
class ConsoleFacts:
    """What the whole console shows."""

    statuses: tuple[StampStatus, ...]
    boots: int
    complaints: tuple[str, ...]

    @property
    def wrong(self) -> int:
        """The highest number of wrong stamps told."""
        return max((status.wrong for status in self.statuses), default=0)


def facts_of(text: str) -> ConsoleFacts:
    """Pure: reads a console's text, whose last line may be cut."""
    statuses, complaints = [], []
    for line in text.splitlines():
        status = parse_status(line)
        if status is not None:
            statuses.append(status)
        if parse_wrong(line) is not None or FAILED in line or "Kernel panic" in line:
            complaints.append(line.strip())
    return ConsoleFacts(tuple(statuses), len(_BOOT.findall(text)), tuple(complaints))


async def read_all(client: VpxdClient, vm: str) -> ConsoleFacts:
    """What the console shows now. Raises as VpxdClient.call."""
    text = bytearray()
    request = service_pb2.ReadConsoleRequest(vm=vm)
    async with aclosing(client.stream(client.stub.ReadConsole, request, 15.0)) as pieces:
        async for piece in pieces:
            text += piece.data
    return facts_of(text.decode("utf-8", "replace"))


async def wait_for(
    client: VpxdClient, vm: str, statuses: int, timeout_s: float, beyond: int = 0
) -> ConsoleFacts:
    """Follows the console until the guest is ready and has told `statuses` lines more than `beyond`.

    :raises GuestSilent: not within `timeout_s`, or the guest complains.  Else as VpxdClient.call.
    """
    text = bytearray()
    facts = ConsoleFacts((), 0, ())
    request = service_pb2.ReadConsoleRequest(vm=vm, follow=True)
    try:
        async with aclosing(client.stream(client.stub.ReadConsole, request, timeout_s)) as pieces:
            async for piece in pieces:
                text += piece.data
                facts = facts_of(text.decode("utf-8", "replace"))
                if facts.complaints:
                    raise GuestSilent(f"The guest complains: {facts.complaints[0]}")
                if facts.boots and len(facts.statuses) >= beyond + statuses:
                    return facts
    except NoAnswer as error:
        told = f"{facts.boots} times ready, {len(facts.statuses)} status lines"
        raise GuestSilent(f"The guest hasn't said enough within {timeout_s:g} s: {told}.") from error
    raise GuestSilent("The guest's console ended.")
