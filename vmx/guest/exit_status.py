"""How a QEMU process ended.

Pure: no I/O, no clock, no logging.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

__all__ = ["ExitStatus"]


@dataclass(frozen=True)
class ExitStatus:
    """The end of a process: an exit code, or the signal that ended it, or neither.

    Neither is known where the process was not this process's child: the kernel tells the status only to
    the parent (waitid(2)), and a QEMU that was adopted has none of us as its parent.
    """

    exit_code: int | None = None
    signal_number: int | None = None

    @classmethod
    def from_waitid(cls, result: os.waitid_result) -> ExitStatus:
        """The status that waitid(2) told of a child that has ended."""
        if result.si_code == os.CLD_EXITED:
            return cls(exit_code=result.si_status)
        return cls(signal_number=result.si_status)

    @property
    def is_clean(self) -> bool:
        """Whether the process is known to have ended by itself and without an error."""
        return self.exit_code == 0

    def __str__(self) -> str:
        if self.exit_code is not None:
            return f"exit code {self.exit_code}"
        if self.signal_number is not None:
            try:
                return f"signal {signal.Signals(self.signal_number).name}"
            except ValueError:
                return f"signal {self.signal_number}"
        return "unknown exit status"
