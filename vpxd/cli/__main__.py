"""The console script `vpx`, and `python -m vpxd.cli`."""

from vpxd.cli.app import app


def main() -> None:
    """Runs the command line; ends the process with one of vpxd/cli/exit_status.py."""
    app(prog_name="vpx")


if __name__ == "__main__":
    main()
