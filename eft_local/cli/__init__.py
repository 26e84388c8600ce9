"""The command line, `eft`: one file per command, shared options in `options`, all errors in `failures`."""

from __future__ import annotations

from eft_local.cli.app import main

__all__ = ["main"]
