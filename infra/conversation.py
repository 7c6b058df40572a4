"""What a chat consists of."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from infra.cli import visible


@dataclass
class Chat:
    """A conversation, and all that a reply is made from."""

    model: object
    tokenizer: object
    config: object  # an EvalConfig
    answer: Callable  # as generate.stream
    prompt_ids: Callable  # dataset's
    load_stage: Callable  # config, mode -> the config, model and tokenizer of that stage
    messages: list[dict] = field(default_factory=list)
    replies: int = 0  # each is sampled with another seed
    thinking: int | None = None  # tokens, at most
    is_folded: bool = False
    has_ended: bool = False
    shared: dict = field(default_factory=dict)  # what replies of one model share
    prompt: list[int] = field(default_factory=list)  # of the last reply
    reply: list[int] = field(default_factory=list)


def tell(text: str) -> None:
    print(visible(text), file=sys.stderr)
