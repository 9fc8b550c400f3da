"""Pure: no I/O, no clock, no logging. The text of a .vmx file: lines of `key = "value"`.

    .encoding = "UTF-8"
    displayName = "web01"
    annotation = "says |22hello|22"

The form is VMware's: keys are compared without regard to case, a quote inside a value is written |22, and any other
character that can't stand there (the bar itself, control characters) as | and its two hex digits. Entries whose keys
mean nothing to us are kept when the file is written again; comments (# ...) and empty lines aren't.

A .vmx file may come from anywhere: whatever isn't of this form is refused with the line's number and the reason.
"""

import re
from collections.abc import Iterator, Mapping

from runtime.faults import InvalidVmConfig

MAX_FILE_BYTES = 64 * 1024
_MAX_ENTRIES = 1000
_KEY = re.compile(r"\.?[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_LINE = re.compile(r'\s*([^\s="]+)\s*=\s*"([^"]*)"\s*', re.ASCII)
_ESCAPED = re.compile(r'[\x00-\x1f\x7f"|]')


class VmxEntries(Mapping[str, str]):
    """The entries of one file, in its order; keys are found in any case. A value object: changes make a new one."""

    def __init__(self, entries: Mapping[str, str] | None = None) -> None:
        self._entries: dict[str, tuple[str, str]] = {}
        for key, value in (entries or {}).items():
            self._entries[key.lower()] = (key, value)

    def __getitem__(self, key: str) -> str:
        return self._entries[key.lower()][1]

    def __iter__(self) -> Iterator[str]:
        return (key for key, _ in self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and key.lower() in self._entries

    def __repr__(self) -> str:
        return f"VmxEntries({dict(self.items())!r})"

    def updated(self, changes: Mapping[str, str]) -> "VmxEntries":
        """These entries with `changes` laid over them: present keys keep their place and spelling."""
        merged = dict(self.items())
        for key, value in changes.items():
            present = self._entries.get(key.lower())
            merged[present[0] if present else key] = value
        return VmxEntries(merged)


def parse(content: bytes) -> VmxEntries:
    """The entries of a .vmx file.

    :raises InvalidVmConfig: it isn't one; the message names the line and the reason, `property` the key where one is to
        blame.
    """
    if len(content) > MAX_FILE_BYTES:
        raise InvalidVmConfig(f"The .vmx file is longer than {MAX_FILE_BYTES} bytes.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        bad = content.count(b"\n", 0, error.start) + 1
        raise InvalidVmConfig(f"Line {bad} of the .vmx file isn't UTF-8.") from error
    entries: dict[str, str] = {}
    seen: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        key, value = _parse_line(line, number)
        first = seen.setdefault(key.lower(), number)
        if first != number:
            raise InvalidVmConfig(f"Line {number} of the .vmx file repeats the key of line {first}.", key)
        if len(seen) > _MAX_ENTRIES:
            raise InvalidVmConfig(f"The .vmx file has more than {_MAX_ENTRIES} entries.")
        entries[key] = value
    return VmxEntries(entries)


def render(entries: Mapping[str, str]) -> bytes:
    """The text of a .vmx file with these entries; `parse` gives them back.

    :raises InvalidVmConfig: a key can't be one, a value has text that UTF-8 can't hold, or the whole is too long.
    """
    lines = []
    for key, value in entries.items():
        if not _KEY.fullmatch(key):
            raise InvalidVmConfig("A key of the configuration can't stand in a .vmx file.", key[:128])
        lines.append(f'{key} = "{_escape(value)}"\n')
    try:
        content = "".join(lines).encode()
    except UnicodeEncodeError as error:
        raise InvalidVmConfig("The configuration has text that isn't valid Unicode.") from error
    if len(content) > MAX_FILE_BYTES or len(lines) > _MAX_ENTRIES:
        raise InvalidVmConfig(f"The configuration is too large for a .vmx file ({len(content)} bytes).")
    return content


def _parse_line(line: str, number: int) -> tuple[str, str]:
    match = _LINE.fullmatch(line)
    if match is None:
        raise InvalidVmConfig(f'Line {number} of the .vmx file isn\'t of the form key = "value".')
    key, raw = match.groups()
    if not _KEY.fullmatch(key):
        raise InvalidVmConfig(f"Line {number} of the .vmx file has a key that can't be one.")
    return key, _unescape(raw, key, number)


def _escape(value: str) -> str:
    return _ESCAPED.sub(lambda match: f"|{ord(match.group()):02X}", value)


def _unescape(raw: str, key: str, number: int) -> str:
    parts = raw.split("|")
    text = [parts[0]]
    for part in parts[1:]:
        if not re.match(r"[0-7][0-9A-Fa-f]", part):
            message = (
                f"Line {number} of the .vmx file has a | that isn't followed by two hex digits below 80."
            )
            raise InvalidVmConfig(message, key)
        text.append(chr(int(part[:2], 16)) + part[2:])
    if any(
        _ESCAPED.match(character) for part in [parts[0], *(p[2:] for p in parts[1:])] for character in part
    ):
        raise InvalidVmConfig(f"Line {number} of the .vmx file has a control character in its value.", key)
    return "".join(text)
