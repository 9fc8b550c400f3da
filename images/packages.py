"""Fetches Debian packages without root and reads files out of them.

apt downloads and checks the signatures; what it brought is kept with its digest, so that a changed
stamper is rebuilt without a network.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from images.errors import PackageError, ToolMissing

_QUERY_TIMEOUT_S = 60
_DOWNLOAD_TIMEOUT_S = 600
_RECORD = "packages.json"
_UPDATE_HINT = "run apt-get update first, and check that the machine reaches its package archive"


def find_dependency(package: str, pattern: str) -> str:
    """The package that a meta-package stands for: the first dependency whose whole name matches the pattern.

    :raises ToolMissing: no apt here.
    :raises PackageError: apt does not know the package, or it has no such dependency.
    """
    output = _run(package, ["apt-cache", "depends", package], _QUERY_TIMEOUT_S)
    for name in re.findall(r"^\s*\|?Depends: (\S+)$", output, re.MULTILINE):
        if re.fullmatch(pattern, name):
            return str(name)
    raise PackageError(package, f"apt-cache shows no dependency like {pattern}; {_UPDATE_HINT}")


class PackageCache:
    """The downloaded packages in one folder, each by the role it was fetched for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, role: str) -> Path | None:
        """The file that was fetched for a role, or None where there is none or it has changed since."""
        try:
            entry = json.loads((self._folder / _RECORD).read_text())[role]
            path = self._folder / str(entry["file"])
            return path if file_digest(path) == entry["sha256"] else None
        except (FileNotFoundError, IsADirectoryError, ValueError, KeyError, TypeError):
            return None

    def fetch(self, role: str, package: str) -> Path:
        """Downloads a package's candidate version and records it for the role.

        What was there before stays where this fails.

        :raises ToolMissing: no apt here.
        :raises PackageError: apt can't download it.
        :raises OSError: the folder can't be written.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._folder, prefix="download-") as name:
            fresh = Path(name)
            command = ["apt-get", "--quiet", "download", package]
            if os.geteuid() == 0:
                # apt drops to a user who may not be allowed to enter this folder.
                command[1:1] = ["-o", "APT::Sandbox::User=root"]
            _run(package, command, _DOWNLOAD_TIMEOUT_S, fresh)
            files = sorted(fresh.glob("*.deb"))
            if len(files) != 1:
                raise PackageError(package, f"apt-get download brought {len(files)} files instead of one")
            target = self._folder / files[0].name
            files[0].replace(target)
        self._record(role, target)
        return target

    def _record(self, role: str, path: Path) -> None:
        record_path = self._folder / _RECORD
        try:
            record = json.loads(record_path.read_text())
        except (FileNotFoundError, ValueError):
            record = {}
        if not isinstance(record, dict):
            record = {}
        record[role] = {"file": path.name, "sha256": file_digest(path)}
        write_file(record_path, json.dumps(record, indent=1).encode())


def read_members(package: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """The contents of a package's regular files whose path (without a leading ./) is wanted.

    :raises ToolMissing: no dpkg here.
    :raises PackageError: it is no Debian package.
    """
    command = [_tool("dpkg-deb", "dpkg"), "--fsys-tarfile", str(package)]
    found: dict[str, bytes] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                for member in archive:
                    path = member.name.removeprefix("./")
                    if member.isreg() and wanted(path):
                        source = archive.extractfile(member)
                        found[path] = source.read() if source is not None else b""
        except tarfile.TarError as error:
            process.kill()
            said = process.stderr.read().decode(errors="replace").strip()
            raise PackageError(package.name, f"can't be read: {said or error}") from error
        said = process.stderr.read().decode(errors="replace").strip()
    if process.returncode != 0:
        raise PackageError(package.name, f"can't be read: {said}")
    return found


def file_digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal.

    :raises OSError: it can't be read.
    """
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def write_file(path: Path, content: bytes) -> None:
    """Writes a file so that others see either the old content or the whole new one.

    :raises OSError: it can't be written; the old one is untouched.
    """
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(fd, "wb") as target:
            target.write(content)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _tool(name: str, package: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise ToolMissing(name, package)
    return path


def _run(package: str, command: Sequence[str], timeout_s: float, folder: Path | None = None) -> str:
    environment = {**os.environ, "LC_ALL": "C"}  # apt's words are parsed
    command = [_tool(command[0], "apt"), *command[1:]]
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise PackageError(
            package, f"{' '.join(command)}: no answer in {timeout_s} s; {_UPDATE_HINT}"
        ) from error
    if done.returncode != 0:
        said = done.stderr.strip() or done.stdout.strip()
        raise PackageError(package, f"{' '.join(command)} failed; {_UPDATE_HINT}. It said:\n{said}")
    return done.stdout
