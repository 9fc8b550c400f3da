"""The owner record and the run lock: one winner, whatever the order."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from runtime.faults import CannotAccessFile, FileLocked, FileNotFound, NotOwner
from runtime.ondisk import owner_record
from runtime.ondisk.durable import read_bounded, write_durably
from runtime.ondisk.run_lock import RunLock, is_held


def test_create_a_second_time_keeps_the_first_record(tmp_path: Path) -> None:
    path = owner_record.owner_path(tmp_path, "web01")
    first = owner_record.create(path, "vm", "host-a")
    with pytest.raises(NotOwner) as caught:
        owner_record.create(path, "vm", "host-b")
    assert caught.value.owner == "host-a"
    assert owner_record.read(path) == first == owner_record.OwnerRecord("vm", "host-a", 1)


def test_swap_with_a_stale_record_changes_nothing(tmp_path: Path) -> None:
    path = owner_record.owner_path(tmp_path, "web01")
    first = owner_record.create(path, "vm", "host-a")
    second = owner_record.swap(path, first, "host-b")
    with pytest.raises(NotOwner) as caught:
        owner_record.swap(path, first, "host-c")
    assert (caught.value.owner, caught.value.epoch) == ("host-b", 2)
    assert owner_record.read(path) == second


def test_swap_raced_by_many_has_exactly_one_winner(tmp_path: Path) -> None:
    path = owner_record.owner_path(tmp_path, "web01")
    expected = owner_record.create(path, "vm", "source")
    winners: list[str] = []
    start = threading.Barrier(8)

    def contend(name: str) -> None:
        start.wait()
        try:
            owner_record.swap(path, expected, name)
        except NotOwner:
            return
        winners.append(name)

    threads = [threading.Thread(target=contend, args=(f"host-{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(winners) == 1
    assert owner_record.read(path) == owner_record.OwnerRecord("vm", winners[0], 2)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"vm_uuid": 1, "owner_host_uuid": "a", "epoch": 1}', b"\xff\xfe",
     b'{"vm_uuid": "v", "owner_host_uuid": "a", "epoch": 0}',
     b'{"vm_uuid": "v", "owner_host_uuid": "a", "epoch": true}',
     b'{"vm_uuid": "v", "owner_host_uuid": "a"}', b" " * 5000],
)  # fmt: skip
def test_read_a_hostile_record_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.owner"
    path.write_bytes(content)
    with pytest.raises(CannotAccessFile):
        owner_record.read(path)


def test_read_bounded_refuses_symlinks_and_fifos(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(CannotAccessFile):
        read_bounded(tmp_path / "link")
    with pytest.raises(FileNotFound):
        read_bounded(tmp_path / "none")


def test_write_durably_leaves_no_temporary_file_when_it_fails(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    (target / "inside").touch()
    with pytest.raises(OSError, match="directory"):
        write_durably(target, b"x")
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def test_run_lock_is_exclusive_between_descriptions_and_shared_by_copies(tmp_path: Path) -> None:
    path = tmp_path / "web01.runlock"
    mine, other = RunLock.open(path), RunLock.open(path)
    mine.acquire()
    mine.acquire()
    assert is_held(path)
    with pytest.raises(FileLocked):
        other.acquire()
    copy = RunLock(os.dup(mine.descriptor), path)
    mine.close()
    with pytest.raises(FileLocked):
        other.acquire()
    copy.release()
    other.acquire()
    other.close()
    copy.close()
    assert not is_held(path)


def test_run_lock_inherited_by_a_child_lives_until_the_child_ends(tmp_path: Path) -> None:
    path = tmp_path / "web01.runlock"
    lock = RunLock.open(path)
    lock.acquire()
    child = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"],
        stdin=subprocess.PIPE,
        pass_fds=[lock.descriptor],
    )
    try:
        lock.close()
        assert is_held(path)
    finally:
        child.kill()
        child.wait()
    assert not is_held(path)
