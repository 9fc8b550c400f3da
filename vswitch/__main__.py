"""`python -m vswitch`: settings from the environment, then frames until SIGTERM. hostd starts it.

exit 0   told to end      exit 1   a socket or the lock isn't to be had (the log says which)      exit 2   settings
"""

import os
import sys

import structlog

from runtime.daemon.log_setup import setup_logging
from runtime.daemon.settings import SettingsError
from vswitch.config import Config
from vswitch.errors import SwitchError
from vswitch.switch import VirtualSwitch

_log = structlog.get_logger(__name__)


def main() -> int:
    """The process; answers its exit status."""
    try:
        config = Config.from_environment(os.environ)
    except SettingsError as error:
        print(f"settings: {error}", file=sys.stderr)
        return 2
    setup_logging("vswitch", config.host_name, json=config.log_json)
    try:
        with VirtualSwitch(config) as switch:
            switch.run()
    except SwitchError as error:
        _log.error("switch_failed", reason=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
