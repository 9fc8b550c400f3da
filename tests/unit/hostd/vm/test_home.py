"""A VM's home folder: made whole or not at all, claimed only when nobody runs the VM, deleted without harm."""

import contextlib
from pathlib import Path

import pytest

from hostd.vm import config_file
from hostd.vm import home as home_files
from hostd.vm.home import Home
from proto.vim.v1.vm_config_pb2 import VmConfig
from runtime.faults import (
    CannotAccessFile,
    FileAlreadyExists,
    FileLocked,
    FileNotFound,
    InvalidDatastorePath,
    InvalidVmConfig,
)
from runtime.ondisk import owner_record
from runtime.ondisk.run_lock import RunLock

VM = "33333333-3333-4333-8333-333333333333"
HERE, THERE = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"


def a_config() -> VmConfig:
    return VmConfig(
        uuid=VM, name="web01", vcpus=1, ram_bytes=64 << 20, machine_type="pc-q35-7.2", cpu_model="qemu64"
    )


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "web01", "web01")
    home_files.create(made, a_config(), HERE)
    return made


def test_create_then_read_gives_configuration_and_owner(home: Home) -> None:
    assert home_files.read_config(home) == a_config()
    record = home_files.require_owner(home, VM, HERE)
    assert record.epoch == 1


def test_create_in_a_present_folder_is_refused_and_touches_nothing(home: Home) -> None:
    before = {path.name: path.read_bytes() for path in home.folder.iterdir()}
    with pytest.raises(FileAlreadyExists):
        home_files.create(home, a_config(), THERE)
    assert {path.name: path.read_bytes() for path in home.folder.iterdir()} == before


def test_create_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(CannotAccessFile):
        home_files.create(Home(tmp_path / "missing" / "a", "a"), a_config(), HERE)
    config = a_config()
    config.annotation = "\ud7ff" * (config_file.MAX_FILE_BYTES // 3)
    with pytest.raises(InvalidVmConfig):
        home_files.create(Home(tmp_path / "b", "b"), config, HERE)
    assert list(tmp_path.iterdir()) == []


def test_write_config_keeps_unknown_entries(home: Home) -> None:
    with open(home.vmx_path, "a") as file:
        file.write('svga.autodetect = "TRUE"\n')
    changed = a_config()
    changed.vcpus = 4
    home_files.write_config(home, changed)
    assert home_files.read_config(home).vcpus == 4
    assert home_files.read_entries(home)["svga.autodetect"] == "TRUE"


def test_read_config_hostile_file_is_refused(home: Home, tmp_path: Path) -> None:
    home.vmx_path.write_bytes(b"x" * (config_file.MAX_FILE_BYTES + 1))
    with pytest.raises(InvalidVmConfig):
        home_files.read_config(home)
    home.vmx_path.unlink()
    home.vmx_path.symlink_to("/etc/passwd")
    with pytest.raises(CannotAccessFile):
        home_files.read_config(home)
    home.vmx_path.unlink()
    with pytest.raises(FileNotFound):
        home_files.read_config(home)
    other = a_config()
    other.name = "other"
    (home.folder.parent / "o").mkdir()
    home_files.create(Home(tmp_path / "other", "other"), other, HERE)
    home.vmx_path.write_bytes((tmp_path / "other" / "other.vmx").read_bytes())
    with pytest.raises(InvalidVmConfig):
        home_files.read_config(home)


def test_claim_vm_that_runs_elsewhere_is_locked_and_stays(home: Home) -> None:
    lock = RunLock.open(home.run_lock_path)
    with contextlib.closing(lock):
        lock.acquire()
        with pytest.raises(FileLocked) as caught:
            home_files.claim(home, VM, THERE)
    assert caught.value.owner == HERE
    assert owner_record.read(home.owner_path).owner_host_uuid == HERE


def test_claim_vm_that_runs_nowhere_moves_it_and_frees_the_lock(home: Home) -> None:
    assert home_files.claim(home, VM, HERE).epoch == 1
    record = home_files.claim(home, VM, THERE)
    assert (record.owner_host_uuid, record.epoch) == (THERE, 2)
    with pytest.raises(FileLocked):
        home_files.require_owner(home, VM, HERE)
    lock = RunLock.open(home.run_lock_path)
    with contextlib.closing(lock):
        lock.acquire()


def test_claim_without_record_makes_one_with_another_vms_refuses(home: Home) -> None:
    home.owner_path.unlink()
    assert home_files.claim(home, VM, THERE).epoch == 1
    with pytest.raises(CannotAccessFile):
        home_files.claim(home, HERE, THERE)


def test_destroy_deletes_own_files_and_the_folder(home: Home) -> None:
    for name in ("console.log", "heartbeat.log", "qemu.log", ".web01.vmx.12.ab12.tmp"):
        (home.folder / name).write_text("x")
    home_files.claim(home, VM, THERE)
    home_files.destroy(home)
    assert not home.folder.exists()
    home_files.destroy(home)


def test_destroy_keeps_foreign_files_and_follows_no_link(home: Home, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    (home.folder / "console.log").symlink_to(tmp_path / "precious")
    (home.folder / "notes.txt").write_text("mine")
    home_files.destroy(home)
    assert [path.name for path in home.folder.iterdir()] == ["notes.txt"]
    assert (tmp_path / "precious").read_text() == "x"


def test_destroy_folder_that_is_a_link_is_refused(home: Home, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(home.folder)
    with pytest.raises(InvalidDatastorePath):
        home_files.destroy(Home(tmp_path / "link", "web01"))
    assert home.vmx_path.exists()
