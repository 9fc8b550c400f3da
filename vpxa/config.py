"""vpxa's settings, read from the environment here and nowhere else. hostd reads its own from the same one."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from runtime.daemon.settings import Settings


@dataclass(frozen=True)
class Config:
    """`management_address` is "address:port" where vpxa listens; `hostd_socket` is hostd's."""

    host_name: str
    state_directory: Path
    management_address: str
    hostd_socket: Path
    log_json: bool

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Config":
        """:raises SettingsError: a setting is missing or can't be; it names the variable."""
        settings = Settings(environment)
        address = settings.text("HOST_MANAGEMENT_ADDRESS", "127.0.1.1")
        port = settings.integer("HOST_MANAGEMENT_PORT", 8443, maximum=65535)
        return cls(
            host_name=settings.text("HOST_NAME"),
            state_directory=settings.path("HOST_STATE_DIR") / "vpxa",
            management_address=f"{address}:{port}",
            hostd_socket=settings.path("HOST_RUN_DIR") / "hostd.sock",
            log_json=settings.flag("LOG_JSON"),
        )

    @property
    def identity_directory(self) -> Path:
        """Where the host's certificate is, once it has joined."""
        return self.state_directory / "identity"
