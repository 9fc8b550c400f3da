"""CPU time of a process, from /proc/PID/stat (proc_pid_stat(5))."""

import os
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def stat_fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the command's name, which may hold anything; the first is field 3.

    :raises OSError: there is no such process any more.
    """
    return Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()


def cpu_seconds_of(pid: int) -> float:
    """User and system time of all its threads so far, in seconds; 0.0 where the process is gone."""
    try:
        fields = stat_fields(pid)
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def start_time_of(pid: int) -> int:
    """When it started, in clock ticks after boot: with the pid it names a process for good.

    :raises OSError: there is no such process.
    """
    return int(stat_fields(pid)[19])
