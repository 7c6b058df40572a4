"""A conversation shortened to what fits the context."""

from bisect import bisect_left
from collections.abc import Callable

from infra.cli import UserError


def fit(messages: list[dict], room: int, to_prompt: Callable[[list[dict]], list[int]]):
    """(the prompt's ids, the messages kept): the oldest turns are left out until `room` tokens suffice.

    A turn is a user's message with what follows it; a system message stays. Raises UserError when the last
    turn alone is too long. to_prompt: messages -> the ids of the prompt that they make.
    """
    system = [message for message in messages[:1] if message["role"] == "system"]
    turns = messages[len(system) :]
    later = [number for number, message in enumerate(turns) if number and message["role"] == "user"]
    choices = [system + turns[begin:] for begin in (0, *later)]  # ever shorter
    chosen = bisect_left(choices, True, key=lambda kept: len(to_prompt(kept)) <= room)
    if chosen == len(choices):
        expected = f"expected at most {room}: shorten it, or lower --max_new_tokens"
        raise UserError(f"found a message of {len(to_prompt(choices[-1]))} tokens, {expected}")
    return to_prompt(choices[chosen]), choices[chosen]
