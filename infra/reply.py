"""One reply of a chat: what the model is asked, and its ids as they come."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from infra.checkpoint import promised_context
from infra.conversation import Chat
from infra.history import fit
from infra.questions import prompt_of
from infra.thinking import limit_thinking, until_it_circles


def prompt_for(chat: Chat, question: str) -> tuple[list[int], list[dict]]:
    """(the prompt's ids, the messages that it is made of): the newest turns that fit, then the question.

    A base model has not learned to converse: it sees the question alone, as a text to continue. Raises
    UserError for a question that is too long.
    """
    asked = [*chat.messages, {"role": "user", "content": question}]
    if chat.config.model_mode == 0:
        return prompt_of(question, chat.tokenizer, chat.prompt_ids, is_base=True), asked
    context = promised_context(chat.model.config, chat.tokenizer)
    room = context - min(chat.config.max_new_tokens, context // 2)
    return fit(asked, room, partial(chat.prompt_ids, chat.tokenizer))


def reply_ids(chat: Chat, prompt: list[int]) -> Iterator[int]:
    """The ids of a reply, without its end token. Raises InCircles once it repeats itself."""
    answer = chat.answer
    if chat.thinking is not None and chat.config.model_mode:
        answer = limit_thinking(answer, chat.tokenizer, chat.thinking)
    sampling = replace(chat.config, seed=chat.config.seed + chat.replies)  # another when asked again
    steps = answer(chat.model, [prompt], sampling, chat.shared)
    return until_it_circles(id for [id] in steps if id != chat.model.config.eos_token_id)
