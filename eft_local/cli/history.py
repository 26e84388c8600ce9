"""`eft history`: the chats that are kept."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from eft_local.cli import output
from eft_local.cli.options import Command, example, json_option
from eft_local.errors import UsageError

if TYPE_CHECKING:
    from eft_local.chats import Chat, History, Hit, Message

_LARGEST_ID = 2**63 - 1


@click.group(
    invoke_without_command=True,
    epilog=example("eft history", "eft history search capital", "eft history export k3f -o peru.md"),
)
@click.option("--deleted", is_flag=True, help="List deleted chats, which 'eft history undo' restores.")
@click.option("--limit", "-n", type=click.IntRange(1), metavar="N", help="At most N, the newest.")
@json_option
@click.pass_context
def history(ctx: click.Context, deleted: bool, limit: int | None, as_json: bool) -> None:
    """List saved chats, the newest first. An ID may be shortened as long as it is unambiguous.

    They are in one SQLite file that only you can read; --json names it.
    """
    if ctx.invoked_subcommand is not None:
        if deleted or limit or as_json:
            raise UsageError(
                f"--deleted, --limit and --json before {ctx.invoked_subcommand!r}: they go after it, or alone"
            )
        return
    with _opened() as kept:
        chats = kept.chats(deleted=deleted, limit=limit)
    if as_json:
        _write_chats(kept.path, chats)
        return
    if not chats:
        output.note("no deleted chats" if deleted else "no chats yet; `eft chat` starts one")
    for chat in chats:
        output.write(_line(chat) + "\n")


@history.command(cls=Command, epilog=example("eft history search capital peru"))
@click.argument("words", nargs=-1, required=True)
@click.option("--limit", "-n", type=click.IntRange(1), default=20, show_default=True, metavar="N", help="At most N.")
@json_option
def search(words: tuple[str, ...], limit: int, as_json: bool) -> None:
    """Find the chats that hold all WORDS somewhere, or words that begin so. Accents and case do not matter."""
    with _opened() as kept:
        hits = kept.search(" ".join(words), limit=limit)
    if as_json:
        output.write_json({"hits": [_hit(hit) for hit in hits]})
    elif not hits:
        output.note("nothing found")
    else:
        for hit in hits:
            output.write(f"{_line(hit.chat)}\n    {_marked(hit)}\n")


@history.command(cls=Command, epilog=example("eft history show k3f", "eft history show k3f --message 12"))
@click.argument("chat", metavar="ID")
@click.option(
    "--message",
    type=click.IntRange(1, _LARGEST_ID),
    metavar="N",
    help="The branch that leads to message N, instead of the one last shown.",
)
@json_option
def show(chat: str, message: int | None, as_json: bool) -> None:
    """Print the chat ID: its messages with their numbers and, where there are branches, their siblings'."""
    from eft_local.chats import to_json

    with _opened() as kept:
        found = kept.chat(chat)
        branch = kept.shown(found.id) if message is None else kept.branch(message)
        if message is not None and branch[0].chat != found.id:
            raise UsageError(f"message {message} is not in chat {found.id} but in {branch[0].chat}")
        if as_json:
            output.write_json(to_json(kept, found.id))
            return
    output.write(_line(found) + "\n")
    if found.system_prompt is not None:
        output.write(f"system prompt: {output.safe(found.system_prompt)}\n")
    for each in branch:
        output.write(f"\n{_heading(each)}\n{output.safe(each.text.strip())}\n")


@history.command(cls=Command, epilog=example("eft history export k3f > peru.md", "eft history export k3f -o peru.json"))
@click.argument("chat", metavar="ID")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["md", "json"]),
    help="md: the branch last shown. json: everything. [default: what FILE ends in, else md]",
)
@click.option("--output", "-o", "file", type=click.Path(path_type=Path), metavar="FILE", help="Instead of stdout.")
@click.option("--statistics", is_flag=True, help="With json: also what the inspector keeps of each answer, as base64.")
def export(chat: str, kind: str | None, file: Path | None, statistics: bool) -> None:
    """Write the chat ID as Markdown or as JSON. FILE is readable for you alone."""
    from eft_local.chats import to_json, to_markdown

    kind = kind or ("json" if file and file.suffix == ".json" else "md")
    if statistics and kind == "md":
        raise UsageError("--statistics: Markdown has no place for them; add --format json")
    with _opened() as kept:
        if kind == "md":
            text = to_markdown(kept, chat)
        else:
            document = to_json(kept, chat, statistics=statistics)
            text = json.dumps(document, ensure_ascii=False, indent=2, allow_nan=False) + "\n"
    if file is None:
        output.write(output.safe(text))
    else:
        output.save(file, text.encode(), private=True)


@history.command(cls=Command, epilog=example('eft history rename k3f "The capital of Peru"'))
@click.argument("chat", metavar="ID")
@click.argument("title", nargs=-1, required=True)
def rename(chat: str, title: tuple[str, ...]) -> None:
    """Give the chat ID another TITLE."""
    with _opened() as kept:
        kept.rename(chat, " ".join(title))


@history.command(cls=Command, epilog=example("eft history rm k3f m7q", "eft history rm k3f --forever --yes"))
@click.argument("chats", metavar="ID...", nargs=-1, required=True)
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.option("--forever", is_flag=True, help="At once and for good, instead of after 30 days.")
def rm(chats: tuple[str, ...], yes: bool, forever: bool) -> None:
    """Delete chats. 'eft history undo' brings them back within 30 days."""
    with _opened() as kept:
        found = {chat.id: chat for chat in map(kept.chat, chats)}
        for chat in found.values():
            if not yes and not _confirmed(chat, forever):
                continue
            if forever:
                kept.purge(chat.id)
            else:
                kept.delete(chat.id)
                output.note(f"deleted {chat.id}; `eft history undo {chat.id}` brings it back")


@history.command(cls=Command, epilog=example("eft history undo", "eft history undo k3f"))
@click.argument("chat", metavar="[ID]", required=False)
def undo(chat: str | None) -> None:
    """Restore the chat ID, or the one that was deleted last."""
    with _opened() as kept:
        if chat is not None and not kept.chat(chat).deleted:
            raise UsageError(f"chat {chat} is not deleted")
        output.write(_line(kept.restore(chat)) + "\n")


@contextmanager
def _opened() -> Iterator[History]:
    from eft_local.chats import History

    with History() as kept:
        yield kept


def _confirmed(chat: Chat, forever: bool) -> bool:
    if not sys.stdin.isatty():
        raise UsageError(f"rm {chat.id}: there is no terminal to ask on; add --yes")
    title = output.safe(chat.title or "no question yet")
    return click.confirm(f"Delete {chat.id} ({title}){' for good' if forever else ''}?", err=True)


def _line(chat: Chat) -> str:
    when = chat.updated.astimezone().strftime("%Y-%m-%d %H:%M")
    return f"{chat.id}  {when}  {output.safe(chat.title or '(no question yet)')}"


def _heading(message: Message) -> str:
    """Return a message's number, who speaks, how it ended if not by itself, and its siblings' numbers."""
    from eft_local.chats import turn_title

    others = ", ".join(str(sibling) for sibling in message.siblings if sibling != message.id)
    return f"[{message.id}] {turn_title(message)}" + (f", beside {others}" if others else "")


def _marked(hit: Hit) -> str:
    """Return a snippet; on a terminal with colours the words that were found stand out."""
    if not sys.stdout.isatty():
        return hit.snippet
    from rich.console import Console
    from rich.text import Text

    text = Text(output.safe(hit.snippet))
    for start, end in hit.marks:
        text.stylize("bold", start, end)
    with (console := Console()).capture() as capture:
        console.print(text, end="", soft_wrap=True)
    return capture.get()


def _write_chats(path: Path | None, chats: list[Chat]) -> None:
    from eft_local.chats import summary

    output.write_json({"path": str(path) if path else None, "chats": [summary(chat) for chat in chats]})


def _hit(hit: Hit) -> dict[str, Any]:
    from eft_local.chats import summary

    return {
        "chat": summary(hit.chat),
        "message": hit.message,
        "snippet": hit.snippet,
        "marks": [list(mark) for mark in hit.marks],
    }
