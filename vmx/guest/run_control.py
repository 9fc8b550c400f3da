"""Starting, stopping and resetting the guest's processors.

Each order is followed by the event that proves it. QEMU emits that event before it answers the command, but only
if the command changed something: `stop` of a stopped guest says nothing. So an order whose event is missing
asks for the state, and waits for the event only if the state is not the wanted one yet.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

import structlog

from vmx.guest.errors import QmpBadReply, QmpFailure
from vmx.guest.nic_devices import NicDevice
from vmx.guest.qmp import QmpConnection, QmpEvent

__all__ = ["PowerState", "RunControl", "RunState"]

ORDER_DEADLINE_S = 10.0
# At once, then after 50, 100, 150 ... ms: whoever has missed one of them hears the next.
_ANNOUNCE_ROUNDS = 8
_ANNOUNCE_MS = {"initial": 50, "max": 550, "step": 50}
# It is on the way of a guest that has just gone on: a monitor that hangs must not hold that up.
_ANNOUNCE_DEADLINE_S = 1.0

_log = structlog.get_logger(__name__)


class RunState(StrEnum):
    """QEMU's run states, by the names that `query-status` tells (qapi/run-state.json)."""

    PRELAUNCH = "prelaunch"  # started with -S, not run yet
    INMIGRATE = "inmigrate"  # waits for its state
    RUNNING = "running"
    PAUSED = "paused"
    FINISH_MIGRATE = "finish-migrate"  # stopped by an outgoing migration that still goes on
    POSTMIGRATE = "postmigrate"  # stopped by an outgoing migration that has ended
    SHUTDOWN = "shutdown"
    SUSPENDED = "suspended"
    DEBUG = "debug"
    INTERNAL_ERROR = "internal-error"
    IO_ERROR = "io-error"
    SAVE_VM = "save-vm"
    RESTORE_VM = "restore-vm"
    WATCHDOG = "watchdog"
    GUEST_PANICKED = "guest-panicked"
    COLO = "colo"

    @property
    def power_state(self) -> PowerState:
        """What a vSphere client is told: anything whose processors could go on is on."""
        if self is RunState.SHUTDOWN:
            return PowerState.POWERED_OFF
        return PowerState.SUSPENDED if self is RunState.SUSPENDED else PowerState.POWERED_ON


class PowerState(StrEnum):
    """VirtualMachinePowerState of the vSphere API."""

    POWERED_ON = "poweredOn"
    POWERED_OFF = "poweredOff"
    SUSPENDED = "suspended"


@dataclass(frozen=True)
class _Order:
    command: str
    event: str
    goal_is_running: bool


_STOP = _Order("stop", "STOP", goal_is_running=False)
_CONT = _Order("cont", "RESUME", goal_is_running=True)


class RunControl:
    """The guest's run state, over a QMP connection that its owner closes."""

    def __init__(self, qmp: QmpConnection) -> None:
        self._qmp = qmp

    async def state(self) -> RunState:
        """The run state now.

        :raises QmpFailure: see :meth:`QmpConnection.execute`.
        """
        status = (await self._qmp.query("query-status")).get("status")
        try:
            return RunState(str(status))
        except ValueError:
            raise QmpBadReply("query-status", f"unknown run state {status!r}") from None

    async def stop(self) -> QmpEvent | None:
        """Stops all vCPUs; returns when they are stopped and device I/O is drained.

        Returns the STOP event, or None where they were stopped already. On failure the state is not known.

        :raises QmpFailure: see :meth:`QmpConnection.execute`; QmpTimeout where they did not stop in time.
        """
        return await self._carry_out(_STOP)

    async def cont(self) -> QmpEvent | None:
        """Lets the vCPUs run; returns the RESUME event, or None where they ran already.

        :raises QmpFailure: as :meth:`stop`. QmpError where the guest may not run, for instance before its state
            has arrived.
        """
        return await self._carry_out(_CONT)

    async def reset(self) -> None:
        """Resets the machine, as its reset button would. A stopped guest stays stopped.

        :raises QmpFailure: as :meth:`stop`.
        """
        with self._qmp.subscribe("RESET") as events:
            await self._qmp.execute("system_reset")
            await events.next(ORDER_DEADLINE_S)

    async def announce(self, nics: Collection[NicDevice]) -> None:
        """Tells the network where the guest is: a RARP frame from each NIC's MAC now and again for two seconds, and
        the guest's own gratuitous ARP where its driver has it (VIRTIO_NET_F_GUEST_ANNOUNCE).

        For a guest that has just gone on, here or here again: virtual switches find it by these frames. Never raises
        for what QEMU says, since the guest runs whether it is announced or not.
        """
        if not any(nic.connected for nic in nics):
            return
        try:
            await self._qmp.execute(
                "announce-self", {**_ANNOUNCE_MS, "rounds": _ANNOUNCE_ROUNDS}, deadline_s=_ANNOUNCE_DEADLINE_S
            )
        except QmpFailure as error:
            _log.warning("guest_not_announced", reason=str(error))

    async def unplug(self, nics: Collection[NicDevice]) -> None:
        """Takes the carrier from the NICs that aren't connected: without a backend QEMU would still show one.

        :raises QmpFailure: see :meth:`QmpConnection.execute`.
        """
        for nic in nics:
            if not nic.connected:
                await self._qmp.execute("set_link", {"name": nic.device_id, "up": False})

    async def press_power_button(self) -> None:
        """Tells the guest to shut itself down (ACPI); whether and when it does is its own affair.

        :raises QmpFailure: see :meth:`QmpConnection.execute`.
        """
        await self._qmp.execute("system_powerdown")

    async def quit(self) -> None:
        """Tells QEMU to end. Returns when QEMU has taken the order: wait for the end of the process itself.

        :raises QmpFailure: see :meth:`QmpConnection.execute`.
        """
        await self._qmp.execute("quit")

    async def _carry_out(self, order: _Order) -> QmpEvent | None:
        with self._qmp.subscribe(order.event) as events:
            await self._qmp.execute(order.command, deadline_s=ORDER_DEADLINE_S)
            event = events.take()
            if event is not None:
                return event
            if (await self.state() is RunState.RUNNING) == order.goal_is_running:
                return events.take()
            return await events.next(ORDER_DEADLINE_S)
