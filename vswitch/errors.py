"""What keeps the switch from working.

SwitchError
├── AlreadyRunning     another switch has this directory
└── SocketUnusable     an address or a path can't be bound
"""


class SwitchError(Exception):
    """The switch can't start."""


class AlreadyRunning(SwitchError):
    """Another switch serves this directory."""

    def __init__(self, directory: str) -> None:
        super().__init__(f"another switch serves {directory}")
        self.directory = directory


class SocketUnusable(SwitchError):
    """An address or a path can't be bound."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where} can't be bound: {reason}")
        self.where = where
        self.reason = reason
