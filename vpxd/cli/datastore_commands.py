"""`vpx datastore`: list, mount, unmount, tag, and the files on them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from proto.host.v1 import operations_pb2, storage_pb2
from proto.vpxd.v1 import inventory_pb2, service_pb2
from proto.vpxd.v1 import storage_pb2 as api
from vpxd.cli.command import NoArguments, command
from vpxd.cli.completion import datastore_names, datastore_paths, host_names
from vpxd.cli.errors import UsageError
from vpxd.cli.output import Column, ColumnTable, details_of, json_of, print_json, table_of
from vpxd.cli.quantities import bytes_text
from vpxd.cli.session import Session
from vpxd.cli.wording import enum_text, or_dash

if TYPE_CHECKING:
    from vpxd.cli.client import VpxdClient

app = typer.Typer(no_args_is_help=True, help="Datastores, which hosts see them, and their files.")

DatastoreName = Annotated[
    str, typer.Argument(metavar="DATASTORE", help="Name or id (datastore-5).", autocompletion=datastore_names)
]
DatastoreFile = Annotated[
    str,
    typer.Argument(
        metavar="PATH", help='Datastore path: "[local] iso/alpine.qcow2".', autocompletion=datastore_paths
    ),
]
ThroughHost = Annotated[
    str,
    typer.Option(
        "--host",
        help="Through which host; needed where several have a datastore of this name.",
        autocompletion=host_names,
    ),
]


@command(app, "list", NoArguments)
async def list_datastores(session: Session, _arguments: NoArguments) -> None:
    """All datastores."""
    async with session.connect() as client:
        answer = await client.call(
            client.stub.ListDatastores, service_pb2.ListDatastoresRequest(), session.call_timeout_s
        )
        names = {} if session.json else await _host_names(session, client)
    session.show_list(answer.datastores, lambda found: _datastores_table(found, names), "No datastores.")


def _datastores_table(found: Sequence[inventory_pb2.Datastore], names: dict[str, str]) -> ColumnTable:
    columns = (
        Column("NAME"),
        Column("ID"),
        Column("CAPACITY", "right"),
        Column("FREE", "right"),
        Column("HOSTS", free_text=True),
        Column("TAGS", free_text=True),
        Column("UUID", free_text=True),
    )
    rows = [
        (
            one.name,
            one.id,
            bytes_text(one.capacity_bytes),
            bytes_text(one.free_bytes),
            ", ".join(sorted(names.get(host, host) for host in one.hosts)),
            or_dash(", ".join(one.tags)),
            one.uuid,
        )
        for one in found
    ]
    return table_of(columns, rows)


@dataclass(frozen=True)
class MountDatastore:
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the hosts call it.")]
    location: Annotated[str, typer.Argument(metavar="DIRECTORY", help="Absolute path on the hosts.")]
    host: Annotated[
        list[str], typer.Option("--host", help="Where; repeat it for each host.", autocompletion=host_names)
    ]


@command(app, "mount", MountDatastore, task=True)
async def mount_datastore(session: Session, arguments: MountDatastore) -> None:
    """Mount a directory of one or more hosts as a datastore: on all of them, or on none."""
    from vpxd.cli.task_progress import finish

    request = api.MountDatastoreRequest(
        name=arguments.name, location=arguments.location, hosts=arguments.host
    )
    async with session.connect() as client:
        task = await client.call(client.storage.MountDatastore, request, session.call_timeout_s)
        await finish(session, client, task, f"{arguments.name} is mounted: {{result}}.")


@dataclass(frozen=True)
class UnmountDatastore:
    datastore: DatastoreName
    host: Annotated[
        list[str] | None,
        typer.Option(
            "--host", help="Only from this host; can be repeated. [default: all]", autocompletion=host_names
        ),
    ] = None


@command(app, "unmount", UnmountDatastore, task=True)
async def unmount_datastore(session: Session, arguments: UnmountDatastore) -> None:
    """Unmount a datastore; its files stay."""
    from vpxd.cli.task_progress import finish

    request = api.UnmountDatastoreRequest(datastore=arguments.datastore, hosts=arguments.host or [])
    async with session.connect() as client:
        task = await client.call(client.storage.UnmountDatastore, request, session.call_timeout_s)
        await finish(session, client, task, f"{arguments.datastore} is unmounted.")


@dataclass(frozen=True)
class TagDatastore:
    datastore: DatastoreName
    tags: Annotated[list[str] | None, typer.Argument(metavar="[TAG]...", help='Such as "tier:gold".')] = None
    clear: Annotated[bool, typer.Option("--clear", help="Take all tags away.")] = False


@command(app, "tag", TagDatastore)
async def tag_datastore(session: Session, arguments: TagDatastore) -> None:
    """Give a datastore these tags instead of those it has."""
    if bool(arguments.tags) == arguments.clear:
        raise UsageError("Name the tags, or say --clear.", "see: vpx datastore tag --help")
    request = api.TagDatastoreRequest(datastore=arguments.datastore, tags=arguments.tags or [])
    async with session.connect() as client:
        tagged = await client.call(client.storage.TagDatastore, request, session.call_timeout_s)
        names = {} if session.json else await _host_names(session, client)
    session.show(tagged, lambda one: _datastores_table([one], names))


@dataclass(frozen=True)
class OneFile:
    path: DatastoreFile
    host: ThroughHost = ""


@command(app, "browse", OneFile)
async def browse_folder(session: Session, arguments: OneFile) -> None:
    """The files of a folder."""
    request = api.DatastoreFileRequest(path=arguments.path, host=arguments.host)
    async with session.connect() as client:
        answer = await client.call(client.storage.BrowseFolder, request, session.call_timeout_s)
    session.show_list(answer.files, _files_table, "No files.")
    if answer.truncated:
        session.note(f"There are more: these are the first {len(answer.files)}.")


def _files_table(found: Sequence[storage_pb2.FileInfo]) -> ColumnTable:
    columns = (
        Column("NAME"),
        Column("TYPE"),
        Column("SIZE", "right"),
        Column("TAKES", "right"),
        Column("MODIFIED"),
    )
    rows = [
        (
            one.name,
            enum_text(storage_pb2.FileType, one.type),
            "-" if one.type == storage_pb2.FILE_TYPE_FOLDER else bytes_text(one.size_bytes),
            "-" if one.type == storage_pb2.FILE_TYPE_FOLDER else bytes_text(one.allocated_bytes),
            _modified(one.modified_s),
        )
        for one in found
    ]
    return table_of(columns, rows)


def _modified(seconds: float) -> str:
    """Local time; "-" for a time that a host can't have meant."""
    if not 0 < seconds < 1 << 34:
        return "-"
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


@dataclass(frozen=True)
class UploadFile:
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The local file.", exists=True, dir_okay=False)]
    path: DatastoreFile
    host: ThroughHost = ""


@command(app, "upload", UploadFile)
async def upload_file(session: Session, arguments: UploadFile) -> None:
    """Write a local file to a datastore; it appears there when it is whole."""
    from vpxd.cli.file_transfer import upload

    target = api.UploadFileRequest(path=arguments.path, host=arguments.host)
    async with session.connect() as client:
        written = await upload(session, client, arguments.file, target)
    session.show(
        written,
        lambda one: details_of(
            [("File", arguments.path), ("Size", bytes_text(target.size_bytes)), ("SHA-256", one.sha256)]
        ),
    )


@dataclass(frozen=True)
class DownloadFile:
    path: DatastoreFile
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="The local file. [default: its name, here]", dir_okay=False),
    ] = None
    host: ThroughHost = ""
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace a local file.")] = False


@command(app, "download", DownloadFile)
async def download_file(session: Session, arguments: DownloadFile) -> None:
    """Write a datastore's file to a local one."""
    from vpxd.cli.file_transfer import download

    name = arguments.path.rpartition("]")[2].strip().rpartition("/")[2]
    target = arguments.file or Path(name)
    if not name or name in (".", ".."):
        raise UsageError(f"{arguments.path} names no file.", 'paths are written "[datastore] folder/file".')
    if target.exists() and not arguments.force:
        raise UsageError(f"{target} is there already.", "--force replaces it.")
    request = api.DatastoreFileRequest(path=arguments.path, host=arguments.host)
    async with session.connect() as client:
        size_bytes = await download(session, client, request, target)
    if session.json:
        print_json({"file": str(target), "size_bytes": size_bytes})
    else:
        session.say(f"{target} is written ({bytes_text(size_bytes)}).")


@dataclass(frozen=True)
class DeleteFile:
    path: DatastoreFile
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="A folder with all in it.")] = False
    host: ThroughHost = ""


@command(app, "rm", DeleteFile)
async def delete_file(session: Session, arguments: DeleteFile) -> None:
    """Delete a file, a disk with its extent, or a folder. A VM's files are refused."""
    request = api.DatastoreFileRequest(
        path=arguments.path, host=arguments.host, recursive=arguments.recursive
    )
    async with session.connect() as client:
        answer = await client.call(client.storage.DeleteFile, request, session.call_timeout_s)
    _done(session, answer, f"{arguments.path} is deleted.")


@command(app, "mkdir", OneFile)
async def make_folder(session: Session, arguments: OneFile) -> None:
    """Make a folder with its parents."""
    request = api.DatastoreFileRequest(path=arguments.path, host=arguments.host)
    async with session.connect() as client:
        answer = await client.call(client.storage.MakeFolder, request, session.call_timeout_s)
    _done(session, answer, f"{arguments.path} is made.")


def _done(session: Session, answer: operations_pb2.EmptyResponse, text: str) -> None:
    if session.json:
        print_json(json_of(answer))
    session.say(text)


async def _host_names(session: Session, client: "VpxdClient") -> dict[str, str]:
    """Names by id: people know hosts by their names."""
    answer = await client.call(client.stub.ListHosts, service_pb2.ListHostsRequest(), session.call_timeout_s)
    return {host.id: host.name for host in answer.hosts}
