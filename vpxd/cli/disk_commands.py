"""`vpx disk`: virtual disks, empty ones and those of images."""

import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from proto.host.v1 import storage_pb2
from proto.vim.v1 import task_pb2
from proto.vpxd.v1 import service_pb2
from proto.vpxd.v1 import storage_pb2 as api
from runtime.faults import VimFault
from vpxd.cli.command import command
from vpxd.cli.completion import datastore_paths
from vpxd.cli.datastore_commands import DatastoreFile, OneFile, ThroughHost
from vpxd.cli.disk_format import NUMBER_OF, DiskFormatWord, format_text
from vpxd.cli.errors import CliError, UsageError
from vpxd.cli.output import details_of
from vpxd.cli.quantities import bytes_text
from vpxd.cli.session import Session
from vpxd.cli.vm_commands import size_of

if TYPE_CHECKING:
    from rich.table import Table

    from vpxd.cli.client import VpxdClient

app = typer.Typer(no_args_is_help=True, help="Virtual disks: make them, import images, look at them.")

_TEMPORARY = ".vpx-import-"
Format = Annotated[DiskFormatWord, typer.Option("--format", help="How its space is taken.")]


@dataclass(frozen=True)
class CreateDisk:
    path: DatastoreFile
    size: Annotated[str, typer.Argument(metavar="SIZE", help="Capacity, such as 10GiB.")]
    format: Format = DiskFormatWord.THIN
    host: ThroughHost = ""


@command(app, "create", CreateDisk, task=True)
async def create_disk(session: Session, arguments: CreateDisk) -> None:
    """Make an empty disk: PATH is its descriptor's and ends in .vmdk."""
    from vpxd.cli.task_progress import finish

    request = api.CreateDiskRequest(
        path=arguments.path,
        host=arguments.host,
        capacity_bytes=size_of(arguments.size, "SIZE"),
        format=NUMBER_OF[arguments.format],
    )
    async with session.connect() as client:
        task = await client.call(client.storage.CreateDisk, request, session.call_timeout_s)
        await finish(session, client, task, f"{arguments.path} is made.")


@command(app, "info", OneFile)
async def inspect_disk(session: Session, arguments: OneFile) -> None:
    """What a disk is and takes."""
    request = api.DatastoreFileRequest(path=arguments.path, host=arguments.host)
    async with session.connect() as client:
        info = await client.call(client.storage.InspectDisk, request, session.call_timeout_s)
    session.show(info, _disk_details)


def _disk_details(info: storage_pb2.DiskInfo) -> "Table":
    return details_of(
        [
            ("Path", info.path),
            ("Capacity", bytes_text(info.capacity_bytes)),
            ("Format", format_text(info.format)),
            ("Takes", bytes_text(info.allocated_bytes)),
        ]
    )


@dataclass(frozen=True)
class ImportDisk:
    image: Annotated[
        str,
        typer.Argument(
            metavar="IMAGE",
            help='An image on a datastore ("[local] iso/a.qcow2"), or a local file.',
            autocompletion=datastore_paths,
        ),
    ]
    path: DatastoreFile
    format: Format = DiskFormatWord.THIN
    capacity: Annotated[
        str,
        typer.Option("--capacity", metavar="SIZE", help="Greater than the image's. [default: the image's]"),
    ] = ""
    host: ThroughHost = ""


@command(app, "import", ImportDisk, task=True)
async def import_disk(session: Session, arguments: ImportDisk) -> None:
    """Make a disk of an image: raw, qcow2, vmdk, ... The image stays."""
    from vpxd.cli.task_progress import finish

    request = api.ImportDiskRequest(
        image=arguments.image,
        path=arguments.path,
        host=arguments.host,
        format=NUMBER_OF[arguments.format],
        capacity_bytes=size_of(arguments.capacity, "--capacity") if arguments.capacity else 0,
    )
    done = f"{arguments.path} is made of {arguments.image}."
    async with session.connect() as client:
        if not arguments.image.startswith("["):
            await _import_local(session, client, request, done)
            return
        task = await client.call(client.storage.ImportDisk, request, session.call_timeout_s)
        await finish(session, client, task, done)


async def _import_local(
    session: Session, client: "VpxdClient", request: api.ImportDiskRequest, done: str
) -> None:
    """Uploads the file beside the new disk under a name of its own, imports it there and takes it away again."""
    from vpxd.cli.file_transfer import upload
    from vpxd.cli.task_progress import conclude, wait_for_end

    source = _local_file(request.image)
    if not session.wait:
        raise UsageError("A local file can't be imported with --no-wait.", "`vpx datastore upload` it first.")
    bracket = request.path.find("]")
    if not request.path.startswith("[") or bracket < 0:
        raise UsageError(
            f"{request.path} is no datastore path.", 'they are written "[datastore] folder/file".'
        )
    folder = request.path.rpartition("/")[0]
    if folder:  # before all is uploaded in vain
        asked = api.DatastoreFileRequest(path=folder, host=request.host)
        await client.call(client.storage.BrowseFolder, asked, session.call_timeout_s)
    request.image = f"{request.path[: bracket + 1]} {_TEMPORARY}{secrets.token_hex(6)}"
    await upload(session, client, source, api.UploadFileRequest(path=request.image, host=request.host))
    task = task_pb2.TaskInfo()
    try:
        task = await client.call(client.storage.ImportDisk, request, session.call_timeout_s)
        task = await wait_for_end(session, client, task)
    finally:
        await _take_away(session, client, request, task)
    conclude(session, task, done)


def _local_file(text: str) -> Path:
    """:raises UsageError: there is none."""
    source = Path(text)
    if not source.is_file():
        hint = 'datastore paths are written "[datastore] folder/file".'
        raise UsageError(f"There is no local file {source}.", hint)
    return source


async def _take_away(
    session: Session, client: "VpxdClient", request: api.ImportDiskRequest, task: task_pb2.TaskInfo
) -> None:
    """Deletes the uploaded copy. A task that wasn't watched to its end is canceled first: it reads the copy."""
    from vpxd.cli.client import ENDED

    if task.id and task.state not in ENDED:
        with suppress(VimFault, CliError):
            await client.call(client.stub.CancelTask, service_pb2.GetTaskRequest(task=task.id))
            await client.wait(task.id, session.call_timeout_s)
    try:
        await client.call(
            client.storage.DeleteFile, api.DatastoreFileRequest(path=request.image, host=request.host)
        )
    except (VimFault, CliError) as error:
        session.note(f"The uploaded copy {request.image} is still there: {error}")
