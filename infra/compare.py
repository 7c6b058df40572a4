"""One question to every stage that there is, side by side."""

import sys

from infra.cli import visible
from infra.conversation import STAGES, Chat, stages_of
from infra.reply import prompt_for, reply_ids
from infra.terminal import is_terminal
from infra.thinking import IN_CIRCLES, InCircles
from infra.tokenizer import TAGS


def compare(chat: Chat, question: str) -> None:
    """Print the replies of all stages, under one seed and without the turns before. Ctrl-C ends it.

    Raises UserError for a question that leaves no room.
    """
    replies = {}
    try:
        for asked in stages_of(chat):
            name, ids = STAGES[asked.config.model_mode], []
            try:
                for id in reply_ids(asked, prompt_for(asked, question)[0]):
                    ids.append(id)
                ending = ""
            except InCircles:
                ending = IN_CIRCLES
            replies[name] = visible(asked.tokenizer.decode(ids).strip()) + ending
    except KeyboardInterrupt:
        print("[stopped]", file=sys.stderr)
    if is_terminal(sys.stdout):
        return print_columns(replies)
    for name, text in replies.items():
        print(f"--- {name} ---\n{text}")


def print_columns(replies: dict[str, str]) -> None:
    """A column for each reply, its thinking dim."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(expand=True)
    for name in replies:
        table.add_column(name, overflow="fold")  # Chinese has no spaces to break lines at
    table.add_row(
        *(Text.assemble((thinking, "dim"), answer) for thinking, answer in map(parted, replies.values()))
    )
    Console().print(table)


def parted(reply: str) -> tuple[str, str]:
    """(the thinking, if there is one, and its line break; the rest), without tags."""
    thinking, closed, answer = reply.rpartition("</think>")
    for tag in TAGS:
        thinking, answer = thinking.replace(tag, ""), answer.replace(tag, "")
    return (thinking.strip() + "\n" if closed else ""), answer.strip()
