"""Whether every action of the app has a test that fails without it: `python -m tests.helpers.mutate_actions [ID ...]`.

For each action the tests that say they cover it run with an action that does nothing, and one of them must fail; in the
end all of them run with every action as it is, and must pass. Prints a table; ends with 1 if an action is not missed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[2]


def main() -> int:
    """Try all actions, or those that are named."""
    for file in (ROOT / "tests" / "tui").glob("test_*.py"):
        import_module(f"tests.tui.{file.stem}")
    from eft_local.tui.actions.registry import ACTIONS
    from tests.helpers.tui_desk import COVERED

    wanted = sys.argv[1:] or [action.id for action in ACTIONS]
    unnoticed = []
    for action in wanted:
        tests = COVERED.get(action, [])
        noticed = bool(tests) and _failed(tests, action)
        unnoticed += [] if noticed else [action]
        names = ", ".join(test.rpartition("::")[2] for test in tests) or "no test"
        print(f"{action:<20} {'missed' if noticed else 'NOT MISSED'}   {names}", flush=True)
    whole = sorted({test for action in wanted for test in COVERED.get(action, [])})
    if _failed(whole, ""):
        print("the tests fail as they are")
        return 1
    print(f"{len(wanted) - len(unnoticed)} of {len(wanted)} actions are missed by a test")
    return bool(unnoticed)


def _failed(tests: list[str], action: str) -> bool:
    """Run tests; return whether one failed. action: the one that does nothing."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {"EFT_MUTATE": action}
    if action:
        environment["EFT_PATIENCE"] = "4"  # what never happens need not be waited for
    ran = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, check=False)
    if ran.returncode not in (0, 1):
        raise SystemExit(ran.stdout.decode() + ran.stderr.decode())
    return ran.returncode == 1


if __name__ == "__main__":
    sys.exit(main())
