"""`eft completion`: the shell's completion script."""

from __future__ import annotations

import click

from eft_local.cli import output
from eft_local.cli.options import Command, example


@click.command(
    cls=Command,
    epilog=example(
        "eft completion bash >> ~/.bashrc",
        "eft completion zsh >> ~/.zshrc",
        "eft completion fish > ~/.config/fish/completions/eft.fish",
    ),
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that completes commands, options and recipe names in SHELL."""
    from click.shell_completion import get_completion_class

    from eft_local.cli.app import eft

    script = get_completion_class(shell)
    assert script is not None
    output.write(script(eft, {}, "eft", "_EFT_COMPLETE").source())
