"""The product's cluster inside the containers: the client's certificate, hosts joining, what must come back.

The client key leaves vpxd's container through `docker exec`, not through a mount: nobody else on the machine can read
it, and whoever may talk to the engine could read it anyway.
"""

import asyncio
import base64
import json
import time
from collections.abc import Sequence
from pathlib import Path

from demo.cluster_ready import connected_hosts, wait_for_hosts, wait_until_serving
from demo.compose_project import ComposeProject
from demo.errors import ClusterError, NotReady
from proto.vim.v1 import host_pb2
from proto.vpxd.v1 import inventory_pb2, service_pb2
from runtime.ondisk.durable import write_durably
from runtime.rpc.identity import Identity, Role
from vpxd.cli.client import VpxdClient
from vpxd.cli.config import ClientConfig, load_config
from vpxd.cli.errors import NoAnswer, NoConnection

VPXD = "vpxd"
_CLIENT_FILES = ("ca.pem", "cert.pem", "key.pem", "client.json")
_CLIENT_FOLDER = "/var/lib/vpx/clients/admin"
_READY_S = 60.0
_SETTLE_S = 60.0
_LOOK_S = 0.2  # heartbeats and restarts tell no event to a client

_GIVE_CLIENT_FILES = f"""
until [ -f {_CLIENT_FOLDER}/client.json ]; do sleep 0.1; done
cd {_CLIENT_FOLDER}
for file in {" ".join(_CLIENT_FILES)}; do base64 -w 0 "$file"; echo; done
"""
_WAIT_UNTIL_SERVING = "until health-check host >/dev/null; do sleep 0.2; done"
_KILL_SUPERVISED = """
service=/run/vpx/service/$1
old=$(s6-svstat -o pid "$service")
kill -9 "$old"
until new=$(s6-svstat -o pid "$service") && [ "$new" -gt 0 ] && [ "$new" != "$old" ]; do sleep 0.1; done
until health-check host >/dev/null; do sleep 0.1; done
"""


async def fetch_client(project: ComposeProject, directory: Path, server: str) -> ClientConfig:
    """Waits for vpxd and takes the administrator's certificate out into `directory`, for clients of `server`.

    :raises ClusterError: vpxd doesn't come up, or gives something else.
    """
    text = await project.execute(VPXD, ("sh", "-c", _GIVE_CLIENT_FILES), timeout_s=_READY_S)
    await asyncio.to_thread(_save, client_files(text, server), directory)
    config = load_config(directory)
    identity = await asyncio.to_thread(Identity.load, config.identity_directory)
    await wait_until_serving(server, identity, Role.VPXD, config.server_name)
    return config


def client_files(text: str, server: str) -> dict[str, bytes]:
    """Pure: the files by name, from a line of base64 for each; `server` replaces what vpxd calls itself inside.

    :raises ClusterError: it's something else.
    """
    try:
        contents = [base64.b64decode(line, validate=True) for line in text.split()]
        files = dict(zip(_CLIENT_FILES, contents, strict=True))
        settings = json.loads(files["client.json"])
        changed = {**settings, "address": server, "server": server}
    except (ValueError, TypeError) as error:
        raise ClusterError(f"What vpxd's container gave isn't a client's files: {error}") from error
    files["client.json"] = json.dumps(changed).encode() + b"\n"
    return files


def _save(files: dict[str, bytes], directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)
    for name, content in files.items():
        write_durably(directory / name, content)


async def join_hosts(project: ComposeProject, client: VpxdClient, hosts: Sequence[str]) -> None:
    """Joins the hosts with one-time tokens, adds them to the inventory, and waits until they are connected.

    :raises ClusterError: a host can't join.  :raises VimFault: vpxd refuses.
    """
    async with asyncio.TaskGroup() as group:
        for name in hosts:
            group.create_task(_join(project, client, name))
    for name in hosts:  # one after the other: their ids are in the order of their names
        task = await client.call(client.stub.AddHost, service_pb2.AddHostRequest(name=name))
        await client.wait(task.id, _READY_S)
    await wait_for_hosts(client, hosts)


async def _join(project: ComposeProject, client: VpxdClient, name: str) -> None:
    """As an administrator would on the host; the token goes by standard input, where `ps` doesn't show it."""
    request = service_pb2.CreateJoinTokenRequest(host_name=name, valid_s=int(_READY_S))
    made = await client.call(client.stub.CreateJoinToken, request)
    words = ("--vpxd", made.join_address, "--token", "-", "--ca-fingerprint", made.ca_fingerprint)
    command = ("python", "-m", "vpxa", "join", *words)
    await project.execute(name, command, data=made.token.encode() + b"\n", timeout_s=_READY_S)
    await project.execute(name, ("sh", "-c", _WAIT_UNTIL_SERVING), timeout_s=_READY_S)


async def kill_supervised(project: ComposeProject, host: str, daemon: str) -> None:
    """kill -9 of hostd or vpxa inside a host; returns when its supervisor's new one listens.

    :raises CommandFailed: it doesn't come back in time.
    """
    await project.execute(host, ("sh", "-c", _KILL_SUPERVISED, "sh", daemon), timeout_s=_READY_S)


async def kill_container(project: ComposeProject, service: str) -> None:
    """Kills everything in a container; returns when docker has started it again. :raises NotHealthy: it doesn't."""
    before = next(one.restarts for one in await project.containers() if one.service == service)
    # All processes but the container's init, which ends with its child. The shell may or may not outlive that.
    await project.execute(service, ("sh", "-c", "(sleep 0.1; kill -9 -1) & exit 0"))
    await project.wait_for_restart(service, before, _READY_S)


async def wait_until_settled(
    client: VpxdClient, hosts: Sequence[str], vm: str, where: str, since_s: float
) -> None:
    """Until every host has given a sign of life after `since_s` (time.time) and the VM runs, unlocked, on `where`.

    :raises NotReady: not within a minute; says what isn't so.
    """
    deadline = time.monotonic() + _SETTLE_S
    while True:
        missing = await _unsettled(client, hosts, vm, where, since_s)
        if not missing:
            return
        if time.monotonic() > deadline:
            raise NotReady(f"After {_SETTLE_S:g} s: {missing}.")
        await asyncio.sleep(_LOOK_S)


async def _unsettled(client: VpxdClient, hosts: Sequence[str], vm: str, where: str, since_s: float) -> str:
    """What isn't yet as it should be; empty: nothing."""
    try:
        known = (await client.call(client.stub.ListHosts, service_pb2.ListHostsRequest())).hosts
        found = await client.call(client.stub.GetVm, service_pb2.GetVmRequest(vm=vm))
        connected = await connected_hosts(client)
    except (NoConnection, NoAnswer) as error:
        return str(error)
    heard = {host.name for host in known if host.last_heartbeat.ToNanoseconds() > since_s * 1e9}
    silent = sorted(set(hosts) - (heard & connected))
    if silent:
        return f"no sign of life of {', '.join(silent)}"
    return _vm_difference(found, where)


def _vm_difference(vm: inventory_pb2.Vm, where: str) -> str:
    differences = (
        (vm.host_name != where, f"is on {vm.host_name}, not on {where}"),
        (vm.connection_state != inventory_pb2.VM_CONNECTION_STATE_CONNECTED, "isn't connected"),
        (vm.power_state != host_pb2.POWER_STATE_POWERED_ON, "isn't powered on"),
        (vm.execution_state != host_pb2.EXECUTION_STATE_RUNNING, "isn't running"),
        (bool(vm.locked_by), f"is locked by {vm.locked_by}"),
        (bool(vm.failure), f"failed: {vm.failure}"),
    )
    return next((f"{vm.name} {text}" for differs, text in differences if differs), "")
