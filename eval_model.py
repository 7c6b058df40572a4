"""python eval_model.py --model_mode 2

Talk with the pretrained (0), the SFT (1) or the distilled model (2), or let it answer a file of questions.

    python eval_model.py --model_mode 2 --prompt "小明有345个苹果，又买了278个，一共有多少个？"
    python eval_model.py --model_mode 2 --score r1_test.jsonl

Mode 0 has not learned to converse: it continues the text that it is given. Ctrl-C stops a reply, /new starts a new
conversation, Ctrl-D ends the program.
"""

import argparse
import re
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from Config import DEVICES_HELP, run_script
from dataset import BOS, ChatTokenizer, check_file, check_vocabulary, numbered_lines, parse_line
from generate import Sampling, as_text, generate, stream
from model import WeakWater, pick_device

MODES = {0: ("out/pretrain", "pretrain.py"), 1: ("out/SFT", "SFT.py"), 2: ("out/distill", "distill.py")}
REPLY = re.compile(r"<think>(.+?)</think>\s*<answer>(.+?)</answer>", re.DOTALL)
ANSWER_MARK = re.compile(r"(?:答案|[Aa]nswer)(?:是|为| is|：|:)\s*")
NUMBER = re.compile(r"(?:(?<![\d.)）])-)?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+|/0*[1-9]\d*)?%?")  # a minus after a number subtracts
CHOICE = re.compile(r"(?<![A-Za-z])[A-H](?=\s*(?:$|[(（).,:：，。、]))")
DIM, PLAIN = "\033[2m", "\033[0m"


# ---- scoring ----


def is_well_formed(reply):
    """True for `<think>...</think><answer>...</answer>`, each once, neither empty, nothing outside."""
    found = REPLY.fullmatch(reply.strip())
    return bool(found and found[1].strip() and found[2].strip()) and all(reply.count(tag) == 1 for tag in ("<think>", "</think>", "<answer>", "</answer>"))


def answer_of(reply):
    """What is judged of a reply: its <answer>, there only what follows 答案： or "answer is", without the last full stop.

    "<think>3+4=7</think><answer>3+4=7。答案：7</answer>" -> "7";  "小红多75本。" -> "小红多75本"
    """
    found = REPLY.search(reply)
    return ANSWER_MARK.split(found[2] if found else reply)[-1].strip().rstrip("。.！!")


def number_value(text):
    """"1,200" -> 1200, "12.5%" -> 1/8, "-3/4" -> -3/4, as Fractions."""
    return Fraction(text.replace(",", "").rstrip("%")) / (100 if text.endswith("%") else 1)


def is_right(reply, expected):
    """True if a reply comes to the same as the expected one.

    Where that answers with a number, the reply's must be equal: the only one after its 答案：, or else its last. Where it
    answers with a choice (A, B, ...), the letters must be equal; where with anything else, the words.
    """
    is_marked = bool(ANSWER_MARK.search(reply))
    expected, found = answer_of(expected), answer_of(reply)
    if NUMBER.fullmatch(expected):
        values = [number_value(number) for number in NUMBER.findall(found)]
        return set(values if is_marked else values[-1:]) == {number_value(expected)}
    if choice := CHOICE.match(expected):
        chosen = CHOICE.search(found)
        return bool(chosen) and chosen[0] == choice[0]
    return found == expected


def judged_replies(model, tokenizer, questions, max_new_tokens=512, shows_progress=False):
    """Greedy replies to questions, a list of (prompt ids, expected reply), each with its verdicts.

    Returns [{"reply", "is_right": see there, "is_well_formed": in R1 format}, ...] in the order of the questions.
    """
    prompts, sampling = [prompt for prompt, _ in questions], Sampling(max_new_tokens=max_new_tokens)
    replies = map(tokenizer.decode, generate(model, prompts, sampling, shows_progress=shows_progress))
    return [{"reply": reply, "is_right": is_right(reply, expected), "is_well_formed": is_well_formed(reply)} for reply, (_, expected) in zip(replies, questions)]


def shares(judged):
    """{"reasoning_accuracy": share of right answers, "well_formed": share of replies in R1 format} of judged replies."""
    return {
        "reasoning_accuracy": sum(one["is_right"] for one in judged) / len(judged),
        "well_formed": sum(one["is_well_formed"] for one in judged) / len(judged),
    }


def score(model, tokenizer, questions, max_new_tokens=512):
    """The `shares` of the greedy replies to questions, a list of (prompt ids, expected reply)."""
    return shares(judged_replies(model, tokenizer, questions, max_new_tokens))


def read_questions(tokenizer, path):
    """[(prompt ids, expected reply), ...]: what the conversations of a JSONL file ask first. Raises ValueError at a bad line."""
    questions = []
    for number, line in numbered_lines(check_file(path)):
        try:
            messages = parse_line(line, "conversations")
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from None
        first_reply = [message["role"] for message in messages].index("assistant")
        questions.append((tokenizer.prompt_ids(messages[:first_reply]), messages[first_reply]["content"]))
    if not questions:
        raise ValueError(f"{path}: expected conversations, found an empty file")
    return questions


def score_file(model, tokenizer, path, max_new_tokens=512):
    """{"questions", "reasoning_accuracy", "well_formed"}: the `shares` of the greedy replies to the questions of a file."""
    questions = read_questions(tokenizer, path)
    return {"questions": len(questions), **shares(judged_replies(model, tokenizer, questions, max_new_tokens, shows_progress=True))}


# ---- chat ----


def fit(tokenizer, messages, room):
    """The prompt's ids for a conversation whose oldest turns are left out until it has at most `room` tokens.

    A turn is a user's message with what follows it; a system message stays. Returns (ids, the messages that were kept).
    Raises ValueError when the last turn alone is too long.
    """
    system = [message for message in messages[:1] if message["role"] == "system"]
    turns = messages[len(system) :]
    while len(ids := tokenizer.prompt_ids(system + turns)) > room:
        later = [number for number, message in enumerate(turns) if number and message["role"] == "user"]
        if not later:
            raise ValueError(f"found a message of {len(ids)} tokens, expected at most {room}: shorten it, or lower --max_new_tokens")
        turns = turns[later[0] :]
    return ids, system + turns


def reply_to(model, tokenizer, prompt, sampling, write, shared):
    """Stream one reply through `write(text)`; returns it whole. Ctrl-C ends the reply where it is. shared: a dict, see `stream`."""
    end = model.config.eos_token_id
    parts = []
    try:
        ids = (ids[0] for ids in stream(model, [prompt], sampling, shared) if ids[0] != end)
        for text in as_text(tokenizer, ids):
            parts.append(text)
            write(text)
    except KeyboardInterrupt:
        write(" [stopped]")
    return "".join(parts)


def printer():
    """A `write` for the screen; on a terminal the reasoning is dim."""
    is_terminal = sys.stdout.isatty()

    def write(text):
        if is_terminal:
            text = text.replace("<think>", DIM + "<think>").replace("</think>", "</think>" + PLAIN)
        print(text, end="", flush=True)

    return write


def typed_lines(is_terminal):
    """The lines that a person types or a pipe brings, without blank ones."""
    while True:
        try:
            line = input("> " if is_terminal else "").strip()
        except KeyboardInterrupt:
            print("\n(Ctrl-D ends the program)")
            continue
        except EOFError:
            return
        if line:
            yield line.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def chat(model, tokenizer, args, sampling):
    """Answer line after line; each answer sees the turns before it, as far as they fit."""
    is_terminal = sys.stdin.isatty()
    context = min(tokenizer.max_length, model.config.max_position_embeddings)
    room = context - min(sampling.max_new_tokens, context // 2)
    messages, shared = [], {}
    if is_terminal:
        print("Ctrl-C stops a reply, /new starts a new conversation, Ctrl-D ends the program." + ("" if args.model_mode else " This model continues texts."))
    prompts = [args.prompt.encode("utf-8", "replace").decode()] if args.prompt is not None else typed_lines(is_terminal)
    for number, question in enumerate(prompts):
        if question.startswith("/") and args.prompt is None:
            messages = [] if question == "/new" else messages
            print("a new conversation" if question == "/new" else f"{question}: unknown, expected /new", file=sys.stderr)
            continue
        try:
            if args.model_mode == 0:
                prompt = [BOS, *tokenizer.encode(question)]
            else:
                prompt, messages = fit(tokenizer, [*messages, {"role": "user", "content": question}], room)
            # asked again, a question may get another reply
            reply = reply_to(model, tokenizer, prompt, replace(sampling, seed=sampling.seed + number), printer(), shared)
        except ValueError as error:
            if args.prompt is not None:
                raise
            print(error, file=sys.stderr)
            continue
        print((PLAIN if sys.stdout.isatty() else "") + ("" if reply.strip() else "(an empty reply)"))
        # a turn without a reply is forgotten: the next question would follow a question
        messages = [*messages, {"role": "assistant", "content": reply}] if reply.strip() else messages[:-1]


def load(args):
    """(model, tokenizer) of the stage that the flags name."""
    folder, script = MODES[args.model_mode]
    folder = Path(args.model_dir or folder)
    if not folder.is_dir():
        makes = f"run {script} first, or pass --model_dir (python quickstart.py makes out/quickstart/{folder.name})"
        raise FileNotFoundError(f"{folder} not found: {'expected the folder of a checkpoint, such as out/SFT' if args.model_dir else makes}")
    model, tokenizer = WeakWater.from_pretrained(folder), ChatTokenizer(folder)
    check_vocabulary(folder, tokenizer)
    return model.to(pick_device(args.device)), tokenizer


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_mode", type=int, choices=list(MODES), default=2, help="0 pretrained, 1 SFT, 2 distilled (default: 2)")
    parser.add_argument("--model_dir", default="", help="the checkpoint's folder (default: the mode's, out/pretrain, out/SFT or out/distill)")
    parser.add_argument("--prompt", help="answer this and leave")
    parser.add_argument("--score", metavar="FILE", help="answer the questions of a JSONL file, print the share of right final answers, and leave")
    parser.add_argument("--temperature", type=float, default=0.7, help="0 takes the likeliest token (default: 0.7)")
    parser.add_argument("--top_p", type=float, default=0.9, help="keep the likeliest tokens that add up to so much (default: 0.9)")
    parser.add_argument("--top_k", type=int, default=0, help="keep so many of the likeliest tokens (default: 0, all)")
    parser.add_argument("--max_new_tokens", type=int, default=512, help="tokens in a reply, at most (default: 512)")
    parser.add_argument("--seed", type=int, default=42, help="of the sampling (default: 42)")
    parser.add_argument("--device", default="", help=DEVICES_HELP)
    args = parser.parse_args(argv)
    sampling = Sampling(args.temperature, args.top_p, args.top_k, args.max_new_tokens, args.seed)
    model, tokenizer = load(args)
    if args.score:
        for name, value in score_file(model, tokenizer, args.score, args.max_new_tokens).items():
            print(f"{name} {value:.1%}" if isinstance(value, float) else f"{name} {value}")
    else:
        chat(model, tokenizer, args, sampling)


if __name__ == "__main__":
    run_script(main)
