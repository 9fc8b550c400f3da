"""Datastore paths: the usual forms are read, nothing leads out."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.faults import InvalidDatastorePath
from runtime.ondisk.datastore_path import DatastorePath


def test_datastore_path_parse_reads_its_parts() -> None:
    path = DatastorePath.parse("[shared] web 01/web01.vmx")
    assert (path.datastore, path.relative) == ("shared", "web 01/web01.vmx")
    assert (path.name, path.stem, str(path.parent)) == ("web01.vmx", "web01", "[shared] web 01")
    assert str(path) == "[shared] web 01/web01.vmx"
    assert path.parent.child("console.log").under(Path("/mnt/a")) == Path("/mnt/a/web 01/console.log")


@pytest.mark.parametrize("text", ["[shared]", "[shared] "])
def test_datastore_path_of_the_root_is_empty(text: str) -> None:
    root = DatastorePath.parse(text)
    assert (root.relative, root.name, str(root)) == ("", "", "[shared]")
    assert root.parent == root
    assert root.under(Path("/mnt/a")) == Path("/mnt/a")
    assert str(root.child("web01/web01.vmx")) == "[shared] web01/web01.vmx"


def test_datastore_path_with_a_slash_at_its_end_is_the_folder() -> None:
    assert DatastorePath.parse("[shared] web01/") == DatastorePath("shared", "web01")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "web01/web01.vmx",
        "[] a",
        "[a]b",
        "[a] /etc/passwd",
        "[a] /",
        "[a] //",
        "[a] ..",
        "[a] x/../../y",
        "[a] ./x",
        "[a] x//y",
        "[a] x/ ",
        "[a]  x",
        "[a] x /y",
        "[a] x\n",
        "[a] x\x00y",
        "[a] x\x1b[0m",
        "[a] \udc80",
        "[a\n] x",
        "[a/b] x",
        "[[a]] x",
        "[ a] x",
        "[a] " + "x" * 256,
        "[a] " + "ä" * 128,
        "[a] " + "/".join(["x" * 200] * 6),
        "[" + "d" * 81 + "] x",
        "[a] x/.." + "/" * 5000,
    ],
)
def test_datastore_path_that_cant_be_one_is_refused(text: str) -> None:
    with pytest.raises(InvalidDatastorePath) as caught:
        DatastorePath.parse(text)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["..", "../x", "/x", "", "x/", "a/../b"])
def test_datastore_path_child_cant_leave_its_folder(name: str) -> None:
    with pytest.raises(InvalidDatastorePath):
        DatastorePath.parse("[shared] web01").child(name)


@given(st.text(alphabet=st.sampled_from("ab./[] \\\n~\x00ä"), max_size=30) | st.text(max_size=60))
def test_datastore_path_that_is_read_stays_inside_and_round_trips(text: str) -> None:
    for candidate in (text, f"[a] {text}", f"[{text}] x"):
        try:
            path = DatastorePath.parse(candidate)
        except InvalidDatastorePath:
            continue
        assert DatastorePath.parse(str(path)) == path
        local = os.path.normpath(path.under(Path("/mnt/store")))
        assert local == "/mnt/store" or local.startswith("/mnt/store/")
        assert str(path).isprintable()
