"""One VM with a disk whose home and disk move, between VirtualMachines of this process that run real QEMUs without an
operating system: every host has a datastore of its own, and so an owner record and a run lock of its own.

The test is hostd (it makes homes and empty disks) and vpxd (`relay` brings a destination's last word to the source).
"""

import asyncio
import contextlib
import secrets
import shutil
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from proto.vim.v1 import vm_config_pb2
from proto.vmx.v1 import service_pb2
from runtime import failpoint
from runtime.faults import VimFault
from runtime.ondisk import owner_record
from runtime.ondisk.owner_record import OwnerRecord
from runtime.ondisk.run_lock import is_held
from tests.framework.failpoint_pause import FailpointPause
from tests.framework.guest_disks import KEY, MIB, disk_nodes, empty_extent, filled_extent, qemu_io
from tests.framework.vmotion_link import VMotionLink
from tests.framework.vmx_hosts import VmxHost
from vmx import messages
from vmx.config import Config
from vmx.guest.command_line import Accelerator
from vmx.migration.failpoints import FAILPOINTS
from vmx.migration.order import Endpoint, MigrationOrder, Options, Ticket
from vmx.migration.source import SourceMigration
from vmx.offline_vm import OfflineVm
from vmx.stream import OLDEST_STREAM_VERSION, STREAM_VERSION
from vmx.stream.spec import DiskExtent, StreamTimeouts
from vmx.virtual_machine import VirtualMachine
from vmx.vm_state import ExecutionState

CAPACITY = 16 * MIB
_RAM_BYTES = 32 << 20
_SETTLED_DEADLINE_S = 20.0
_LET_GO_S = 2.0
# A peer is silent after this: the least that a migration may ask for.
SILENT_S = 0.5


async def until(condition: Callable[[], bool]) -> None:
    """Waits for what no event tells of."""
    async with asyncio.timeout(_SETTLED_DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.01)


@dataclass
class DiskHost:
    """A host, its datastore and its vmx for the one VM."""

    identity: VmxHost
    home: Path
    config: Config
    vm: VirtualMachine
    offline: OfflineVm

    @property
    def extent(self) -> Path:
        """The disk, here."""
        return self.home / "web01-flat.vmdk"

    @property
    def place(self) -> service_pb2.VmPlace:
        """Where the VM's files are here."""
        disk = service_pb2.DiskPlace(
            key=KEY,
            extent_path=str(self.extent),
            format=vm_config_pb2.DISK_FORMAT_THIN,
            capacity_bytes=CAPACITY,
        )
        return service_pb2.VmPlace(
            home_directory=str(self.home),
            host_uuid=self.identity.uuid,
            host_name=self.identity.name,
            disks=[disk],
        )

    @property
    def record(self) -> OwnerRecord:
        """This home's owner record."""
        return owner_record.read(owner_record.owner_path(self.home, "web01"))

    @property
    def lock_is_held(self) -> bool:
        """Whether anything may run the VM from this home."""
        return is_held(owner_record.run_lock_path(self.home, "web01"))

    @property
    def endpoint(self) -> Endpoint:
        """As the order has it."""
        return Endpoint(self.identity.uuid, self.identity.name, self.identity.vmotion_address)


@dataclass
class DiskScene:
    """A VM on its first host. `close` ends everything."""

    qemu_binary: Path
    powered_off: bool = False
    silent_s: float = SILENT_S
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="dsc-")))
    vm_uuid: str = field(default_factory=lambda: str(uuid.uuid4()))
    hosts: list[DiskHost] = field(default_factory=list)
    link: VMotionLink | None = None
    order: MigrationOrder | None = None
    _links: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)

    @property
    def config(self) -> vm_config_pb2.VmConfig:
        """The VM's configuration."""
        disk = vm_config_pb2.VirtualDisk(
            key=KEY, capacity_bytes=CAPACITY, format=vm_config_pb2.DISK_FORMAT_THIN
        )
        return vm_config_pb2.VmConfig(
            uuid=self.vm_uuid,
            name="web01",
            vcpus=1,
            ram_bytes=_RAM_BYTES,
            machine_type="pc-q35-7.2",
            cpu_model="qemu64",
            disks=[disk],
        )

    @property
    def source(self) -> DiskHost:
        """Where the VM is at the beginning."""
        return self.hosts[0]

    @property
    def destination(self) -> DiskHost:
        """Where it goes first."""
        return self.hosts[1]

    async def open(self) -> None:
        """The first host, with the VM running or off."""
        host = self.add_host()
        await asyncio.to_thread(filled_extent, host.extent, CAPACITY)
        owner_record.create(owner_record.owner_path(host.home, "web01"), self.vm_uuid, host.identity.uuid)
        if not self.powered_off:
            await host.vm.power_on(self.config, host.place)

    def add_host(self, like: DiskHost | None = None) -> DiskHost:
        """One more host, or one more home on the host `like`."""
        number = len(self.hosts) + 1
        home = self.folder / f"ds{number}" / "web01"
        home.mkdir(parents=True)
        identity = (
            like.identity if like else VmxHost(f"esx0{number}", str(uuid.uuid4()), f"127.0.213.{number}")
        )
        run_dir = self.folder / f"r{number}"
        run_dir.mkdir(mode=0o700)
        config = Config(
            vm_uuid=self.vm_uuid,
            run_dir=run_dir,
            host_name=identity.name,
            host_uuid=identity.uuid,
            vmotion_address=identity.vmotion_address,
            qemu_binary=self.qemu_binary,
            accelerator=Accelerator.TCG,
            log_json=False,
        )
        vm = like.vm if like else VirtualMachine(config)
        offline = like.offline if like else OfflineVm(config, vm.end_without_guest)
        host = DiskHost(identity, home, config, vm, offline)
        self.hosts.append(host)
        return host

    def make_home(self, host: DiskHost, owner: str) -> None:
        """What hostd makes before a move: record and empty disk."""
        owner_record.create(owner_record.owner_path(host.home, "web01"), self.vm_uuid, owner)
        empty_extent(host.extent, CAPACITY)

    def order_for(self, source: DiskHost, destination: DiskHost) -> MigrationOrder:
        """One move of home and disk."""
        within = source.identity is destination.identity
        return MigrationOrder(
            migration_id=secrets.randbits(62) + 1,
            task_id="task-1",
            vm_uuid=self.vm_uuid,
            vm_name="web01",
            ram_bytes=0 if self.powered_off else _RAM_BYTES,
            source=source.endpoint,
            destination=destination.endpoint,
            key=b"" if within else secrets.token_bytes(32),
            options=Options(timeouts=StreamTimeouts(silent_peer_s=self.silent_s)),
            moves_home=True,
            disks=(DiskExtent(KEY, CAPACITY),),
            powered_off=self.powered_off,
        )

    async def begin(self, source: DiskHost, destination: DiskHost) -> MigrationOrder:
        """Prepare the destination, and start the source behind a relay."""
        self.make_home(destination, source.identity.uuid)
        self.order = order = self.order_for(source, destination)
        if self.powered_off:
            ticket = await destination.offline.prepare_destination(order, self.config, destination.place)
        else:
            ticket = await destination.vm.prepare_destination(order, self.config, destination.place)
        message = messages.ticket_message(ticket, OLDEST_STREAM_VERSION, STREAM_VERSION)
        self.link = VMotionLink(source.identity, message)
        await self._links.enter_async_context(self.link)
        await self._start(source, order, replace(ticket, port=self.link.ticket.port))
        return order

    async def _start(self, source: DiskHost, order: MigrationOrder, ticket: Ticket) -> None:
        if self.powered_off:
            await source.offline.start_source(order, ticket, self.config, source.place)
        else:
            await source.vm.start_source(order, ticket)

    async def pause_at(self, point: str) -> FailpointPause:
        """Arm a failpoint on which the next move will stand."""
        pause = FailpointPause(self.folder / "pause.sock")
        await pause.__aenter__()
        self.arm(point, pause.action)
        return pause

    def arm(self, point: str, action: str) -> None:
        """Arm a failpoint of the next move."""
        failpoint.arm({failpoint.VARIABLE: f"{point}={action}"}, FAILPOINTS)

    async def outcome(self, host: DiskHost) -> VimFault | None:
        """What the host's session says in the end; None: it succeeded."""
        session = host.offline.session if self.powered_off else host.vm.session(self.order_id)
        assert session is not None
        await until(lambda: session.is_over)
        return session.board.now.fault

    @property
    def order_id(self) -> int:
        """Of the present move."""
        assert self.order is not None, "begun"
        return self.order.migration_id

    def gave_away(self, host: DiskHost) -> bool:
        """As far as the source knows."""
        if self.powered_off:
            return host.record.owner_host_uuid != host.identity.uuid
        session = host.vm.session(self.order_id)
        return isinstance(session, SourceMigration) and session.guest_left

    async def relay(self) -> None:
        """As vpxd: the destination's end is over; the source hears what it said, if it doesn't know."""
        source, destination = self.source, self.destination
        has_vm = await self.outcome(destination) is None
        session = source.offline.session if self.powered_off else source.vm.session(self.order_id)
        assert session is not None
        await until(lambda: session.is_over or source.record.owner_host_uuid != source.identity.uuid)
        present = source.record
        if present.owner_host_uuid == destination.identity.uuid:
            owner = destination if has_vm else source
            path = owner_record.owner_path(source.home, "web01")
            owner_record.swap(path, present, owner.identity.uuid)

    # ---- what must hold

    async def assert_it_is_on(self, host: DiskHost, home: DiskHost | None = None) -> None:
        """The guest runs on `host` from `home`, writes to the disk there, and nothing is left of any move."""
        home = home or host
        await until(lambda: host.vm.state is ExecutionState.RUNNING)
        guest = host.vm.guest
        assert guest is not None
        assert home.record.owner_host_uuid == host.identity.uuid
        assert home.lock_is_held
        assert await guest.qmp.execute("query-block-jobs") == []
        nodes = await disk_nodes(guest)
        assert len(nodes) == 2, nodes
        assert await guest.qmp.execute("query-block-exports") == []
        await qemu_io(guest, "write -P 0x5a 5M 4k")
        await qemu_io(guest, "flush")
        assert home.extent.read_bytes()[5 * MIB : 5 * MIB + 4096] == b"\x5a" * 4096
        left = {path.name for path in host.config.run_dir.glob("*.sock")}
        assert not {name for name in left if name.startswith(("m2", "export", "image", "state"))}, left

    async def assert_it_can_move_on(self, host: DiskHost) -> None:
        """The next move succeeds, with the disk's contents."""
        wanted = host.extent.read_bytes()
        following = self.add_host()
        failpoint.arm({}, FAILPOINTS)
        await self.begin(host, following)
        assert await self.outcome(host) is None
        assert await self.outcome(following) is None
        assert following.extent.read_bytes() == wanted
        if not self.powered_off:
            await host.vm.complete_migration(self.order_id)
            await following.vm.complete_migration(self.order_id)
            await self.assert_it_is_on(following)

    def assert_contents_at(self, home: DiskHost, contents: bytes) -> None:
        """The disk is as it was."""
        assert home.extent.read_bytes() == contents, "the disk isn't as it was"

    async def close(self) -> None:
        """End everything."""
        failpoint.arm({}, FAILPOINTS)
        await self._links.aclose()
        for host in self.hosts:
            for vmx in (host.vm, host.offline):
                with contextlib.suppress(
                    VimFault, TimeoutError
                ):  # one that waits for a record has to be left
                    async with asyncio.timeout(_LET_GO_S):
                        await vmx.let_go()
            guest = host.vm.guest
            if guest is not None:
                await guest.kill()
                await guest.close()
        shutil.rmtree(self.folder, ignore_errors=True)
