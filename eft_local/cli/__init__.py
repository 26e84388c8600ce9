"""The command line, `eft`: one file per command, shared options in `options`, all errors in `failures`."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `eft` and end the process with the documented exit code. arguments: None takes the process's own."""
    try:
        from eft_local.cli.app import run

        sys.exit(run(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:  # so early, or so late, that no command could hear it
        sys.exit(130)
