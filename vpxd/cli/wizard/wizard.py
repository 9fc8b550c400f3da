"""The way through the steps: next, back, and the panel after each."""

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

from proto.vpxd.v1 import service_pb2
from runtime.faults import VimFault
from vpxd.cli.client import VpxdClient
from vpxd.cli.errors import CliError, NoAnswer, NoConnection
from vpxd.cli.fault_text import say
from vpxd.cli.wizard.choices import TITLES, Choices, Step
from vpxd.cli.wizard.dialog import Dialog, StepBack
from vpxd.cli.wizard.network_step import ask_networks
from vpxd.cli.wizard.panel import show_compatibility
from vpxd.cli.wizard.review_step import review
from vpxd.cli.wizard.steps import Tour, ask_compute, ask_priority, ask_type, ask_vm
from vpxd.cli.wizard.storage_step import ask_storage
from vpxd.cli.wizard.world import World

if TYPE_CHECKING:
    from vpxd.cli.session import Session

_ASK: Mapping[Step, Callable[[Tour], Awaitable[None]]] = {
    Step.VM: ask_vm,
    Step.TYPE: ask_type,
    Step.COMPUTE: ask_compute,
    Step.STORAGE: ask_storage,
    Step.NETWORKS: ask_networks,
    Step.PRIORITY: ask_priority,
    Step.REVIEW: review,
}
_CHECKED = frozenset({Step.COMPUTE, Step.STORAGE, Step.NETWORKS, Step.PRIORITY})


class Wizard:
    """One walk. `choices`: what is chosen already; its VM is asked for where it isn't."""

    def __init__(self, session: "Session", client: VpxdClient, choices: Choices, fd: int) -> None:
        dialog = Dialog(session.stdout, fd)
        self._tour = Tour(session.stdout, dialog, World(session, client), choices)
        self._asks_vm = not choices.vm.id
        self._step = Step.VM if self._asks_vm else Step.TYPE

    @property
    def choices(self) -> Choices:
        return self._tour.choices

    async def run(self) -> service_pb2.RelocateVmRequest:
        """The request, when "Finish" is chosen. Called again, it goes on at the last step.

        :raises Interrupted: it is canceled.
        """
        while True:
            self._head()
            try:
                await self._take(self._step)
            except StepBack:
                self._go_back()
                continue
            if self._step is Step.REVIEW:
                return self.choices.request()
            self._step = next(step for step in self._steps() if step > self._step)

    def refused(self, error: VimFault | CliError) -> None:
        """Says that vpxd didn't take the request, or didn't answer."""
        for line in say(error):
            self._tour.dialog.tell(line)

    async def _take(self, step: Step) -> None:
        """One step, until there is an answer that no error stands against."""
        while True:
            try:
                await _ASK[step](self._tour)
                if step not in _CHECKED:
                    return
                blocked = await show_compatibility(self._tour.console, self._tour.world, self.choices, step)
            except (VimFault, NoConnection, NoAnswer) as error:  # it refuses the question, or isn't there
                self.refused(error)
                blocked = True
            if await self._tour.dialog.go_on(blocked=blocked):
                return

    def _go_back(self) -> None:
        before = [step for step in self._steps() if step < self._step]
        if before:
            self._step = before[-1]
        else:
            self._tour.dialog.tell("This is the first step.")

    def _head(self) -> None:
        steps = self._steps()
        number = steps.index(self._step) + 1
        vm = self.choices.vm.name
        of_vm = f" ({vm})" if vm and self._step is not Step.VM else ""
        self._tour.dialog.head(f"{number}  {TITLES[self._step]}{of_vm}")

    def _steps(self) -> list[Step]:
        return [
            step for step in Step if self.choices.applies(step) and (step is not Step.VM or self._asks_vm)
        ]
