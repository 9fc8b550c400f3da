"""The package cache: what is fetched once stays, what is damaged is fetched again."""

from pathlib import Path

import pytest

from images.errors import PackageError
from images.packages import PackageCache, read_members, write_file


@pytest.mark.parametrize(
    "record", ["", "no json", "[]", "{}", '{"kernel": 3}', '{"kernel": {"file": "gone.deb", "sha256": ""}}']
)
def test_cache_with_a_damaged_record_has_nothing(tmp_path: Path, record: str) -> None:
    (tmp_path / "packages.json").write_text(record)

    assert PackageCache(tmp_path).load("kernel") is None


def test_cache_whose_file_has_changed_has_nothing(tmp_path: Path) -> None:
    digest = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # of no bytes
    (tmp_path / "packages.json").write_text(f'{{"kernel": {{"file": "k.deb", "sha256": "{digest}"}}}}')
    package = tmp_path / "k.deb"
    package.write_bytes(b"")
    assert PackageCache(tmp_path).load("kernel") == package

    package.write_bytes(b"changed")

    assert PackageCache(tmp_path).load("kernel") is None


def test_read_members_of_what_is_no_package_names_it(tmp_path: Path) -> None:
    package = tmp_path / "broken.deb"
    package.write_bytes(b"!<arch>\nnot really")

    with pytest.raises(PackageError) as caught:
        read_members(package, lambda _path: True)

    assert caught.value.package == "broken.deb"


def test_write_file_over_an_old_one_leaves_only_the_new(tmp_path: Path) -> None:
    target = tmp_path / "image"
    target.write_bytes(b"old")

    write_file(target, b"new")

    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]
