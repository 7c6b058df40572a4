"""A reply's thinking, cut short; a reply that goes in circles."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from infra.tokenizer import TAGS

OPENED, CLOSED, ANSWER = TAGS["<think>"], TAGS["</think>"], TAGS["<answer>"]
CIRCLE, LONGEST_PERIOD = 96, 32  # tokens: three rounds at least
IN_CIRCLES = " [stopped: it repeats itself]"


class InCircles(Exception):
    """A reply says the same again and again."""


def limit_thinking(answer: Callable, tokenizer, most: int) -> Callable:
    """An `answer`, as `generate.stream` for one prompt, whose thinking is closed after `most` tokens.

    With 0 it is empty, whether or not the model would have thought.
    """
    closing = [CLOSED, *tokenizer.encode("\n"), ANSWER]

    def limited(model, prompts, sampling, shared) -> Iterator[list[int]]:
        ids, forced = [], closing if most else [OPENED, *closing]
        for step in answer(model, prompts, sampling, shared) if most else []:
            yield step
            ids.append(step[0])
            if ids[0] == OPENED and len(ids) > most and CLOSED not in ids:
                break
        else:
            if most:
                return
        room = min(sampling.max_new_tokens, model.config.max_position_embeddings - len(prompts[0])) - len(ids)
        yield from ([id] for id in forced[:room])
        if (left := room - len(forced)) > 0:
            rest = replace(sampling, max_new_tokens=left)
            yield from answer(model, [prompts[0] + ids + forced], rest, shared)

    return limited


def until_it_circles(ids: Iterable[int]) -> Iterator[int]:
    """The ids as they come. Raises InCircles after CIRCLE of them that repeat a few."""
    tail = []
    for id in ids:
        yield id
        tail = [*tail[1 - CIRCLE :], id]
        if len(tail) == CIRCLE and repeats(tail):
            raise InCircles


def repeats(ids: list[int]) -> bool:
    """Whether the ids are one period again and again, of LONGEST_PERIOD at most."""
    periods = (n for n in range(1, LONGEST_PERIOD + 1) if ids[-1] == ids[-1 - n])  # most are none at once
    return any(ids[n:] == ids[:-n] for n in periods)
