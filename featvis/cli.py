"""The command line. A reader's mistake is one sentence and exit status 2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from featvis.commands import COMMANDS
from featvis.errors import FeatvisError


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; exits with 0, or with 2 and one sentence on standard error."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except FeatvisError as error:
        print(f"featvis: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"featvis: {error.strerror or error}: {error.filename or ''}".rstrip(": "), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("featvis: interrupted; nothing half-written was left.", file=sys.stderr)
        sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="featvis", description="Are feature visualizations reliable?")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in COMMANDS:
        module.add(commands)
    return parser


if __name__ == "__main__":
    main()
