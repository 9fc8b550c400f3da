"""Follows each vmx from its start, or from when it's found again, to its end.

    attach ──▶ follow states ──▶ the guest ended ──▶ retire vmx ──┐
                   │                                              ├─▶ nothing runs: reservation freed
                   └────────▶ vmx ended ──▶ does QEMU live? ──no──┘
                                                 └─yes─▶ unmanaged: left alone until it ends

A guest is never ended from here: a vmx that has died says nothing about its QEMU. Full adoption of such a guest by a
new vmx isn't done here; until then it's reported as running, with the reason in `failure`, and can be powered off.
"""

import asyncio

import structlog

from hostd.host.changes import Changes
from hostd.host.process import ProcessHandle, identify
from hostd.network.switch_process import SwitchProcess
from hostd.owned_tasks import OwnedTasks
from hostd.vm.machine import AttachedVmx, Machine
from hostd.vm.vmx_client import VmxClient
from hostd.vm.vmx_process import VmxProcesses
from hostd.vmotion.admission import Admission
from proto.vim.v1 import host_pb2
from proto.vmx.v1 import service_pb2
from runtime.faults import VimFault

_log = structlog.get_logger(__name__)

# After its guest's end vmx ends by itself; it's told to, and at last made to.
_OWN_END_S = 4.0
_TOLD_END_S = 5.0
_RETRY_S = 0.5
_STATE_TIMEOUT_S = 5.0
_WITHOUT_GUEST = frozenset(
    {
        host_pb2.EXECUTION_STATE_UNSPECIFIED,
        host_pb2.EXECUTION_STATE_OFF,
        host_pb2.EXECUTION_STATE_STARTING,
    }
)


class Supervisor:
    """All vmx processes of this host."""

    def __init__(
        self,
        processes: VmxProcesses,
        admission: Admission,
        tasks: OwnedTasks,
        changes: Changes,
        switch: SwitchProcess,
    ) -> None:
        self.processes = processes
        self._admission = admission
        self._tasks = tasks
        self._changes = changes
        self._switch = switch

    async def start(self, machine: Machine) -> AttachedVmx:
        """Start a vmx for the VM and follow it.

        :raises InvalidState: one lives already.
        :raises CannotAccessNetwork: it has a NIC that is connected, and the virtual switch can't be started.
        :raises GuestStartFailed: it didn't come up; nothing is left.
        """
        if any(nic.connected for nic in machine.config.nics):
            await self._switch.ensure()
        process = await self.processes.start(machine.uuid)
        return self.attach(machine, process)

    def attach(self, machine: Machine, process: ProcessHandle) -> AttachedVmx:
        """Follow a vmx that lives. The VM counts as active until it has ended."""
        client = VmxClient(self.processes.socket_path(machine.uuid), machine.name)
        machine.vmx = AttachedVmx(process, client)
        machine.state = service_pb2.GetStateResponse(execution_state=host_pb2.EXECUTION_STATE_STARTING)
        machine.guest, machine.failure, machine.ending = None, "", False
        machine.idle.clear()
        self._tasks.start(self._supervise(machine, machine.vmx), f"vmx of {machine.name}", detached=True)
        self._changes.ring()
        return machine.vmx

    def attach_unmanaged(self, machine: Machine, guest: ProcessHandle) -> None:
        """Watch a guest whose vmx is dead."""
        machine.vmx, machine.unmanaged, machine.guest = None, guest, guest.process
        machine.failure = (
            f"The VM's vmx process has ended; its guest (pid {guest.process.pid}) runs unmanaged."
        )
        machine.idle.clear()
        _log.error("guest_unmanaged", vm_uuid=machine.uuid, vm=machine.name, guest_pid=guest.process.pid)
        self._tasks.start(self._watch_unmanaged(machine, guest), f"guest of {machine.name}", detached=True)
        self._changes.ring()

    async def settled(self, machine: Machine) -> bool:
        """Wait until vmx has told a state in which there is a guest, or has ended; False: it did neither in time.

        All states come by WatchState, so that they come in order; this is for who has to have one before he goes on.
        """
        deadline = asyncio.get_running_loop().time() + _STATE_TIMEOUT_S
        while machine.vmx is not None and machine.execution_state in _WITHOUT_GUEST:
            left_s = deadline - asyncio.get_running_loop().time()
            if not await self._changes.wait_past(self._changes.version, max(left_s, 0)):
                return False
        return True

    async def note_guest(self, machine: Machine, state: service_pb2.GetStateResponse) -> None:
        """Write down who its guest is, so that it is found when its vmx is gone."""
        known = machine.guest.pid if machine.guest is not None else 0
        if state.qemu_pid and state.qemu_pid != known:
            machine.guest = identify(state.qemu_pid)
            await asyncio.to_thread(self.processes.note_guest, machine.uuid, machine.guest)

    async def _take_state(self, machine: Machine, state: service_pb2.GetStateResponse) -> None:
        """Keep what vmx told, note who its guest is, and tell the VM's migration."""
        await self.note_guest(machine, state)
        changed = state.execution_state != machine.state.execution_state
        machine.state = state
        if changed:
            name = host_pb2.ExecutionState.Name(state.execution_state)
            _log.info("vm_state", vm_uuid=machine.uuid, vm=machine.name, execution_state=name)
        if machine.observer is not None:
            await machine.observer.state_changed(machine)
        self._changes.ring()

    async def _supervise(self, machine: Machine, vmx: AttachedVmx) -> None:
        guest_ended = await self._follow_states(machine, vmx)
        if guest_ended:
            await self._retire(machine, vmx)
        await vmx.process.wait()
        await vmx.client.close()
        vmx.process.close()
        guest = self._living_guest(machine)
        if not guest_ended and not machine.ending:
            _log.error("vmx_died", vm_uuid=machine.uuid, vm=machine.name, guest_alive=guest is not None)
        if machine.observer is not None:
            await machine.observer.vmx_ended(machine, guest)
            if guest is not None and not guest.alive:
                guest = None
        if guest is not None:
            self.attach_unmanaged(machine, guest)
        else:
            await self._conclude(machine, expected=guest_ended or machine.ending)

    async def _follow_states(self, machine: Machine, vmx: AttachedVmx) -> bool:
        """Until vmx ends (False) or says that its guest has (True)."""
        begun = False
        while vmx.process.alive:
            try:
                async for state in vmx.client.watch_state():
                    await self._take_state(machine, state)
                    begun = begun or state.execution_state not in _WITHOUT_GUEST
                    over = state.execution_state == host_pb2.EXECUTION_STATE_OFF and begun
                    if over or state.execution_state == host_pb2.EXECUTION_STATE_FAILED:
                        return True
            except VimFault as fault:
                if not await vmx.process.wait(timeout_s=_RETRY_S):
                    _log.warning("vmx_not_answering", vm_uuid=machine.uuid, reason=str(fault))
            else:
                await vmx.process.wait(timeout_s=_RETRY_S)
        return False

    async def _retire(self, machine: Machine, vmx: AttachedVmx) -> None:
        """End a vmx that has no guest any more."""
        if await vmx.process.wait(timeout_s=_OWN_END_S):
            return
        try:
            await vmx.client.power_off()
        except VimFault as fault:
            _log.warning("vmx_power_off_failed", vm_uuid=machine.uuid, reason=str(fault))
        if not await vmx.process.wait(timeout_s=_TOLD_END_S):
            _log.error("vmx_killed", vm_uuid=machine.uuid, pid=vmx.process.process.pid)
            vmx.process.kill()

    def _living_guest(self, machine: Machine) -> ProcessHandle | None:
        if machine.guest is not None:
            return ProcessHandle.open(machine.guest)
        return self.processes.find_guest(machine.uuid)

    async def _watch_unmanaged(self, machine: Machine, guest: ProcessHandle) -> None:
        await guest.wait()
        guest.close()
        await self._conclude(machine, expected=machine.ending)

    async def _conclude(self, machine: Machine, *, expected: bool) -> None:
        """Nothing of the VM runs here any more."""
        machine.failure = "" if machine.ending else machine.state.failure
        if not expected and not machine.failure:
            machine.failure = "The VM's processes ended unexpectedly."
        machine.vmx = machine.unmanaged = None
        machine.state = service_pb2.GetStateResponse()
        machine.cpu_percent = 0.0
        if not machine.failure:
            machine.guest = None
        self._admission.release(machine.uuid)
        await asyncio.to_thread(self.processes.note_guest, machine.uuid, None)
        _log.info("vm_powered_off", vm_uuid=machine.uuid, vm=machine.name, failure=machine.failure)
        machine.idle.set()
        self._changes.ring()
