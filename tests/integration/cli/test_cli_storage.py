"""`vpx datastore`, `disk`, `policy` and `vm policies` against a real vpxd with FAKE hosts."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog
from typer.testing import CliRunner

from proto.vim.v1 import vm_config_pb2
from runtime.faults import InvalidDiskFormat
from tests.framework.fake_host_storage import FakeStore
from tests.framework.vpxd_rig import VpxdRig, vpxd_rig
from vpxd.cli.app import app

MIB = 1 << 20


@dataclass(frozen=True)
class Ended:
    """How `vpx` ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Awaitable[Ended]]


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[VpxdRig]:
    # vpxd runs in this process: its log must not run into the output of `vpx`.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(file=sys.__stderr__))
    try:
        async with vpxd_rig(tmp_path / "vpxd", "esx01", "esx02") as running:
            yield running
    finally:
        structlog.reset_defaults()


@pytest.fixture
def run(rig: VpxdRig) -> Run:
    async def vpx(*words: str) -> Ended:
        arguments = ["--config", str(rig.config.client_dir / "client.json"), *words]
        result = await asyncio.to_thread(CliRunner().invoke, app, arguments, prog_name="vpx")
        return Ended(result.exit_code, result.stdout, result.stderr)

    return vpx


def shared(rig: VpxdRig) -> FakeStore:
    return rig.fakes.files.store(rig.fakes.shared.uuid)


async def test_file_goes_to_a_datastore_and_back(rig: VpxdRig, run: Run, tmp_path: Path) -> None:
    source, target = tmp_path / "a.img", tmp_path / "b.img"
    source.write_bytes(os.urandom(2 * MIB + 5))

    made = await run("datastore", "mkdir", "[shared] iso")
    up = await run("datastore", "upload", str(source), "[shared] iso/a.img")
    listed = await run("datastore", "browse", "[shared] iso")
    down = await run("datastore", "download", "[shared] iso/a.img", str(target))
    again = await run("datastore", "download", "[shared] iso/a.img", str(target))
    gone = await run("datastore", "rm", "[shared] iso", "-r")

    assert [answer.status for answer in (made, up, listed, down, gone)] == [0] * 5, up.err + down.err
    assert target.read_bytes() == source.read_bytes()
    assert listed.out.splitlines()[1].split()[:2] == ["a.img", "file"]
    assert again.status == 2
    assert "--force" in again.err
    assert not shared(rig).files
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.img", "b.img", "vpxd"]


async def test_download_of_what_is_not_there_leaves_no_local_file(run: Run, tmp_path: Path) -> None:
    ended = await run("datastore", "download", "[shared] nope", str(tmp_path / "b.img"))

    assert ended.status == 3
    assert [entry.name for entry in tmp_path.iterdir()] == ["vpxd"]


async def test_local_image_is_imported_and_its_copy_taken_away(
    rig: VpxdRig, run: Run, tmp_path: Path
) -> None:
    image = tmp_path / "a.qcow2"
    image.write_bytes(b"QFI\xfb" + bytes(MIB))

    ended = await run(
        "disk", "import", str(image), "[shared] a.vmdk", "--format", "eager", "--capacity", "4MiB"
    )
    info = await run("disk", "info", "[shared] a.vmdk", "-o", "json")

    assert ended.status == 0, ended.err
    assert ended.out == f"[shared] a.vmdk is made of {image}.\n"
    assert info.json["format"] == "DISK_FORMAT_THICK_EAGER_ZEROED"
    assert info.json["capacity_bytes"] == str(4 * MIB)
    assert not shared(rig).files


async def test_local_image_that_is_none_leaves_nothing_on_the_datastore(
    rig: VpxdRig, run: Run, tmp_path: Path
) -> None:
    image = tmp_path / "a.qcow2"
    image.write_bytes(b"nonsense")
    rig.fakes.hosts["esx01"].refuse["ImportDisk"] = InvalidDiskFormat("no image", path="x")

    ended = await run("disk", "import", str(image), "[shared] a.vmdk")

    assert ended.status != 0
    assert "no image" in ended.err
    assert not shared(rig).files


async def test_disk_is_made_and_shown(run: Run) -> None:
    made = await run("disk", "create", "[shared] d.vmdk", "64MiB", "--format", "lazy")
    info = await run("disk", "info", "[shared] d.vmdk")
    wrong = await run("disk", "create", "[shared] e.vmdk", "64")

    assert made.out == "[shared] d.vmdk is made.\n"
    assert "thick lazy zeroed" in info.out
    assert "64.0 MiB" in info.out
    assert wrong.status == 2


async def test_ambiguous_datastore_is_told_with_its_candidates(run: Run) -> None:
    ended = await run("datastore", "browse", "[local]")
    through = await run("datastore", "browse", "[local]", "--host", "esx02")

    assert ended.status == 2
    assert "esx01" in ended.err
    assert "datastore-" in ended.err
    assert through.status == 0


async def test_datastore_is_mounted_tagged_listed_and_unmounted(rig: VpxdRig, run: Run) -> None:
    rig.fakes.files.share("/mnt/nfs", "esx01", "esx02")

    mounted = await run("datastore", "mount", "nfs", "/mnt/nfs", "--host", "esx01", "--host", "esx02")
    tagged = await run("datastore", "tag", "nfs", "tier:gold", "near")
    listed = await run("datastore", "list")
    unmounted = await run("datastore", "unmount", "nfs")
    neither = await run("datastore", "tag", "shared")

    assert mounted.status == 0, mounted.err
    assert "near, tier:gold" in tagged.out
    row = next(line for line in listed.out.splitlines() if line.startswith("nfs"))
    assert "esx01, esx02" in row
    assert "near, tier:gold" in row
    assert unmounted.out == "nfs is unmounted.\n"
    assert neither.status == 2


async def test_policy_is_set_checked_given_and_deleted(rig: VpxdRig, run: Run) -> None:
    await rig.create("web01", "esx01")

    made = await run("policy", "set", "gold", "--require-tag", "tier:gold", "--shared", "--format", "thin")
    checked = await run("policy", "check", "gold")
    given = await run("vm", "policies", "web01", "--home", "gold")
    shown = await run("vm", "policies", "web01", "-o", "json")
    refused = await run("policy", "delete", "gold")
    taken = await run("vm", "policies", "web01", "--clear")
    deleted = await run("policy", "delete", "gold")

    assert "tier:gold" in made.out
    assert [line.split()[2] for line in checked.out.splitlines()[1:] if line[0] != " "] == ["no", "no", "no"]
    assert "Complies" in given.out
    assert "tag shared" in given.out
    assert shown.json["home_policy"] == "gold"
    assert len(shown.json["findings"]) == 1
    assert refused.status == 4
    assert (taken.status, deleted.status) == (0, 0)
    assert (await run("policy", "list")).err == "No policies.\n"


@pytest.mark.parametrize("text", ["2000", "x=gold", "=gold"])
async def test_disk_policy_that_cannot_be_read_is_a_usage_error(run: Run, text: str) -> None:
    assert (await run("vm", "policies", "web01", "--disk", text)).status == 2


@pytest.mark.parametrize(
    "words",
    [
        ("datastore", "list"),
        ("datastore", "browse", "[shared]"),
        ("datastore", "mkdir", "[shared] x"),
        ("datastore", "tag", "shared", "a"),
        ("disk", "create", "[shared] x.vmdk", "1MiB"),
        ("policy", "set", "gold"),
        ("policy", "list"),
        ("vm", "create", "web02", "--disk", "1GiB:thin", "--nic", "VM Network"),
    ],
)
async def test_json_of_storage_commands_is_one_document(run: Run, words: tuple[str, ...]) -> None:
    ended = await run(*words, "-o", "json")

    assert ended.status == 0, ended.err
    assert isinstance(ended.json, dict | list)
    assert ended.err == ""


async def test_vm_is_created_with_disks_and_nics(rig: VpxdRig, run: Run) -> None:
    disks = ("--disk", "8GiB", "--disk", "1GiB:eager:local", "--disk", "[shared] old.vmdk")

    ended = await run(
        "vm", "create", "web01", "--boot-disk", *disks, "--nic", "VM Network", "--host", "esx01"
    )
    no_disk = await run("vm", "create", "web02", "--boot-disk")
    wrong = await run("vm", "create", "web02", "--disk", "1GiB:qcow2")
    shown = await run("vm", "show", "web01")

    assert ended.status == 0, ended.err
    config = (await rig.vm("web01")).config
    assert [(disk.path, disk.capacity_bytes, disk.format) for disk in config.disks] == [
        ("", 8 << 30, vm_config_pb2.DISK_FORMAT_THIN),
        ("[local] web01/web01.vmdk", 1 << 30, vm_config_pb2.DISK_FORMAT_THICK_EAGER_ZEROED),
        ("[shared] old.vmdk", 0, vm_config_pb2.DISK_FORMAT_UNSPECIFIED),
    ]
    assert [nic.network for nic in config.nics] == ["VM Network"]
    assert not config.boot.kernel
    assert (no_disk.status, wrong.status) == (2, 2)
    assert "thick eager zeroed" in shown.out


async def test_upload_that_the_host_refuses_ends_with_its_fault(
    rig: VpxdRig, run: Run, tmp_path: Path
) -> None:
    source = tmp_path / "a.img"
    source.write_bytes(bytes(MIB))
    shared(rig).files["a.img"] = b"there"

    ended = await run("datastore", "upload", str(source), "[shared] a.img")

    assert ended.status == 4
    assert shared(rig).files["a.img"] == b"there"
