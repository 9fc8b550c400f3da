"""What can go wrong on the client's own side.

    CliError            an exit status, one sentence, and what to do about it
      UsageError        the command line, or a value in it, can't be
        BadSpec         a specification that was given as a file can't be
      NoConfiguration   no client.json, or one that can't be read
      NoConnection      vpxd isn't there, or isn't the one that was expected
      NoAnswer          the deadline of --timeout passed
      IncompatibleHosts a check found errors: they have been printed
      Interrupted       Ctrl-C; what was started goes on

Faults of the daemons are runtime.faults.VimFault; both are said by vpxd/cli/fault_text.py.
"""

from vpxd.cli.exit_status import ExitStatus


class CliError(Exception):
    """Base: `status` is the exit status, `hint` what to do about it (may be empty)."""

    status = ExitStatus.FAILED

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(CliError):
    """The command line, or a value in it, can't be."""

    status = ExitStatus.USAGE


class BadSpec(UsageError):
    """A specification can't be; `field` is the place in it ("disks[0].format"), empty where it is no JSON at all."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(
            f"The specification's {field} {reason}." if field else f"The specification {reason}."
        )
        self.field = field


class NoConfiguration(CliError):
    """No client.json was found, or it can't be read."""

    status = ExitStatus.NO_CONNECTION


class NoConnection(CliError):
    """vpxd isn't there, or isn't the one that was expected."""

    status = ExitStatus.NO_CONNECTION


class NoAnswer(CliError):
    """The deadline passed; what was started goes on."""

    status = ExitStatus.TIMED_OUT


class IncompatibleHosts(CliError):
    """A compatibility check found errors."""

    status = ExitStatus.INCOMPATIBLE


class Interrupted(CliError):
    """Ctrl-C; what was started goes on."""

    status = ExitStatus.INTERRUPTED
