"""`python -m vpxa` serves; `python -m vpxa join --vpxd ADDRESS --token T --ca-fingerprint F` joins this host.

With `--token -` the token is read from standard input: command lines are seen by every user of the machine.
"""

import argparse
import asyncio
import os
import sys

from runtime.daemon.log_setup import setup_logging
from runtime.daemon.run import EXIT_FAILED, EXIT_SETTINGS, run_daemon
from runtime.daemon.settings import SettingsError
from runtime.faults import VimFault
from vpxa.config import Config
from vpxa.server import serve

_MAX_TOKEN = 4096


async def _serve(stop: asyncio.Event) -> None:
    config = Config.from_environment(os.environ)
    setup_logging("vpxa", config.host_name, json=config.log_json)
    await serve(config, stop)


def _join(arguments: argparse.Namespace) -> int:
    """Get a certificate from vpxd and keep it; a vpxa that waits for it takes it up by itself."""
    from runtime.rpc.enrollment import join  # only this command pays for its libraries

    try:
        config = Config.from_environment(os.environ)
        token = sys.stdin.readline(_MAX_TOKEN).strip() if arguments.token == "-" else arguments.token
        enrolled = asyncio.run(
            join(
                arguments.vpxd,
                token,
                arguments.ca_fingerprint,
                config.host_name,
                config.management_address,
            )
        )
        enrolled.save(config.identity_directory)
    except SettingsError as error:
        print(f"settings: {error}", file=sys.stderr)
        return EXIT_SETTINGS
    except (VimFault, OSError) as error:
        print(f"vpxa join: {error}", file=sys.stderr)
        return EXIT_FAILED
    print(f"{config.host_name} has joined the cluster.")
    return 0


def main() -> int:
    """The process's exit status: of runtime/daemon/run.py, or 0, 1, 2 of `join`."""
    parser = argparse.ArgumentParser(prog="python -m vpxa", description="The host's agent.")
    commands = parser.add_subparsers(dest="command")
    join = commands.add_parser("join", help="make this host a member of a cluster")
    join.add_argument("--vpxd", required=True, help="vpxd's join address, host:port")
    join.add_argument("--token", required=True, help="the one-time token that vpxd gave for this host, or -")
    join.add_argument("--ca-fingerprint", required=True, help="SHA-256 of the cluster CA, 64 hex digits")
    commands.add_parser("serve", help="serve vpxd (the default)")
    arguments = parser.parse_args()
    return _join(arguments) if arguments.command == "join" else run_daemon(_serve)


if __name__ == "__main__":
    sys.exit(main())
