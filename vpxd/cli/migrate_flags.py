"""The flags of `vpx vm migrate`, and the request that they stand for."""

import re
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Annotated

import typer

from proto.vim.v1 import vm_config_pb2
from proto.vmotion.v1 import spec_pb2
from proto.vpxd.v1 import service_pb2
from vpxd.cli.completion import datastore_names, host_names, policy_names, vm_names
from vpxd.cli.disk_format import NUMBER_OF, DiskFormatWord
from vpxd.cli.errors import UsageError
from vpxd.cli.quantities import parse_rate
from vpxd.cli.relocate_spec import ENCRYPTION_OF, PRIORITY_OF

_PLACE = "Destination"
_DISK_FIELD = re.compile(r",(?=(?:datastore|format|policy)=)")  # a datastore's name may have a comma
_DISK_FIELDS = ("datastore", "format", "policy")
# Flags that say how a command goes on, not what is migrated how: they stand beside --spec.
_NOT_OF_THE_SPEC = frozenset({"vm", "watch", "yes", "check", "print_spec", "spec"})
_DESTINATION = ("host", "cluster", "datastore", "disk_format", "policy", "disk", "network", "nic")


class Priority(StrEnum):
    """Migration priority."""

    DEFAULT = "default"
    HIGH = "high"
    LOW = "low"


class Encryption(StrEnum):
    """Whether the vMotion streams are encrypted."""

    REQUIRED = "required"
    DISABLED = "disabled"


@dataclass(frozen=True)
class MigrateVm:
    vm: Annotated[
        str,
        typer.Argument(
            metavar="VM",
            help="Name or id (vm-12). [default: the wizard asks]",
            show_default=False,
            autocompletion=vm_names,
        ),
    ] = ""
    host: Annotated[
        str,
        typer.Option(
            "--host",
            help="The host to go to. [default: placement chooses]",
            rich_help_panel=_PLACE,
            autocompletion=host_names,
        ),
    ] = ""
    cluster: Annotated[
        str,
        typer.Option("--cluster", help="Placement chooses among its hosts.", rich_help_panel=_PLACE),
    ] = ""
    datastore: Annotated[
        str,
        typer.Option(
            "--datastore",
            help="Of its home, and of every disk that --disk doesn't name.",
            rich_help_panel=_PLACE,
            autocompletion=datastore_names,
        ),
    ] = ""
    disk_format: Annotated[
        DiskFormatWord | None,
        typer.Option(
            "--disk-format",
            help="Of the disks that go to --datastore. [default: same as source]",
            show_default=False,
            rich_help_panel=_PLACE,
        ),
    ] = None
    policy: Annotated[
        str,
        typer.Option(
            "--policy",
            help='Storage policy of all of it; "-": none afterwards. [default: kept]',
            rich_help_panel=_PLACE,
            autocompletion=policy_names,
        ),
    ] = ""
    disk: Annotated[
        list[str] | None,
        typer.Option(
            "--disk",
            metavar="KEY:datastore=..,format=..,policy=..",
            help="One disk of its own (its key: 2000, ...); can be repeated.",
            rich_help_panel=_PLACE,
        ),
    ] = None
    network: Annotated[
        list[str] | None,
        typer.Option(
            "--network",
            metavar="FROM=TO",
            help="All NICs of one port group; can be repeated.",
            rich_help_panel=_PLACE,
        ),
    ] = None
    nic: Annotated[
        list[str] | None,
        typer.Option(
            "--nic",
            metavar="KEY=NETWORK",
            help="One NIC (its key: 4000, ...); can be repeated.",
            rich_help_panel=_PLACE,
        ),
    ] = None
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Show every phase and pass, and tables at the end.")
    ] = False
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Ask nothing: placement chooses what isn't named.")
    ] = False
    check: Annotated[
        bool, typer.Option("--check", help="Only the compatibility checks; exit status 5: it can't.")
    ] = False
    print_spec: Annotated[
        bool, typer.Option("--print-spec", help="Only print all this as a specification for --spec.")
    ] = False
    spec: Annotated[
        str,
        typer.Option("--spec", metavar="FILE", help='The specification, instead of flags; "-": from stdin.'),
    ] = ""
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Compare every page of both memories, while the destination runs."),
    ] = False
    verify_before_resume: Annotated[
        bool,
        typer.Option("--verify-before-resume", help="Compare inside the stun: it grows with the memory."),
    ] = False
    encryption: Annotated[
        Encryption | None,
        typer.Option("--encryption", help="Of the vMotion streams. [default: required]", show_default=False),
    ] = None
    plaintext: Annotated[bool, typer.Option("--plaintext", help="As --encryption disabled.")] = False
    streams: Annotated[
        int,
        typer.Option("--streams", min=0, max=16, help="Page channels. [default: chosen]", show_default=False),
    ] = 0
    switchover_goal_ms: Annotated[
        int,
        typer.Option(
            "--switchover-goal-ms",
            min=0,
            metavar="MS",
            help="Switch over when the rest can be sent in this time. [default: vpxd's]",
            show_default=False,
        ),
    ] = 0
    max_iterations: Annotated[
        int,
        typer.Option(
            "--max-iterations",
            min=0,
            metavar="N",
            help="Passes of pre-copy. [default: vpxd's]",
            show_default=False,
        ),
    ] = 0
    bandwidth: Annotated[
        str, typer.Option("--bandwidth", metavar="RATE", help="Cap, such as 125MB/s. [default: none]")
    ] = ""
    tracer: Annotated[
        str,
        typer.Option("--tracer", metavar="NAME", help="pagemap_scan or hash_scan. [default: by the kernel]"),
    ] = ""
    priority: Annotated[Priority, typer.Option("--priority", help="Before or behind others.")] = (
        Priority.DEFAULT
    )

    @property
    def names_destination(self) -> bool:
        """Whether a flag says where the VM, its storage or its NICs go."""
        return any(getattr(self, name) for name in _DESTINATION)


def require_consistent(arguments: MigrateVm, *, wait: bool) -> None:
    """:raises UsageError: flags contradict each other."""
    if arguments.watch and not wait:
        raise UsageError("--watch and --no-wait contradict each other.")
    if arguments.check and arguments.print_spec:
        raise UsageError("Use either --check or --print-spec.")
    if not arguments.spec:
        return
    for field in fields(arguments):
        if field.name not in _NOT_OF_THE_SPEC and getattr(arguments, field.name) != field.default:
            flag = field.name.replace("_", "-")
            raise UsageError(f"--{flag} contradicts --spec, which holds the whole specification.")


def options_of(arguments: MigrateVm) -> spec_pb2.MigrationOptions:
    """The options as the protocol has them.

    :raises UsageError: they contradict each other, or the bandwidth is no rate.
    """
    if arguments.verify and arguments.verify_before_resume:
        raise UsageError("Use either --verify or --verify-before-resume.")
    if arguments.plaintext and arguments.encryption is Encryption.REQUIRED:
        raise UsageError("--plaintext and --encryption required contradict each other.")
    verify = spec_pb2.VERIFY_MODE_OFF
    if arguments.verify:
        verify = spec_pb2.VERIFY_MODE_AFTER_RESUME
    if arguments.verify_before_resume:
        verify = spec_pb2.VERIFY_MODE_BEFORE_RESUME
    encryption = Encryption.DISABLED if arguments.plaintext else arguments.encryption or Encryption.REQUIRED
    try:
        bandwidth = parse_rate(arguments.bandwidth) if arguments.bandwidth else 0
    except ValueError as error:
        raise UsageError(f"--bandwidth: {error}.") from error
    return spec_pb2.MigrationOptions(
        verify=verify,
        encryption=ENCRYPTION_OF[encryption],
        priority=PRIORITY_OF[arguments.priority],
        switchover_goal_ms=arguments.switchover_goal_ms,
        max_iterations=arguments.max_iterations,
        streams=arguments.streams,
        bandwidth_bytes_per_s=bandwidth,
        tracer=arguments.tracer,
    )


def spec_of(arguments: MigrateVm) -> service_pb2.RelocateSpec:
    """Where it goes, as the protocol has it. What contradicts itself in other ways vpxd refuses.

    :raises UsageError: a --disk, --network or --nic that isn't written as they are.
    """
    chosen = arguments.disk_format
    return service_pb2.RelocateSpec(
        host=arguments.host,
        cluster=arguments.cluster,
        datastore=arguments.datastore,
        format=NUMBER_OF[chosen] if chosen is not None else vm_config_pb2.DISK_FORMAT_UNSPECIFIED,
        policy=arguments.policy,
        disks=[_disk(text) for text in arguments.disk or ()],
        networks=[
            *(_network(text) for text in arguments.network or ()),
            *(_nic(text) for text in arguments.nic or ()),
        ],
    )


def _disk(text: str) -> service_pb2.DiskLocator:
    key, _, rest = text.partition(":")
    named: dict[str, str] = {}
    for part in _DISK_FIELD.split(rest):
        name, sign, value = part.partition("=")
        if not (sign and value) or name not in _DISK_FIELDS or name in named:
            raise UsageError(f"--disk takes KEY:datastore=NAME,format=FORMAT,policy=NAME, not {text!r}.")
        named[name] = value
    word = named.get("format", "")
    if word and word not in NUMBER_OF:
        raise UsageError(f"--disk: {word!r} is no format; there are {', '.join(NUMBER_OF)}.")
    return service_pb2.DiskLocator(
        key=_key(key, "--disk"),
        datastore=named.get("datastore", ""),
        format=NUMBER_OF[word] if word else vm_config_pb2.DISK_FORMAT_UNSPECIFIED,
        policy=named.get("policy", ""),
    )


def _network(text: str) -> service_pb2.NicMapping:
    before, sign, after = text.partition("=")
    if not (before and sign and after):
        raise UsageError(f"--network takes FROM=TO, not {text!r}.")
    return service_pb2.NicMapping(from_network=before, network=after)


def _nic(text: str) -> service_pb2.NicMapping:
    key, sign, network = text.partition("=")
    if not (sign and network):
        raise UsageError(f"--nic takes KEY=NETWORK, not {text!r}.")
    return service_pb2.NicMapping(nic=_key(key, "--nic"), network=network)


def _key(text: str, flag: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 2**31):
        raise UsageError(f"{flag} begins with a device's key, a number such as 2000, not {text[:40]!r}.")
    return int(text)
