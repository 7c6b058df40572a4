"""What a line that begins with / does to a chat."""

import json
import os
import re
import sys
from dataclasses import fields, replace
from pathlib import Path

from infra.cli import UserError, visible
from infra.compare import compare
from infra.conversation import STAGES, Chat, tell
from infra.files import write_text
from infra.inside import describe_probabilities, describe_tokens
from infra.questions import read_conversations
from infra.terminal import is_terminal, print_stream

SET = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_new_tokens", "seed")


def obey(chat: Chat, line: str) -> str | None:
    """Do what a command says; returns a question to ask, if there is one. Raises UserError for a bad one."""
    name, _, argument = line.partition(" ")
    if name not in COMMANDS:
        raise UserError(f"{visible(name)}: unknown, expected one of {' '.join(COMMANDS)}")
    return COMMANDS[name][0](chat, argument.strip())


def show_help(chat: Chat, _: str) -> None:
    for name, (_, usage, meaning) in COMMANDS.items():
        tell(f"{name + ' ' + usage:<18} {meaning}")


def new(chat: Chat, _: str) -> None:
    chat.messages = chat.messages[:1] if has_system(chat) else []
    tell("a new conversation")


def has_system(chat: Chat) -> bool:
    return bool(chat.messages) and chat.messages[0]["role"] == "system"


def undo(chat: Chat, _: str) -> str:
    """Forget the last question and its reply; returns the question."""
    asked = [number for number, message in enumerate(chat.messages) if message["role"] == "user"]
    if not asked:
        raise UserError("nothing was asked yet")
    question = chat.messages[asked[-1]]["content"]
    chat.messages = chat.messages[: asked[-1]]
    return question


def forget(chat: Chat, argument: str) -> None:
    tell(f"forgotten: {undo(chat, argument)}")


def set_system(chat: Chat, text: str) -> None:
    turns = chat.messages[has_system(chat) :]
    chat.messages = [{"role": "system", "content": text}, *turns] if text else turns
    tell("a system message" if text else "the default system message")


def set_value(chat: Chat, argument: str) -> None:
    name, _, value = argument.partition(" ")
    types = {f.name: f.type for f in fields(chat.config) if f.name in SET}
    try:
        chat.config = replace(chat.config, **{name: types[name](value)})
    except KeyError:
        raise UserError(f"/set: expected one of {', '.join(SET)}, found {visible(name)!r}") from None
    except ValueError as error:
        reason = (
            error if isinstance(error, UserError) else f"{name}: found {visible(value)!r}, expected a number"
        )
        raise UserError(f"/set: {reason}") from None
    tell(f"{name} {getattr(chat.config, name)}")


def set_thinking(chat: Chat, argument: str) -> None:
    if argument not in ("on", "off") and not argument.isdecimal():
        raise UserError(f"/think: expected on, off or a number of tokens, found {visible(argument)!r}")
    chat.thinking = {"on": None, "off": 0}[argument] if argument in ("on", "off") else int(argument)
    limit = f"thinks for at most {chat.thinking} tokens" if chat.thinking else "answers at once"
    tell("thinks as long as it likes" if chat.thinking is None else limit)


def set_folding(chat: Chat, argument: str) -> None:
    if argument not in ("on", "off"):
        raise UserError(f"/fold: expected on or off, found {visible(argument)!r}")
    chat.is_folded = argument == "on"
    tell(f"thinking is {'folded to a line' if chat.is_folded else 'shown'}")


def save(chat: Chat, path: str) -> None:
    """A line of JSONL, such as SFT.py learns from and /load reads."""
    if not path or not chat.messages:
        raise UserError("/save: expected a conversation and the name of a file")
    line = json.dumps({"conversations": chat.messages}, ensure_ascii=False)
    write_text(Path(os.path.expanduser(path)), line + "\n")
    tell(f"saved in {path}")


def load(chat: Chat, path: str) -> None:
    if not path:
        raise UserError("/load: expected the name of a file")
    messages = next(read_conversations(Path(os.path.expanduser(path))), None)
    if messages is None:
        raise UserError(f"{path}: expected a conversation, found an empty file")
    chat.messages = messages
    for message in messages:
        if message["role"] == "assistant":
            print_stream(re.split("(</?(?:think|answer)>)", message["content"]), chat.is_folded)
        else:
            print(f"{'> ' * (message['role'] == 'user')}{visible(message['content'])}")


def switch(chat: Chat, mode: str) -> None:
    """Go on with the model of another stage."""
    if mode not in ("0", "1", "2", "3"):
        raise UserError(f"/model: expected 0, 1, 2 or 3, found {visible(mode)!r}")
    chat.config, chat.model, chat.tokenizer = chat.load_stage(chat.config, int(mode))
    chat.shared, chat.reply = {}, []
    tell(f"model {mode}{f', in {chat.config.model_dir}' if chat.config.model_dir else ''}")


def show_stats(chat: Chat, _: str) -> None:
    used = len(chat.prompt_ids(chat.tokenizer, chat.messages)) if chat.messages else 0
    sampling = ", ".join(f"{name} {getattr(chat.config, name)}" for name in SET)
    stage = STAGES[chat.config.model_mode]
    thinking = "without limit" if chat.thinking is None else f"{chat.thinking} tokens at most"
    tell(f"{stage}, {chat.model.num_parameters():,} parameters, {sampling}, thinking {thinking}")
    tell(f"{len(chat.messages)} messages, {used} tokens of {chat.model.config.max_position_embeddings}")


def last_reply(chat: Chat) -> tuple[list[int], list[int]]:
    if not chat.reply:
        raise UserError("nothing was answered yet")
    return chat.prompt, chat.reply


def show_probabilities(chat: Chat, _: str) -> None:
    print(describe_probabilities(chat.model, chat.tokenizer, *last_reply(chat), is_terminal(sys.stdout)))


def show_tokens(chat: Chat, _: str) -> None:
    print(describe_tokens(chat.tokenizer, sum(last_reply(chat), [])))


def ask_all(chat: Chat, question: str) -> None:
    if not question:
        raise UserError("/compare: expected a question")
    compare(chat, question)


def leave(chat: Chat, _: str) -> None:
    chat.has_ended = True


COMMANDS = {
    "/help": (show_help, "", "this list"),
    "/new": (new, "", "a new conversation, under the same system message"),
    "/retry": (undo, "", "ask the last question again"),
    "/undo": (forget, "", "forget the last question and its reply"),
    "/system": (set_system, "TEXT", "another system message; none for the default one"),
    "/set": (set_value, "NAME VALUE", ", ".join(SET)),
    "/think": (set_thinking, "on|off|N", "think, answer at once, or think for at most N tokens"),
    "/fold": (set_folding, "on|off", "fold the thinking to one line"),
    "/save": (save, "FILE", "the conversation, as a line of JSONL"),
    "/load": (load, "FILE", "go on with a saved conversation"),
    "/model": (switch, "0|1|2|3", "go on with another stage's model"),
    "/compare": (ask_all, "TEXT", "ask every stage that there is, side by side"),
    "/probs": (show_probabilities, "", "how likely each token of the last reply was, and its rivals"),
    "/tokens": (show_tokens, "", "the last prompt and reply as the model sees them"),
    "/stats": (show_stats, "", "the model, the sampling, the context in use"),
    "/quit": (leave, "", "end the program"),
}
