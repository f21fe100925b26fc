"""The command line. A reader's mistake is one sentence and exit status 2, a mistake of ours one sentence and 1."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version

from featvis.commands import COMMANDS
from featvis.errors import FeatvisError, reason

TRACEBACK = "FEATVIS_TRACEBACK"  # set to see where an error that nobody thought of comes from


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; exits with 0, or with another status and one sentence on standard error."""
    options = _parser().parse_args(arguments)
    try:
        with _ended_politely():
            options.run(options)
    except FeatvisError as error:
        _leave(2, str(error))
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        _leave(2, f"{error.strerror or error}: {error.filename or ''}".rstrip(": "))
    except KeyboardInterrupt:
        _leave(130, _interrupted(options))
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        _leave(1, f"unexpected {type(error).__name__}: {reason(error)} (set {TRACEBACK}=1 to see where)")


@contextmanager
def _ended_politely() -> Iterator[None]:
    """Within, SIGTERM is an interrupt: it leaves no more behind than Ctrl-C does."""
    before = signal.getsignal(signal.SIGTERM)
    # No other thread may say so; and whoever started us may have asked not to be ended, or have a handler of his own.
    if threading.current_thread() is not threading.main_thread() or before is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _leave(status: int, sentence: str) -> None:
    print(f"featvis: {sentence}", file=sys.stderr)
    sys.exit(status)


def _interrupted(options: argparse.Namespace) -> str:
    """What an interrupt left: some commands keep the parts that were finished."""
    kept = getattr(options, "kept", None)
    if kept is not None and kept.is_dir():
        return f"interrupted; what was finished is kept in {options.out}, and the same command goes on from there."
    return "interrupted; nothing half-written was left."


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="featvis",
        description="Are feature visualizations reliable?",
        epilog="example:\n  featvis render photonet fc:coins --out pictures\n\n'featvis COMMAND --help' has more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"featvis {version('featvis')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in COMMANDS:
        module.add(commands)
    return parser


if __name__ == "__main__":
    main()
