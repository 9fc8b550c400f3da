"""Pure: no I/O, no clock, no logging.

A migration's specification as a file: what `vpx vm migrate --print-spec` prints and `--spec FILE` takes back.

    {
      "version": 1,
      "host": "esx02",                        or "cluster": placement chooses among its hosts
      "datastore": "local",                   of the home, and of every disk that "disks" doesn't name
      "format": "thin",                       thin, lazy, eager, qcow2; absent: same as source
      "policy": "gold",                       "-": none afterwards; absent: kept
      "disks": [{"key": 2000, "datastore": "fast", "format": "eager", "policy": "-"}],
      "networks": [{"from": "LAN", "to": "DMZ"}, {"nic": 4000, "to": "LAN"}],
      "options": {"priority": "high", "verify": "after-resume", "encryption": "required", "streams": 4}
    }

The names are those of the protocol (RelocateSpec, MigrationOptions). What is absent stays as it is, or is left to vpxd.
The VM isn't in it: the same specification does for several.

Reading is strict, since a word that is passed over would move a VM elsewhere than was meant: unknown and repeated
fields are refused as wrong values are, each by its place in the file.
"""

import json
import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from proto.vmotion.v1 import spec_pb2
from proto.vpxd.v1 import service_pb2
from vpxd.cli.disk_format import NUMBER_OF
from vpxd.cli.errors import BadSpec

VERSION = 1
MAX_CHARS = 1 << 20
_MAX_TEXT = 1_000
_MAX_ENTRIES = 64
_UINT32 = 2**32 - 1
_UINT64 = 2**64 - 1

PRIORITY_OF: Mapping[str, spec_pb2.Priority.ValueType] = MappingProxyType(
    {
        "default": spec_pb2.PRIORITY_DEFAULT,
        "high": spec_pb2.PRIORITY_HIGH,
        "low": spec_pb2.PRIORITY_LOW,
    }
)
VERIFY_OF: Mapping[str, spec_pb2.VerifyMode.ValueType] = MappingProxyType(
    {
        "off": spec_pb2.VERIFY_MODE_OFF,
        "after-resume": spec_pb2.VERIFY_MODE_AFTER_RESUME,
        "before-resume": spec_pb2.VERIFY_MODE_BEFORE_RESUME,
    }
)
ENCRYPTION_OF: Mapping[str, spec_pb2.EncryptionMode.ValueType] = MappingProxyType(
    {
        "required": spec_pb2.ENCRYPTION_MODE_REQUIRED,
        "disabled": spec_pb2.ENCRYPTION_MODE_DISABLED,
    }
)
_WORDS_OF_OPTION: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {"priority": PRIORITY_OF, "verify": VERIFY_OF, "encryption": ENCRYPTION_OF}
)
_NUMBERS_OF_OPTION: Mapping[str, int] = MappingProxyType(
    {
        "switchover_goal_ms": _UINT32,
        "max_iterations": _UINT32,
        "streams": _UINT32,
        "bandwidth_bytes_per_s": _UINT64,
    }
)
_PLACES = ("host", "cluster", "datastore", "policy")


def word_of(words: Mapping[str, int], number: int) -> str:
    """The word for a number, such as "thin"; empty for one that has none."""
    return next((str(word) for word, known in words.items() if known == number), "")


def text_of(request: service_pb2.RelocateVmRequest) -> str:
    """The file's text, with a line end, harmless for a terminal. Its VM isn't in it."""
    text = json.dumps(document_of(request), indent=2, ensure_ascii=False, allow_nan=False)
    # JSON itself escapes only the control characters below U+0020; what else isn't printable stands in strings too.
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text) + "\n"


def document_of(request: service_pb2.RelocateVmRequest) -> dict[str, object]:
    """The file's JSON object; what is unset isn't in it."""
    spec = request.spec
    document: dict[str, object] = {"version": VERSION}
    document |= {name: getattr(spec, name) for name in ("host", "cluster", "datastore")}
    document |= {"format": word_of(NUMBER_OF, spec.format), "policy": spec.policy}
    document["disks"] = [
        {"key": disk.key}
        | _set(
            {
                "datastore": disk.datastore,
                "format": word_of(NUMBER_OF, disk.format),
                "policy": disk.policy,
            }
        )
        for disk in spec.disks
    ]
    document["networks"] = [
        _set({"nic": entry.nic, "from": entry.from_network, "to": entry.network}) for entry in spec.networks
    ]
    options: dict[str, object] = {
        name: word_of(words, getattr(request.options, name)) for name, words in _WORDS_OF_OPTION.items()
    }
    options |= {name: getattr(request.options, name) for name in (*_NUMBERS_OF_OPTION, "tracer")}
    options["network_timeout_s"] = request.options.network_timeout_s
    document["options"] = _set(options)
    return _set(document)


def parse(text: str) -> service_pb2.RelocateVmRequest:
    """The request that a file stands for, its VM unset.

    :raises BadSpec: it isn't one; `field` says where.
    """
    if len(text) > MAX_CHARS:
        raise BadSpec("", f"has more than {MAX_CHARS} characters")
    document = _Object("", _loaded(text))
    document.only(("version", *_PLACES, "format", "disks", "networks", "options"))
    if document.number("version", _UINT32, VERSION) != VERSION:
        raise BadSpec("version", f"is one that this client doesn't know; it knows {VERSION}")
    spec = service_pb2.RelocateSpec(
        host=document.text("host"),
        cluster=document.text("cluster"),
        datastore=document.text("datastore"),
        format=document.word("format", NUMBER_OF),  # type: ignore[arg-type]
        policy=document.text("policy"),
        disks=[_disk(entry) for entry in document.objects("disks")],
        networks=[_network(entry) for entry in document.objects("networks")],
    )
    if spec.host and spec.cluster:
        raise BadSpec("cluster", "contradicts its host: name one of them")
    if spec.format and not spec.datastore:
        raise BadSpec("format", "needs a datastore beside it: it is of all that moves there")
    _require_once([disk.key for disk in spec.disks], "disks", "key")
    _require_once([entry.nic for entry in spec.networks], "networks", "nic")
    _require_once([entry.from_network for entry in spec.networks], "networks", "from")
    return service_pb2.RelocateVmRequest(spec=spec, options=_options(document.object("options")))


def _disk(entry: "_Object") -> service_pb2.DiskLocator:
    entry.only(("key", "datastore", "format", "policy"))
    entry.require("key")
    return service_pb2.DiskLocator(
        key=entry.number("key", _UINT32),
        datastore=entry.text("datastore"),
        format=entry.word("format", NUMBER_OF),  # type: ignore[arg-type]
        policy=entry.text("policy"),
    )


def _network(entry: "_Object") -> service_pb2.NicMapping:
    entry.only(("nic", "from", "to"))
    entry.require("to")
    mapping = service_pb2.NicMapping(
        nic=entry.number("nic", _UINT32), from_network=entry.text("from"), network=entry.text("to")
    )
    if bool(mapping.nic) == bool(mapping.from_network):
        raise BadSpec(entry.place, "must name a NIC or a port group that it is from, and not both")
    return mapping


def _options(entry: "_Object") -> spec_pb2.MigrationOptions:
    entry.only((*_WORDS_OF_OPTION, *_NUMBERS_OF_OPTION, "tracer", "network_timeout_s"))
    return spec_pb2.MigrationOptions(
        verify=entry.word("verify", VERIFY_OF),  # type: ignore[arg-type]
        encryption=entry.word("encryption", ENCRYPTION_OF),  # type: ignore[arg-type]
        priority=entry.word("priority", PRIORITY_OF),  # type: ignore[arg-type]
        switchover_goal_ms=entry.number("switchover_goal_ms", _UINT32),
        max_iterations=entry.number("max_iterations", _UINT32),
        streams=entry.number("streams", _UINT32),
        bandwidth_bytes_per_s=entry.number("bandwidth_bytes_per_s", _UINT64),
        tracer=entry.text("tracer"),
        network_timeout_s=entry.seconds("network_timeout_s"),
    )


class _Object:
    """A JSON object at `place` of the file, whose fields are taken out one by one and checked."""

    def __init__(self, place: str, value: object) -> None:
        if not isinstance(value, dict):
            raise BadSpec(place, "must be an object")
        self.place = place
        self._fields: dict[str, Any] = value

    def only(self, names: Iterable[str]) -> None:
        """:raises BadSpec: it has a field that isn't one of these."""
        known = tuple(names)
        for name in self._fields:
            if name not in known:
                raise BadSpec(self._at(name[:80]), f"is unknown; there are {', '.join(known)}")

    def require(self, name: str) -> None:
        """:raises BadSpec: it isn't there."""
        if not self._fields.get(name):
            raise BadSpec(self._at(name), "is missing")

    def text(self, name: str) -> str:
        value = self._fields.get(name, "")
        if not isinstance(value, str) or len(value) > _MAX_TEXT:
            raise BadSpec(self._at(name), f"must be a text of at most {_MAX_TEXT} characters")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise BadSpec(self._at(name), "has half a character (a lone surrogate)")
        return value

    def word(self, name: str, words: Mapping[str, int]) -> int:
        value = self.text(name)
        if value and value not in words:
            raise BadSpec(
                self._at(name), f"must be {', '.join(str(word) for word in words)}, not {value[:40]!r}"
            )
        return words[value] if value else 0

    def number(self, name: str, highest: int, default: int = 0) -> int:
        value = self._fields.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= highest:
            raise BadSpec(self._at(name), f"must be a whole number from 0 to {highest}")
        return value

    def seconds(self, name: str) -> float:
        value = self._fields.get(name, 0)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise BadSpec(self._at(name), "must be a number of seconds")
        try:
            seconds = float(value)
        except OverflowError:
            seconds = math.inf
        if not math.isfinite(seconds) or seconds < 0:
            raise BadSpec(self._at(name), "must be a number of seconds from 0")
        return seconds

    def object(self, name: str) -> "_Object":
        return _Object(self._at(name), self._fields.get(name, {}))

    def objects(self, name: str) -> "list[_Object]":
        value = self._fields.get(name, [])
        if not isinstance(value, list) or len(value) > _MAX_ENTRIES:
            raise BadSpec(self._at(name), f"must be a list of at most {_MAX_ENTRIES} objects")
        return [_Object(f"{self._at(name)}[{index}]", entry) for index, entry in enumerate(value)]

    def _at(self, name: str) -> str:
        return f"{self.place}.{name}" if self.place else name


def _loaded(text: str) -> object:
    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            raise BadSpec(next(name for name in names if names.count(name) > 1)[:80], "is there twice")
        return found

    try:
        return json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise BadSpec("", f"is no JSON: {error.msg} in line {error.lineno}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets as deep
        raise BadSpec("", "is no JSON that can be read") from error


def _set(fields: dict[str, object]) -> dict[str, object]:
    """Those that aren't empty, 0 or unset."""
    return {name: value for name, value in fields.items() if value}


def _require_once(keys: Iterable[int | str], field: str, name: str) -> None:
    seen: set[int | str] = set()
    for index, key in enumerate(keys):
        if key and key in seen:
            raise BadSpec(f"{field}[{index}].{name}", f"names {key!s:.80} a second time")
        seen.add(key)
