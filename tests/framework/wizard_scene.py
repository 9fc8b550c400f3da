"""The scene of the wizard's tests: a real vpxd with FAKE hosts, and `vpx vm migrate` on a terminal.

esx01  shared, local, fast    port groups LAN (7), OLD (5)     web01: on, two disks on shared, NICs on LAN and OLD
esx02  shared, local, fast    port groups LAN (7), DMZ (9)     cold01: off, one disk, no NIC (on esx01)
policy gold: the tag tier:gold, which shared has
"""

import contextlib
import os
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import structlog

from demo.cluster_layout import PROJECT
from proto.vim.v1 import host_pb2, task_pb2
from proto.vmotion.v1 import spec_pb2
from proto.vpxd.v1 import service_pb2, storage_pb2
from tests.framework.fake_cluster import GIB
from tests.framework.pty_program import PtyProgram, pty_program
from tests.framework.vpxd_rig import VpxdRig, until, vpxd_rig
from vpxd.services.vm_service import VmService

DEFAULTS = spec_pb2.MigrationOptions(
    verify=spec_pb2.VERIFY_MODE_OFF,
    encryption=spec_pb2.ENCRYPTION_MODE_REQUIRED,
    priority=spec_pb2.PRIORITY_DEFAULT,
)
_GROUPS = {"esx01": {"LAN": 7, "OLD": 5}, "esx02": {"LAN": 7, "DMZ": 9}}


@dataclass
class WizardScene:
    """`arrived`: the RelocateVm requests that came to vpxd, in order."""

    rig: VpxdRig
    arrived: list[service_pb2.RelocateVmRequest] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(PROJECT),
            "HOME": "/nonexistent",
            "VPX_CONFIG": str(self.rig.config.client_dir / "client.json"),
        }

    def wizard(self, *words: str) -> AbstractAsyncContextManager[PtyProgram]:
        """`vpx vm migrate WORDS` on a terminal."""
        return pty_program([sys.executable, "-m", "vpxd.cli", "vm", "migrate", *words], self.environment)

    async def id_of(self, name: str) -> str:
        return (await self.rig.vm(name)).id

    async def request(
        self, vm: str, options: spec_pb2.MigrationOptions = DEFAULTS, **spec: Any
    ) -> service_pb2.RelocateVmRequest:
        """The request that is expected."""
        return service_pb2.RelocateVmRequest(
            vm=await self.id_of(vm), spec=service_pb2.RelocateSpec(**spec), options=options
        )


@contextlib.asynccontextmanager
async def wizard_scene(directory: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[WizardScene]:
    """The scene, running."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(file=sys.__stderr__))
    arrived: list[service_pb2.RelocateVmRequest] = []
    inner = VmService.RelocateVm

    async def noted(
        self: VmService, request: service_pb2.RelocateVmRequest, context: Any
    ) -> task_pb2.TaskInfo:
        arrived.append(request)
        return await inner(self, request, context)

    monkeypatch.setattr(VmService, "RelocateVm", noted)  # notes what comes, and lets it through
    try:
        async with vpxd_rig(directory, "esx01", "esx02") as rig:
            await _furnish(rig)
            yield WizardScene(rig, arrived)
    finally:
        structlog.reset_defaults()


async def _furnish(rig: VpxdRig) -> None:
    for name, groups in _GROUPS.items():
        info = rig.fakes.hosts[name].info
        info.port_groups.extend(
            host_pb2.PortGroup(name=group, segment_id=segment) for group, segment in groups.items()
        )
        info.datastores.add(
            name="fast",
            uuid=str(uuid.uuid4()),
            capacity_bytes=20 * GIB,
            free_bytes=15 * GIB,
            accessible=True,
        )
        rig.fakes.hosts[name].changed()
    esx01 = rig.fakes.hosts["esx01"]
    esx01.put_vm("web01", on=True, disks=2, networks=["LAN", "OLD"])
    esx01.put_vm("cold01", disks=1)

    async def seen() -> tuple[int, int]:
        vms = await rig.stub.ListVms(service_pb2.ListVmsRequest())
        hosts = await rig.stub.ListHosts(service_pb2.ListHostsRequest())
        return len(vms.vms), sum(len(host.info.port_groups) for host in hosts.hosts)

    await until(seen, lambda now: now == (2, 4))

    async def datastores() -> list[str]:
        found = await rig.stub.ListDatastores(service_pb2.ListDatastoresRequest())
        return [store.name for store in found.datastores]

    await until(datastores, lambda names: names.count("fast") == 2)
    await rig.storage.TagDatastore(storage_pb2.TagDatastoreRequest(datastore="shared", tags=["tier:gold"]))
    await rig.storage.SetPolicy(
        storage_pb2.StoragePolicy(name="gold", description="the good ones", required_tags=["tier:gold"])
    )


async def through_networks(wizard: PtyProgram, **to: str) -> None:
    """The networks' step by port group: `to` by the present one; its panel."""
    await wizard.answer("Map the networks", "1")
    for group, destination in to.items():
        await wizard.answer(f"Destination network of {group}", destination)
    await wizard.answer("Compatibility", "")


async def through_priority(wizard: PtyProgram, answer: str = "") -> None:
    """The priority's step and its panel."""
    await wizard.answer("vMotion priority\n", answer)
    await wizard.answer("Compatibility", "")


async def to_review(wizard: PtyProgram, destination: str = "esx02") -> None:
    """web01 to another host or cluster, with the defaults, as far as the last step."""
    await wizard.answer("Migration type", "1")
    await wizard.answer("Compute resource", destination)
    await wizard.answer("Compatibility", "")
    await through_networks(wizard, LAN="LAN", OLD="DMZ")
    await through_priority(wizard)


async def finished(wizard: PtyProgram) -> str:
    """Chooses "Finish", awaits the success; answers the last step's screen."""
    shown = await wizard.answer("Finish?", "1")
    status = await wizard.end()
    assert status == 0, wizard.screen[-3000:]
    return shown


def rows(shown: str) -> list[str]:
    """The lines of a screen, their words one blank apart."""
    return [" ".join(line.split()) for line in shown.splitlines()]
