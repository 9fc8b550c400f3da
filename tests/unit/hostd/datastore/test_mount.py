"""Datastores: one identity whoever mounts first, and no path out of them."""

import os
import threading
from pathlib import Path

import pytest

from hostd.datastore.mount import IDENTITY_NAME, Datastores
from runtime.faults import FileNotFound, InaccessibleDatastore, InvalidDatastorePath, VimFault
from runtime.ondisk.datastore_path import DatastorePath


def mounted(**roots: Path) -> Datastores:
    datastores = Datastores(roots, "esx01")
    datastores.refresh()
    return datastores


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    (path / "web01").mkdir(parents=True)
    (path / "web01" / "web01.vmx").write_text("")
    return path


def test_refresh_many_hosts_at_once_read_one_identity(root: Path) -> None:
    hosts = [Datastores({"shared": root}, f"esx{number}") for number in range(16)]
    start = threading.Barrier(len(hosts))

    def mount(host: Datastores) -> None:
        start.wait()
        host.refresh()

    threads = [threading.Thread(target=mount, args=(host,)) for host in hosts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    uuids = {host.get("shared").uuid for host in hosts}
    assert len(uuids) == 1
    assert [path.name for path in root.iterdir() if path.name.startswith(".")] == [IDENTITY_NAME]
    assert hosts[0].get("shared").capacity_bytes > 0


def test_refresh_missing_then_mounted_directory_becomes_accessible(tmp_path: Path) -> None:
    datastores = mounted(late=tmp_path / "late")
    with pytest.raises(InaccessibleDatastore):
        datastores.get("late")
    (tmp_path / "late").mkdir()
    datastores.refresh()
    uuid = datastores.get("late").uuid
    (tmp_path / "late").rename(tmp_path / "gone")
    datastores.refresh()
    assert [(store.accessible, store.uuid) for store in datastores.all()] == [(False, uuid)]


@pytest.mark.parametrize("content", ["", "{}", '{"uuid": 5}', '{"uuid": "x"}', "[1]", "x" * 9000])
def test_refresh_damaged_identity_is_not_accessible_and_not_replaced(root: Path, content: str) -> None:
    (root / IDENTITY_NAME).write_text(content)
    with pytest.raises(InaccessibleDatastore):
        mounted(shared=root).get("shared")
    assert (root / IDENTITY_NAME).read_text() == content


def test_resolve_unknown_datastore_is_inaccessible(root: Path) -> None:
    with pytest.raises(InaccessibleDatastore) as caught:
        mounted(shared=root).resolve(DatastorePath.parse("[other] a"))
    assert (caught.value.datastore, caught.value.host) == ("other", "esx01")


def test_resolve_links_that_lead_out_are_refused_inside_ones_not(root: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (root / "out").symlink_to(tmp_path)
    (root / "absolute").symlink_to("/etc/passwd")
    (root / "inside").symlink_to(root / "web01")
    datastores = mounted(shared=root)
    for text in ("[shared] out/secret", "[shared] absolute", "[shared] out"):
        with pytest.raises(InvalidDatastorePath):
            datastores.resolve_file(DatastorePath.parse(text))
    assert datastores.resolve_file(DatastorePath.parse("[shared] inside/web01.vmx")).name == "web01.vmx"
    with pytest.raises(FileNotFound):
        datastores.resolve_file(DatastorePath.parse("[shared] web01"))


def test_resolve_home_takes_no_links_at_all(root: Path) -> None:
    datastores = mounted(shared=root)
    assert datastores.resolve_home(DatastorePath.parse("[shared] web01/web01.vmx")) == root / "web01"
    (root / "alias").symlink_to(root / "web01")
    (root / "web01" / "link.vmx").symlink_to(root / "web01" / "web01.vmx")
    for text in ("alias/web01.vmx", "web01/link.vmx", "web01.vmx", "web01/web01.txt"):
        with pytest.raises(InvalidDatastorePath):
            datastores.resolve_home(DatastorePath.parse(f"[shared] {text}"))


@pytest.mark.parametrize(
    "text",
    ["[shared] ../x", "[shared] /etc/passwd", "[shared] a/../../b", "shared/a", "[shared] a\0b", "[..] a"],
)
def test_resolve_text_that_leads_out_is_no_path(root: Path, text: str) -> None:
    with pytest.raises(VimFault):
        mounted(shared=root).resolve(DatastorePath.parse(text))


def test_root_that_is_a_link_itself_works(root: Path, tmp_path: Path) -> None:
    os.symlink(root, tmp_path / "mount")
    datastores = mounted(shared=tmp_path / "mount")
    assert datastores.resolve_home(DatastorePath.parse("[shared] web01/web01.vmx")) == root / "web01"
