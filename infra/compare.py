"""One question to every stage that there is, side by side."""

import sys

from infra.cli import visible
from infra.conversation import Chat
from infra.questions import prompt_of
from infra.terminal import is_terminal
from infra.tokenizer import TAGS

STAGES = ("pretrained", "SFT", "distilled", "rewarded")  # by their --model_mode


def compare(chat: Chat, question: str) -> None:
    """Print the replies of all stages, under one seed and without the turns before. Ctrl-C ends it.

    Raises UserError for a question that leaves no room.
    """
    replies = {}
    try:
        for mode, name in enumerate(STAGES):
            try:
                model, tokenizer = model_of(chat, mode)
            except FileNotFoundError:
                continue  # it was not trained
            prompt = prompt_of(question, tokenizer, chat.prompt_ids, is_base=mode == 0)
            steps = chat.answer(model, [prompt], chat.config, {})
            ids = [step[0] for step in steps if step[0] != model.config.eos_token_id]
            replies[name] = visible(tokenizer.decode(ids).strip())
    except KeyboardInterrupt:
        print("[stopped]", file=sys.stderr)
    if is_terminal(sys.stdout):
        return print_columns(replies)
    for name, text in replies.items():
        print(f"--- {name} ---\n{text}")


def model_of(chat: Chat, mode: int):
    """(model, tokenizer) of a stage. Raises FileNotFoundError if there is none."""
    if mode == chat.config.model_mode:
        return chat.model, chat.tokenizer
    return chat.load_stage(chat.config, mode)[1:]


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
