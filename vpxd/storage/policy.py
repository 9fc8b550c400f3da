"""Whether a datastore is what a storage policy asks for. Pure: no I/O, no clock, no logging.

Every requirement is looked at, not only the first that fails: whoever reads the findings can mend all of it at once.
"""

import math
import re
from dataclasses import dataclass

from runtime.faults import InvalidArgument, PolicyNotSatisfied
from vpxd.compatibility.finding import Finding, FindingGroup
from vpxd.inventory.names import require_name
from vpxd.inventory.records import StoragePolicy
from vpxd.inventory.values import DiskFormat

MAX_TAGS = 64
MAX_TAG_CHARS = 80
MAX_DESCRIPTION_CHARS = 1_000
_TAG = re.compile(rf"\S{{1,{MAX_TAG_CHARS}}}")
FORMAT_WORDS = {
    DiskFormat.THIN: "thin",
    DiskFormat.THICK_LAZY_ZEROED: "thick lazy zeroed",
    DiskFormat.THICK_EAGER_ZEROED: "thick eager zeroed",
    DiskFormat.QCOW2: "qcow2",
}


@dataclass(frozen=True)
class DatastoreFacts:
    """A datastore as a policy sees it.

    `hosts`: how many hosts of the cluster see it; where no cluster is meant, of the one with the most.
    """

    id: str
    name: str
    tags: tuple[str, ...] = ()
    capacity_bytes: int = 0
    free_bytes: int = 0
    hosts: int = 0


@dataclass(frozen=True)
class DiskFacts:
    """A disk that is, or is to be, on the datastore.

    `new_bytes`: what it still takes away from the free space; 0 where it is there already. Key 0 is the VM's home,
    which has no format: SAME_AS_SOURCE.
    """

    key: int
    format: DiskFormat = DiskFormat.SAME_AS_SOURCE
    new_bytes: int = 0


@dataclass(frozen=True)
class _Case:
    policy: StoragePolicy
    datastore: DatastoreFacts
    disks: tuple[DiskFacts, ...]
    subject: str

    def against(self, requirement: str, text: str, remedy: str) -> Finding:
        fault = PolicyNotSatisfied(
            f"the policy {self.policy.name} isn't satisfied{self.subject}: {text}",
            policy=self.policy.name,
            datastore=self.datastore.name,
            requirement=requirement,
        )
        return Finding(error=True, fault=fault, remedy=remedy, group=FindingGroup.DATASTORE)


def findings(
    policy: StoragePolicy, datastore: DatastoreFacts, disks: tuple[DiskFacts, ...] = ()
) -> tuple[Finding, ...]:
    """What speaks against these disks on this datastore under the policy, each with its remedy; none: compatible.

    A single disk, or the home alone, is named in the findings.
    """
    subject = "" if len(disks) != 1 else f" for disk {disks[0].key}" if disks[0].key else " for the home"
    case = _Case(policy, datastore, disks, subject)
    return (*_tags(case), *_shared(case), *_formats(case), *_free_space(case))


def require_tag(tag: str, argument: str) -> str:
    """A tag that a datastore may have; answers it. :raises InvalidArgument: it can't be one."""
    if not _TAG.fullmatch(tag) or not tag.isprintable():
        raise InvalidArgument(
            f"a tag has 1 to {MAX_TAG_CHARS} printable characters and no blanks: {tag[:MAX_TAG_CHARS]!r}",
            argument=argument,
        )
    return tag


def require_tags(tags: tuple[str, ...], argument: str) -> tuple[str, ...]:
    """Tags, sorted and each once. :raises InvalidArgument: one can't be, or they are too many."""
    unique = tuple(sorted({require_tag(tag, argument) for tag in tags}))
    if len(unique) > MAX_TAGS:
        raise InvalidArgument(f"{len(unique)} tags, and {MAX_TAGS} are the most", argument=argument)
    return unique


def require_valid(policy: StoragePolicy) -> StoragePolicy:
    """The policy with its tags and formats in order. :raises InvalidArgument: it can't be one."""
    require_name(policy.name, "name")
    if len(policy.description) > MAX_DESCRIPTION_CHARS:
        raise InvalidArgument(
            f"a description has {MAX_DESCRIPTION_CHARS} characters at most", argument="description"
        )
    required = require_tags(policy.required_tags, "required_tags")
    forbidden = require_tags(policy.forbidden_tags, "forbidden_tags")
    both = sorted(set(required) & set(forbidden))
    if both:
        raise InvalidArgument(f"required and forbidden at once: {', '.join(both)}", argument="forbidden_tags")
    if any(entry not in FORMAT_WORDS for entry in policy.formats):
        raise InvalidArgument("a policy names formats that disks can have", argument="formats")
    if not math.isfinite(policy.min_free_percent) or not 0 <= policy.min_free_percent < 100:
        raise InvalidArgument(
            f"min_free_percent must be from 0 to below 100, not {policy.min_free_percent}",
            argument="min_free_percent",
        )
    return StoragePolicy(
        name=policy.name,
        description=policy.description,
        required_tags=required,
        forbidden_tags=forbidden,
        shared=policy.shared,
        formats=tuple(sorted(set(policy.formats))),
        min_free_percent=policy.min_free_percent,
    )


def _tags(case: _Case) -> list[Finding]:
    name, tags = case.datastore.name, case.datastore.tags
    missing = [
        case.against(
            f"required tag {tag}",
            f"{name} doesn't have the tag {tag}",
            f"choose a datastore that has it, or tag {name}",
        )
        for tag in case.policy.required_tags
        if tag not in tags
    ]
    there = [
        case.against(f"forbidden tag {tag}", f"{name} has the tag {tag}", "choose a datastore without it")
        for tag in case.policy.forbidden_tags
        if tag in tags
    ]
    return missing + there


def _shared(case: _Case) -> list[Finding]:
    hosts, name = case.datastore.hosts, case.datastore.name
    if not case.policy.shared or hosts > 1:
        return []
    seen = "only one host" if hosts else "no host"
    remedy = f"choose a shared datastore, or mount {name} on more hosts"
    return [case.against("shared", f"{seen} of the cluster sees {name}", remedy)]


def _formats(case: _Case) -> list[Finding]:
    if not case.policy.formats:
        return []
    allowed = " or ".join(FORMAT_WORDS[entry] for entry in case.policy.formats)
    return [
        case.against(
            f"format {allowed}",
            f"disk {disk.key} is {FORMAT_WORDS[disk.format]}",
            f"choose the format {allowed} for it",
        )
        for disk in case.disks
        if disk.format in FORMAT_WORDS and disk.format not in case.policy.formats
    ]


def _free_space(case: _Case) -> list[Finding]:
    datastore, least = case.datastore, case.policy.min_free_percent
    if not least:
        return []
    left_bytes = max(datastore.free_bytes - sum(disk.new_bytes for disk in case.disks), 0)
    percent = 100.0 * left_bytes / datastore.capacity_bytes if datastore.capacity_bytes else 0.0
    if percent >= least:
        return []
    text = f"{percent:.1f} % of {datastore.name} would be free, less than {least:g} %"
    return [case.against(f"{least:g} % free", text, "choose a datastore with more room, or make room there")]
