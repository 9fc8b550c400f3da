"""Pings a VM from outside of all hosts, in a process of its own, so that nothing else delays its clock.

python -m demo.ping_observer '<settings as JSON>'      prints how many pings were answered, line by line;
                                                       ends with the whole record when its input is closed
"""

import asyncio
import json
import select
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from demo.ethernet_station import EthernetStation, Interface
from demo.pings import PingRecord

_TELL_S = 0.1
_MAX_LINE_BYTES = 1 << 24
_VXLAN_PORT = 4789


@dataclass(frozen=True)
class PingSettings:
    """Who pings whom. `address` is the station's own on the network of the virtual switches, `peers` are theirs."""

    address: str
    peers: Sequence[str]
    segment_id: int
    mac: str
    ip: str
    target_ip: str
    target_mac: str
    interval_ms: float = 10.0


class PingObserver:
    """The pings so far."""

    def __init__(self, settings: PingSettings) -> None:
        self.record = PingRecord(settings.interval_ms)
        self._settings = settings
        self._answered = 0
        self._told = asyncio.Condition()

    async def answers(self, more: int, timeout_s: float) -> None:
        """Waits for so many answers beyond those that there are. :raises TimeoutError: they didn't come."""
        goal = self._answered + more
        async with asyncio.timeout(timeout_s), self._told:
            await self._told.wait_for(lambda: self._answered >= goal)

    @asynccontextmanager
    async def pinging(self, project: Path) -> AsyncIterator["PingObserver"]:
        """Pings while the body runs; `record` is whole after it.

        :raises RuntimeError: the pinging process failed.
        """
        words = ("-m", "demo.ping_observer", json.dumps(asdict(self._settings)))
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            sys.executable, *words, cwd=project, stdin=pipe, stdout=pipe, limit=_MAX_LINE_BYTES
        )
        assert process.stdin is not None
        assert process.stdout is not None
        reader = asyncio.create_task(self._collect(process.stdout))
        try:
            yield self
        finally:
            process.stdin.close()
            try:
                await asyncio.wait_for(process.wait(), 5)
            except TimeoutError:
                process.kill()
                await process.wait()
            await reader
        if process.returncode != 0:
            raise RuntimeError(f"the pinging process ended with status {process.returncode}")

    async def _collect(self, lines: asyncio.StreamReader) -> None:
        async for raw in lines:
            told = json.loads(raw)
            if "sent_s" in told:
                told["answered_s"] = {int(number): at_s for number, at_s in told["answered_s"].items()}
                self.record = PingRecord(**told)
                continue
            async with self._told:
                self._answered = told["answered"]
                self._told.notify_all()


def ping(settings: PingSettings) -> None:
    """Pings until the input is closed."""
    peers = [(peer, _VXLAN_PORT) for peer in settings.peers]
    interface = Interface(settings.segment_id, settings.mac, settings.ip)
    station = EthernetStation((settings.address, _VXLAN_PORT), peers, interface)
    with station, station.pinging(settings.target_ip, settings.interval_ms) as pings:
        while not select.select([sys.stdin], [], [], _TELL_S)[0]:
            print(json.dumps({"answered": len(pings.answered_s)}), flush=True)
    heard = [one.at_s for one in station.announcements if one.mac == settings.target_mac]
    record = PingRecord(settings.interval_ms, pings.sent_s, pings.answered_s, pings.duplicates, heard)
    print(json.dumps(asdict(record)), flush=True)


if __name__ == "__main__":
    ping(PingSettings(**json.loads(sys.argv[1])))
