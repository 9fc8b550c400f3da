"""Names for the shell's completion, asked of vpxd with a short deadline. Silent when vpxd isn't there."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from runtime.faults import VimFault
from vpxd.cli.config import config_from_environment
from vpxd.cli.errors import CliError
from vpxd.cli.session import GlobalOptions

if TYPE_CHECKING:
    from vpxd.cli.client import VpxdClient

_DEADLINE_S = 1.0
Names = list[tuple[str, str]]  # what is completed, and the help beside it


def vm_names(context: typer.Context, incomplete: str) -> Names:
    """VMs, with where they are."""

    async def ask(client: "VpxdClient") -> Names:
        from proto.vpxd.v1.service_pb2 import ListVmsRequest

        answer = await client.call(client.stub.ListVms, ListVmsRequest(), _DEADLINE_S)
        return [(vm.name, f"{vm.id} on {vm.host_name or 'no host'}") for vm in answer.vms]

    return _complete(context, incomplete, ask)


def host_names(context: typer.Context, incomplete: str) -> Names:
    """Hosts, with their addresses."""

    async def ask(client: "VpxdClient") -> Names:
        from proto.vpxd.v1.service_pb2 import ListHostsRequest

        answer = await client.call(client.stub.ListHosts, ListHostsRequest(), _DEADLINE_S)
        return [(host.name, f"{host.id} at {host.address}") for host in answer.hosts]

    return _complete(context, incomplete, ask)


def datastore_names(context: typer.Context, incomplete: str) -> Names:
    """Datastores."""

    async def ask(client: "VpxdClient") -> Names:
        from proto.vpxd.v1.service_pb2 import ListDatastoresRequest

        answer = await client.call(client.stub.ListDatastores, ListDatastoresRequest(), _DEADLINE_S)
        return [(one.name, one.id) for one in answer.datastores]

    return _complete(context, incomplete, ask)


def datastore_paths(context: typer.Context, incomplete: str) -> Names:
    """The datastores as paths begin, then the files of the folder that is being typed."""
    bracket = incomplete.find("]")

    async def ask(client: "VpxdClient") -> Names:
        if bracket < 0:
            from proto.vpxd.v1.service_pb2 import ListDatastoresRequest

            answer = await client.call(client.stub.ListDatastores, ListDatastoresRequest(), _DEADLINE_S)
            return [(f"[{one.name}] ", one.id) for one in answer.datastores]
        from proto.host.v1.storage_pb2 import FILE_TYPE_FOLDER
        from proto.vpxd.v1.storage_pb2 import DatastoreFileRequest

        folder = incomplete[bracket + 1 :].lstrip().rpartition("/")[0]
        path = f"{incomplete[: bracket + 1]} {folder}" if folder else incomplete[: bracket + 1]
        request = DatastoreFileRequest(path=path, host=str(context.params.get("host") or ""))
        found = await client.call(client.storage.BrowseFolder, request, _DEADLINE_S)
        prefix = f"{path}/" if folder else f"{path} "
        return [
            (f"{prefix}{one.name}{'/' if one.type == FILE_TYPE_FOLDER else ''}", "") for one in found.files
        ]

    return _complete(context, incomplete, ask)


def policy_names(context: typer.Context, incomplete: str) -> Names:
    """Storage policies."""

    async def ask(client: "VpxdClient") -> Names:
        from proto.vpxd.v1.storage_pb2 import ListPoliciesRequest

        answer = await client.call(client.storage.ListPolicies, ListPoliciesRequest(), _DEADLINE_S)
        return [(one.name, one.description) for one in answer.policies]

    return _complete(context, incomplete, ask)


def network_names(context: typer.Context, incomplete: str) -> Names:
    """Networks."""

    async def ask(client: "VpxdClient") -> Names:
        from proto.vpxd.v1.service_pb2 import ListNetworksRequest

        answer = await client.call(client.stub.ListNetworks, ListNetworksRequest(), _DEADLINE_S)
        return [(one.name, one.id) for one in answer.networks]

    return _complete(context, incomplete, ask)


def task_ids(context: typer.Context, incomplete: str) -> Names:
    """Tasks, newest first, with what they do."""

    async def ask(client: "VpxdClient") -> Names:
        from proto.vpxd.v1.service_pb2 import ListTasksRequest

        answer = await client.call(client.stub.ListTasks, ListTasksRequest(limit=50), _DEADLINE_S)
        return [(task.id, f"{task.operation} {task.entity_name}") for task in answer.tasks]

    return _complete(context, incomplete, ask)


def _complete(
    context: typer.Context, incomplete: str, ask: "Callable[[VpxdClient], Awaitable[Names]]"
) -> Names:
    try:
        names = asyncio.run(asyncio.wait_for(_asked(_config_of(context), ask), 2 * _DEADLINE_S))
    except (VimFault, CliError, TimeoutError, OSError):
        return []  # a completion that can't be made is no error to show in the middle of a command line
    return [(name, text) for name, text in names if name.startswith(incomplete)]


async def _asked(config: Path | None, ask: "Callable[[VpxdClient], Awaitable[Names]]") -> Names:
    from vpxd.cli.client import connect

    async with connect(config_from_environment(config)) as client:
        return await ask(client)


def _config_of(context: typer.Context) -> Path | None:
    """--config where it stands on the line that is being completed, before the subcommand or after it."""
    own = context.params.get("global_config")
    if own:
        return Path(own)
    root: typer.Context | None = context
    while root is not None:
        options = root.find_object(GlobalOptions)
        named = root.params.get("config")
        if named:
            return Path(named)
        if options is not None and options.config is not None:
            return options.config
        root = root.parent  # type: ignore[assignment]
    return None
