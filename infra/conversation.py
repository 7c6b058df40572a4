"""What a chat consists of."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from infra.cli import UserError, visible

STAGES = ("pretrained", "SFT", "distilled", "rewarded")  # by their --model_mode


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


def stages_of(chat: Chat) -> Iterator[Chat]:
    """A chat without turns for each stage that there is and can be read."""
    for mode in range(len(STAGES)):
        config, model, tokenizer = chat.config, chat.model, chat.tokenizer
        try:
            if mode != chat.config.model_mode:
                config, model, tokenizer = chat.load_stage(chat.config, mode)
        except FileNotFoundError:
            continue  # it was not trained
        except UserError as error:
            tell(f"{STAGES[mode]} is left out: {error}")
            continue
        new = {"messages": [], "replies": 0, "shared": {}, "prompt": [], "reply": []}
        yield replace(chat, config=config, model=model, tokenizer=tokenizer, **new)


def tell(text: str) -> None:
    print(visible(text), file=sys.stderr)
