"""A whole cluster as processes on this machine: vpxd and hosts on loopback addresses.

    async with LocalCluster(ClusterLayout(directory)).running() as cluster:
        async with connect(cluster.client_config) as vpxd: ...

    python -m demo.local_cluster up|down|status [--dir out/cluster] [--hosts 3]      (cluster_commands.py)

`up` starts what isn't running yet, joins hosts with one-time tokens and returns when every host is connected; `down`
ends exactly what the cluster has started, VMs included, and leaves the inventory and the datastores for the next `up`.
Each daemon runs in a session of its own, so that a Ctrl-C here isn't one there.
"""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

from demo import cluster_state
from demo.cluster_layout import PROJECT, ClusterLayout, Daemon
from demo.cluster_ready import connected_hosts, wait_for_hosts, wait_until_serving, wait_until_serving_locally
from demo.cluster_state import ClusterState
from demo.errors import ClusterError, DaemonEnded, LeftOver, NotReady, PortBusy
from demo.processes import ProcessId, command_of, end, identify, is_alive, send, started_for
from demo.processes import rss_mib as process_rss_mib
from proto.vpxd.v1 import service_pb2
from runtime.rpc.identity import Identity, Role
from vpxd.cli.client import VpxdClient, connect
from vpxd.cli.config import ClientConfig, load_config

Say = Callable[[str], None]
_START_TIMEOUT_S = 60.0
_JOIN_TIMEOUT_S = 60.0
_STOP_GRACE_S = 10.0
_IMAGES = ("vmlinuz", "initrd.img")
_SWITCH = ["-m", "vswitch"]
GUEST_IMAGES = PROJECT / "out" / "guest"


def _silent(_text: str) -> None:
    """Says nothing."""


class LocalCluster:
    """The cluster of one layout; the same layout in another process is the same cluster."""

    def __init__(self, layout: ClusterLayout, images: Path | None = GUEST_IMAGES, say: Say = _silent) -> None:
        self.layout = layout
        self._images = images
        self._say = say
        self._state = ClusterState()
        self._started: set[ProcessId] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["LocalCluster"]:
        """The cluster while the body runs; whatever happens, nothing that it started runs after it.

        :raises ClusterError: it can't be started, or something of it couldn't be ended.
        """
        try:
            await self.up()
            yield self
        finally:
            await self.down()

    @property
    def client_config(self) -> ClientConfig:
        """For vpxd.cli.client.connect. :raises NoConfiguration: vpxd hasn't been up yet."""
        return load_config(self.layout.client_directory)

    async def up(self) -> None:
        """Starts what isn't running and waits until every host is connected. Idempotent.

        :raises ClusterError: a port is busy, a daemon ended, or it took too long. If nothing ran before, nothing does.
        """
        state = await asyncio.to_thread(self._load)
        runs = state is not None and any(map(is_alive, state.processes.values()))
        if state is not None and runs:
            self._refuse_other_shape(state)
        self._state = state if state is not None and runs else self._new_state()
        try:
            await asyncio.to_thread(self._prepare_folders)
            async with asyncio.timeout(_START_TIMEOUT_S):
                await self._start_all()
        except BaseException as error:
            if not runs:  # all or nothing; but what ran before stays
                await asyncio.to_thread(self._down)
            if isinstance(error, TimeoutError):
                text = f"The cluster wasn't ready within {_START_TIMEOUT_S:.0f} s"
                raise NotReady(f"{text}; see {self.layout.log_directory}.") from error
            raise

    async def down(self) -> list[str]:
        """Ends all that the cluster started, guests included; answers the daemons that had to be killed. Idempotent.

        :raises LeftOver: something can't be ended.  :raises ClusterError: state.json can't be read.
        """
        return await asyncio.to_thread(self._down)

    def process(self, name: str) -> ProcessId | None:
        """The living daemon of this name: "vpxd", "esx01-hostd", "esx01-vpxa"."""
        process = self._state.processes.get(name)
        return process if process is not None and is_alive(process) else None

    def rss_mib(self) -> dict[str, float]:
        """Resident memory of each daemon now."""
        return {
            daemon.name: process_rss_mib(process)
            for daemon in self.layout.daemons()
            if (process := self.process(daemon.name)) is not None
        }

    def signal(self, name: str, number: signal.Signals) -> bool:
        """Sends a signal to a daemon; False: it isn't running. For tests of what a crash leaves."""
        process = self.process(name)
        return process is not None and send(process, number)

    async def end_daemon(self, name: str, *, kill: bool = False) -> None:
        """Ends one daemon, by SIGKILL if asked, and waits until it's gone."""
        process = self.process(name)
        if process is not None:
            if kill:
                send(process, signal.SIGKILL)
            await asyncio.to_thread(end, [process], _STOP_GRACE_S)

    async def start_daemon(self, name: str) -> None:
        """Starts one daemon again unless it runs; doesn't wait until it serves.

        :raises PortBusy: its address is in use.  :raises ClusterError: there is no such daemon.
        """
        daemon = next((one for one in self.layout.daemons() if one.name == name), None)
        if daemon is None:
            raise ClusterError(f"There is no daemon {name}.")
        await asyncio.to_thread(self._start, daemon)

    async def wait_until_ready(self) -> None:
        """Waits until all hosts are connected. :raises NotReady: not in time."""
        try:
            async with asyncio.timeout(_START_TIMEOUT_S), connect(self.client_config) as client:
                await wait_for_hosts(client, self.layout.host_names)
        except TimeoutError as error:
            raise NotReady("Not all hosts are connected in time.") from error

    def vm_processes(self) -> list[ProcessId]:
        """The living processes of VMs: vmx and QEMU, of all hosts."""
        daemons = set(self._state.processes.values())
        others = [one for one in started_for(self.layout.run_directory) if one not in daemons]
        return [one for one in others if command_of(one)[-2:] != _SWITCH]

    def switch(self, host: str) -> ProcessId | None:
        """The living virtual switch of a host."""
        found = started_for(self.layout.host_run_directory(host))
        found = [one for one in found if command_of(one)[-2:] == _SWITCH]
        return found[0] if found else None

    def vmx_rss_mib(self) -> dict[str, float]:
        """Resident memory of each vmx: "vmx", "vmx 2", ..."""
        found = [one for one in self.vm_processes() if command_of(one)[-2:] == ["-m", "vmx"]]
        names = ["vmx", *(f"vmx {number}" for number in range(2, len(found) + 1))]
        return {name: process_rss_mib(one) for name, one in zip(names, found, strict=False)}

    def leftovers(self) -> list[str]:
        """What runs of all that this object has started, and of what was started for its run folder."""
        found = {one for one in self._started if is_alive(one)} | set(started_for(self.layout.run_directory))
        return [f"{one.pid} {' '.join(command_of(one))[:80]}" for one in found]

    # -- starting ---------------------------------------------------------------------------------------------------

    async def _start_all(self) -> None:
        layout = self.layout
        vpxd = layout.vpxd()
        if self.process(vpxd.name) is None:
            # A new vpxd writes it when it serves: an old one would be taken for the new one's word.
            (layout.client_directory / "client.json").unlink(missing_ok=True)
            await asyncio.to_thread(self._start, vpxd)
        await self._while_alive([vpxd], self._vpxd_serves())
        self._say(f"vpxd serves at {layout.server}")
        async with connect(self.client_config) as client:
            async with asyncio.TaskGroup() as group:
                for number in range(1, layout.host_count + 1):
                    group.create_task(self._bring_up_host(client, number))
            await self._add_hosts(client)  # one after the other: their ids are in the order of their names
            await self._while_alive(layout.daemons(), wait_for_hosts(client, layout.host_names))
        self._say(f"{layout.host_count} hosts are connected: {', '.join(layout.host_names)}")

    async def _vpxd_serves(self) -> None:
        path = self.layout.client_directory / "client.json"
        # The file appears once, a second after the start: not worth an inotify watch.
        while not path.is_file():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        identity = await asyncio.to_thread(Identity.load, self.layout.client_directory)
        await wait_until_serving(self.layout.server, identity, Role.VPXD, "vpxd")

    async def _bring_up_host(self, client: VpxdClient, number: int) -> None:
        layout = self.layout
        name = layout.host_names[number - 1]
        daemons = layout.host_daemons(number)
        if not layout.has_joined(name):
            await self._join(client, number)
        for daemon in daemons:
            if self.process(daemon.name) is None:
                await asyncio.to_thread(self._start, daemon)
        identity = await asyncio.to_thread(Identity.load, layout.client_directory)
        address = daemons[1].listens[0]
        await self._while_alive(daemons, wait_until_serving_locally(layout.hostd_socket(name)))
        target = f"{address[0]}:{address[1]}"
        await self._while_alive(daemons, wait_until_serving(target, identity, Role.HOST, name))

    async def _add_hosts(self, client: VpxdClient) -> None:
        known = await connected_hosts(client, connected_only=False)
        for name in self.layout.host_names:
            if name not in known:
                task = await client.call(client.stub.AddHost, service_pb2.AddHostRequest(name=name))
                await client.wait(task.id, _START_TIMEOUT_S)

    async def _join(self, client: VpxdClient, number: int) -> None:
        """`python -m vpxa join` with a one-time token, as an administrator would on the host."""
        name = self.layout.host_names[number - 1]
        request = service_pb2.CreateJoinTokenRequest(host_name=name, valid_s=int(_JOIN_TIMEOUT_S))
        made = await client.call(client.stub.CreateJoinToken, request)
        daemon = self.layout.host_daemons(number)[1]
        words = ("--vpxd", made.join_address, "--token", made.token, "--ca-fingerprint", made.ca_fingerprint)
        process = await asyncio.create_subprocess_exec(
            *daemon.command,
            "join",
            *words,
            env=self.layout.host_environment(number),
            cwd=PROJECT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        try:
            output, _ = await asyncio.wait_for(process.communicate(), _JOIN_TIMEOUT_S)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0:
            raise ClusterError(f"{name} can't join: {output.decode('utf-8', 'replace').strip()}")

    async def _while_alive(self, daemons: Sequence[Daemon], work: Coroutine[object, object, None]) -> None:
        """Waits for `work` unless one of the daemons ends meanwhile. :raises DaemonEnded: it did."""
        waiter = asyncio.ensure_future(work)
        try:
            while not waiter.done():
                for daemon in daemons:
                    if self.process(daemon.name) is None:
                        raise DaemonEnded(daemon.name, self._log(daemon.name))
                await asyncio.wait({waiter}, timeout=0.1)
            await waiter
        finally:
            waiter.cancel()
            with suppress(asyncio.CancelledError, Exception):  # its own error has been raised above
                await waiter

    def _start(self, daemon: Daemon) -> None:
        for address, port in daemon.listens:
            _check_free(daemon.name, address, port)
        with open(self._log(daemon.name), "ab", buffering=0) as log:
            child = subprocess.Popen(
                daemon.command,
                env=dict(daemon.environment),
                cwd=PROJECT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        child.returncode = 0  # its pidfd tells its end and takes its remains; Popen must not
        process = identify(child.pid)
        if process is None:
            raise DaemonEnded(daemon.name, self._log(daemon.name))
        self._started.add(process)
        self._state = replace(self._state, processes={**self._state.processes, daemon.name: process})
        cluster_state.save(self.layout.state_file, self._state)

    def _log(self, name: str) -> Path:
        return self.layout.log_directory / f"{name}.log"

    def _prepare_folders(self) -> None:
        for folder in self.layout.folders():
            folder.mkdir(parents=True, exist_ok=True)
        self.layout.directory.chmod(0o700)
        _make_private(self.layout.run_directory)
        for name in self.layout.host_names:
            _make_private(self.layout.host_run_directory(name))
        if self._images is not None:
            _provide_images(self._images, self.layout.shared_datastore / "images")

    # -- stopping ---------------------------------------------------------------------------------------------------

    def _down(self) -> list[str]:
        state = self._load() or self._state
        names = {process: name for name, process in state.processes.items()}
        # Daemons first, all at once: a hostd that still runs would take a guest's end for a crash and report it.
        killed = [names[process] for process in end(state.processes.values(), _STOP_GRACE_S)]
        # Then the VMs. Daemons that state.json doesn't know (a crash between start and note) are found here, too.
        end(started_for(self.layout.run_directory), _STOP_GRACE_S)
        left = started_for(self.layout.run_directory)
        if left:
            raise LeftOver(f"Processes of the cluster don't end: {', '.join(str(one.pid) for one in left)}.")
        shutil.rmtree(self.layout.run_directory, ignore_errors=True)
        self.layout.state_file.unlink(missing_ok=True)
        self._state = ClusterState()
        return killed

    def _load(self) -> ClusterState | None:
        try:
            return cluster_state.load(self.layout.state_file)
        except cluster_state.StateUnreadable as error:
            raise ClusterError(str(error)) from error

    def load(self) -> bool:
        """Takes up a cluster that another process has started. False: none has been.

        :raises ClusterError: state.json can't be read.
        """
        state = self._load()
        self._state = state or ClusterState()
        return state is not None

    def _new_state(self) -> ClusterState:
        layout = self.layout
        return ClusterState(layout.host_count, layout.block, layout.vpxd_port, layout.join_port)

    def _refuse_other_shape(self, state: ClusterState) -> None:
        if replace(state, processes={}) != self._new_state():
            raise ClusterError(
                f"A cluster of another shape ({state.host_count} hosts) runs in {self.layout.directory}: stop it first."
            )


def _check_free(daemon: str, address: str, port: int) -> None:
    """:raises PortBusy: somebody listens there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: TIME_WAIT isn't "busy"
        try:
            probe.bind((address, port))
        except OSError as error:
            raise PortBusy(daemon, address, port) from error


def _make_private(folder: Path) -> None:
    """:raises ClusterError: the folder belongs to somebody else, or others may write to it: it's in a shared /tmp."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if found.st_uid != os.getuid() or found.st_mode & 0o170077 != 0o040000:
        raise ClusterError(f"{folder} isn't a folder of this user alone: remove it.")


def _provide_images(source: Path, images: Path) -> None:
    """Puts the guest's kernel and initrd on the datastore, without a second copy where that's possible.

    :raises ClusterError: they haven't been built.
    """
    images.mkdir(parents=True, exist_ok=True)
    for name in _IMAGES:
        origin, target = source / name, images / name
        if not origin.is_file():
            raise ClusterError(f"There is no guest image {origin}: `make guest` builds it.")
        if target.exists() and target.samefile(origin):
            continue
        target.unlink(missing_ok=True)
        try:
            os.link(origin, target)
        except OSError:  # another file system
            shutil.copy2(origin, target)


if __name__ == "__main__":
    from demo.cluster_commands import main

    sys.exit(main())
