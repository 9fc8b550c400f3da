"""Pure: no I/O, no clock, no logging.

The kernel command line of the guest: the one place that says how it is to be started.

What each fixed option is for is said beside it; `images/README.md` lists the settable ones.
"""

from typing import Literal

Rate = int | Literal["max"]
Order = Literal["seq", "random"]

STAMPER_MIB_DEFAULT = 64
RATE_MIB_S_DEFAULT = 20
SWEEP_MIB_S_DEFAULT = 4
HEARTBEAT_MS_DEFAULT = 10

RATE_MIB_S_MAX = 65536
STAMPER_MIB_MAX = 1 << 24
HEARTBEAT_MS_MAX = 60_000

FIXED_OPTIONS = (
    "console=ttyS0",
    "quiet",
    # Against faults of real processors: they cost an emulated one time and protect nothing here.
    "mitigations=off",
    # The kernel stays at its one address, so that two runs of one image populate the same pages.
    "nokaslr",
    # Zeroing what was never used would populate host memory, which then has to migrate.
    "init_on_alloc=0",
    # The clock's watchdog takes a host that was busy for a broken clock.
    "tsc=reliable",
    "no_timer_check",
    "random.trust_cpu=on",
    # The kernel's tests of its own ciphers: 0.2 s of an emulated boot.
    "cryptomgr.notests=1",
)


def kernel_command_line(
    stamper_mib: int = STAMPER_MIB_DEFAULT,
    rate: Rate = RATE_MIB_S_DEFAULT,
    order: Order = "seq",
    heartbeat_ms: int = HEARTBEAT_MS_DEFAULT,
    sweep_mib_s: int = SWEEP_MIB_S_DEFAULT,
) -> str:
    """The text for QEMU's `-append`.

    :param stamper_mib: size of the working set; the guest needs about 64 MiB beside it.
    :param rate: MiB per second that the guest rewrites; 0 rewrites nothing, "max" knows no pause.
    :param order: the order in which pages are rewritten.
    :param heartbeat_ms: period of the heartbeat's lines.
    :param sweep_mib_s: MiB per second that are read and checked beside the rewriting; 0 checks only what is rewritten.
    :raises ValueError: a value outside of what the guest takes.
    """
    _check_range("stamper_mib", stamper_mib, 1, STAMPER_MIB_MAX)
    _check_range("heartbeat_ms", heartbeat_ms, 1, HEARTBEAT_MS_MAX)
    _check_range("sweep_mib_s", sweep_mib_s, 0, RATE_MIB_S_MAX)
    if rate != "max":
        _check_range("rate", rate, 0, RATE_MIB_S_MAX)
    if order not in ("seq", "random"):
        raise ValueError(f"order is {order!r}, and must be seq or random")
    return " ".join(
        (
            *FIXED_OPTIONS,
            f"stamper.mib={stamper_mib}",
            f"stamper.rate_mib_s={rate}",
            f"stamper.order={order}",
            f"stamper.sweep_mib_s={sweep_mib_s}",
            f"heartbeat_ms={heartbeat_ms}",
        )
    )


def _check_range(name: str, value: object, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{name} is {value!r}, and must be a whole number from {least} to {most}")
