"""Line after line of a chat: a question is answered, a command obeyed."""

import time
from collections.abc import Iterable
from dataclasses import replace
from functools import partial

from infra.checkpoint import promised_context
from infra.cli import UserError
from infra.commands import obey
from infra.conversation import Chat, tell
from infra.history import fit
from infra.questions import prompt_of
from infra.terminal import as_text, print_stats, print_stream
from infra.thinking import limit_thinking, until_it_circles


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
    model, tokenizer, config = chat.model, chat.tokenizer, chat.config
    context = promised_context(model.config, tokenizer)
    if config.model_mode == 0:  # it has not learned to converse
        prompt = prompt_of(question, tokenizer, chat.prompt_ids, is_base=True)
    else:
        room = context - min(config.max_new_tokens, context // 2)
        asked = [*chat.messages, {"role": "user", "content": question}]
        prompt, chat.messages = fit(asked, room, partial(chat.prompt_ids, tokenizer))
    answer = chat.answer
    if chat.thinking is not None and config.model_mode:
        answer = limit_thinking(answer, tokenizer, chat.thinking)
    sampling = replace(config, seed=config.seed + chat.replies)  # asked again, it may answer otherwise
    chat.replies += 1
    start, ids = time.perf_counter(), []
    chat.prompt, chat.reply = prompt, ids

    def counted():
        for step in answer(model, [prompt], sampling, chat.shared):
            if step[0] != model.config.eos_token_id:
                ids.append(step[0])
                yield step[0]

    text = print_stream(as_text(tokenizer, until_it_circles(counted())), chat.is_folded)
    print_stats(len(ids), time.perf_counter() - start, len(prompt) + len(ids), context)
    if config.model_mode:
        # a turn without a reply is forgotten: the next question would follow a question
        answered = [*chat.messages, {"role": "assistant", "content": text}]
        chat.messages = answered if text.strip() else chat.messages[:-1]
