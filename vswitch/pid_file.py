"""Says which process the switch is, for a hostd that was started after it: pid and start time, as vmx does.

The file is there only while the switch has all its sockets, so it also says that it is ready.
"""

import os
from pathlib import Path

PID_FILE = "vswitch.pid"


def write_pid_file(path: Path) -> None:
    """Put this process's pid and start time (field 22 of /proc/self/stat, proc(5)) under the path, at once."""
    text = Path("/proc/self/stat").read_text(encoding="ascii", errors="replace")
    start_time = text[text.rfind(")") + 2 :].split()[19]
    temporary = path.with_suffix(".tmp")
    temporary.write_text(f"{os.getpid()} {start_time}\n", encoding="ascii")
    os.replace(temporary, path)
