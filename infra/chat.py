"""Line after line of a chat: a question is answered, a command obeyed."""

import time
from collections.abc import Iterable

from infra.checkpoint import promised_context
from infra.cli import UserError
from infra.commands import obey
from infra.conversation import Chat, tell
from infra.reply import prompt_for, reply_ids
from infra.terminal import as_text, print_stats, print_stream


def converse(chat: Chat, lines: Iterable[str]) -> None:
    """Answer each line after the turns before it that fit. With --prompt, an error is raised, else told."""
    has_prompt = chat.config.prompt is not None
    for line in lines:
        try:
            question = obey(chat, line) if line.startswith("/") and not has_prompt else line
            if question is not None:
                reply(chat, question)
        except (UserError, OSError) as error:
            if has_prompt or isinstance(error, BrokenPipeError):
                raise
            tell(str(error))
        if chat.has_ended:
            return


def reply(chat: Chat, question: str) -> None:
    """Print a reply and remember it. Raises UserError for a question that is too long."""
    prompt, seen = prompt_for(chat, question)
    asked = [*chat.messages, {"role": "user", "content": question}]
    start, ids = time.perf_counter(), []
    chat.prompt, chat.reply = prompt, ids

    def remembered():
        for id in reply_ids(chat, prompt):
            ids.append(id)
            yield id

    text = print_stream(as_text(chat.tokenizer, remembered()), chat.is_folded)
    chat.replies += 1
    context = promised_context(chat.model.config, chat.tokenizer)
    print_stats(len(ids), time.perf_counter() - start, len(prompt) + len(ids), context)
    if len(seen) < len(asked):
        tell(f"oldest messages left out, for lack of room: {len(asked) - len(seen)}")
    if chat.config.model_mode and text.strip():  # else the next question would follow a question
        chat.messages = [*asked, {"role": "assistant", "content": text}]
