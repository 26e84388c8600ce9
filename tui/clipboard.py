"""Copying: the system's own clipboard first, then the terminal's (OSC 52), and the truth about which."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping

_TIMEOUT = 2.0


def native_command(environment: Mapping[str, str] = os.environ, platform: str = sys.platform) -> list[str] | None:
    """Return the program that takes a text for the system's clipboard on its stdin, if there is one."""
    if platform == "darwin":
        candidates = [["pbcopy"]]
    elif platform == "win32":
        candidates = [["clip"]]
    else:
        candidates = []
        if environment.get("WAYLAND_DISPLAY"):
            candidates.append(["wl-copy"])
        if environment.get("DISPLAY"):
            candidates += [["xclip", "-selection", "clipboard"], ["xsel", "--clipboard", "--input"]]
        if "microsoft" in environment.get("WSL_DISTRO_NAME", "").lower() or environment.get("WSL_INTEROP"):
            candidates.append(["clip.exe"])
    return next((command for command in candidates if shutil.which(command[0])), None)


def copy_native(text: str, command: list[str] | None) -> bool:
    """Give a text to the system's clipboard; return whether that worked."""
    if command is None:
        return False
    try:
        # stdout and stderr lead nowhere: xclip stays behind as a daemon and would keep them open.
        subprocess.run(
            command,
            input=text.encode("utf-8", "replace"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_TIMEOUT,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def understands_osc52(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this terminal may be expected to take OSC 52; those that are known not to are left out."""
    if environment.get("TERM", "") in ("", "dumb", "linux"):
        return False
    return environment.get("TERM_PROGRAM") != "Apple_Terminal" and "VTE_VERSION" not in environment
