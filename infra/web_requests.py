"""What a browser sent, checked: nothing of it is trusted."""

import json
from dataclasses import fields, replace

from starlette.exceptions import HTTPException
from starlette.requests import Request

from infra.cli import UserError
from infra.commands import SET
from infra.conversation import Chat
from infra.jsonl import check_messages, describe

MOST_BYTES = 2**18  # of a request: some fifty times the text that fits a context


async def body_of(request: Request) -> dict:
    """The JSON object in a request.

    A request that is too long is read to its end all the same: otherwise its sender would see no answer.
    """
    size, parts = 0, []
    async for part in request.stream():
        size += len(part)
        if size <= MOST_BYTES:
            parts.append(part)
    if size > MOST_BYTES:
        raise HTTPException(413, f"found a request of {size:,} bytes, expected at most {MOST_BYTES:,}")
    try:
        body = json.loads(b"".join(parts))
    except (ValueError, RecursionError) as error:
        raise UserError(f"expected JSON ({error})") from None
    if not isinstance(body, dict):
        raise UserError(f"expected a JSON object, found {describe(body)}")
    return body


def stage_of(chats: dict[int, Chat], body: dict) -> Chat:
    """The chat with the stage that a request names by its "mode"."""
    mode = body.get("mode")
    if type(mode) is not int or mode not in chats:
        raise UserError(f'expected one of {", ".join(map(str, chats))} under "mode", found {describe(mode)}')
    return chats[mode]


def chat_of(chats: dict[int, Chat], body: dict) -> tuple[Chat, str]:
    """(a chat with the turns, sampling and thinking of a request; the question that it ends with)."""
    chat, messages, thinking = stage_of(chats, body), body.get("messages"), body.get("thinking")
    if not isinstance(messages, list):
        raise UserError(f'expected a list under "messages", found {describe(messages)}')
    check_messages(messages)
    if messages[-1]["role"] != "user":
        raise UserError("expected a question as the last message")
    if thinking is not None and not (type(thinking) is int and thinking >= 0):
        raise UserError(f'expected a number of tokens under "thinking", found {json.dumps(thinking)[:40]}')
    config = replace(chat.config, **sampling_of(chat.config, body.get("sampling", {})))
    turns = [{name: message[name] for name in ("role", "content")} for message in messages[:-1]]
    return replace(chat, config=config, thinking=thinking, messages=turns), messages[-1]["content"]


def sampling_of(config, values) -> dict:
    """The values of SET that a request changes, each in its flag's type."""
    if not isinstance(values, dict) or not values.keys() <= set(SET):
        raise UserError(f'expected some of {", ".join(SET)} under "sampling"')
    types, chosen = {f.name: f.type for f in fields(config)}, {}
    for name, value in values.items():
        if not (type(value) is types[name] or types[name] is float and type(value) is int):
            kind = "a whole number" if types[name] is int else "a number"
            raise UserError(f'expected {kind} under "{name}", found {json.dumps(value)[:40]}')
        chosen[name] = value
    return chosen


def reply_of(chat: Chat, body: dict) -> tuple[list[int], list[int]]:
    """(the ids of a prompt, the ids of its reply) that a request asks to look into."""
    vocabulary, most = len(chat.tokenizer), chat.model.config.max_position_embeddings
    prompt, reply = body.get("prompt"), body.get("reply")
    for name, ids in (("prompt", prompt), ("reply", reply)):
        is_list = isinstance(ids, list) and len(ids) > 0
        if not is_list or not all(type(id) is int and 0 <= id < vocabulary for id in ids):
            raise UserError(f'expected token ids below {vocabulary} under "{name}"')
    if len(prompt) + len(reply) > most:
        raise UserError(f"found {len(prompt) + len(reply)} tokens, expected at most {most}")
    return prompt, reply


def position_of(reply: list[int], body: dict) -> int:
    """The number of a token of a reply, from 0."""
    position = body.get("position")
    if type(position) is not int or not 0 <= position < len(reply):
        raise UserError(f'expected a number below {len(reply)} under "position", found {describe(position)}')
    return position
