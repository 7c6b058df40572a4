"""python eval_model.py --model_mode 2

Talk with the pretrained (0), SFT (1), distilled (2) or rewarded (3) model, or let it answer a file.

    python eval_model.py --model_mode 2 --prompt "小明有345个苹果，又买了278个，一共有多少个？"
    python eval_model.py --model_mode 2 --score r1_test.jsonl

--score also takes texts, whose loss it tells, and multiple choice: {"question", "choices", "answer"}. Mode 0
has not learned to converse: it continues texts. Mode 1 takes the newest finished one of out/SFT_1024 and
out/SFT. Ctrl-C stops a reply, /new starts a new conversation, Ctrl-D exits.
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial

from Config import DEVICES_HELP, SFT_FOLDERS
from dataset import prompt_ids
from generate import Sampling, judged_replies, stream
from infra.checkpoint import SAMPLED, check_vocabulary, find_checkpoint
from infra.cli import UserError, flag, parse_args, run_script, visible
from infra.device import pick_device
from infra.history import fit
from infra.scores import report, score_file
from infra.terminal import as_text, print_stream, typed_lines
from infra.tokenizer import BOS, ChatTokenizer
from model import WeakWater

MODES = {
    0: ("pretrain", ["out/pretrain"]), 1: ("SFT", SFT_FOLDERS),
    2: ("distill", ["out/distill"]), 3: ("GRPO", ["out/GRPO"]),
}  # fmt: skip
GREETING = "Ctrl-C stops a reply, /new starts a new conversation, Ctrl-D ends the program."


@dataclass(frozen=True)
class EvalConfig(Sampling):
    model_mode: int = flag(2, "0 pretrained, 1 SFT, 2 distilled, 3 GRPO", choices=list(MODES))
    model_dir: str = flag("", "the checkpoint's folder (default: the mode's, out/pretrain, ...)")
    prompt: str = flag(None, "answer this and exit")
    score: str = flag("", "answer a JSONL file's questions, print the share of right answers, and exit")
    score_out: str = flag("", "a JSON file for what --score finds, line by line")
    device: str = flag("", DEVICES_HELP)


RECIPE = EvalConfig(**SAMPLED, seed=42)


def chat(model, tokenizer, questions: Iterable[str], config: EvalConfig, answer=stream) -> None:
    """Answer line after line, each after the turns before it that fit. answer: as `generate.stream`."""
    context = min(tokenizer.max_length, model.config.max_position_embeddings)
    room, end = context - min(config.max_new_tokens, context // 2), model.config.eos_token_id
    messages, shared, to_prompt = [], {}, partial(prompt_ids, tokenizer)
    for number, question in enumerate(questions):
        if question.startswith("/") and config.prompt is None:
            messages = [] if question == "/new" else messages
            unknown = f"{visible(question)}: unknown, expected /new"
            print("a new conversation" if question == "/new" else unknown, file=sys.stderr)
            continue
        try:
            if config.model_mode == 0:
                prompt = [BOS, *tokenizer.encode(question)]
            else:
                prompt, messages = fit([*messages, {"role": "user", "content": question}], room, to_prompt)
            sampling = replace(config, seed=config.seed + number)  # asked again, it may answer otherwise
            ids = (step[0] for step in answer(model, [prompt], sampling, shared) if step[0] != end)
            reply = print_stream(as_text(tokenizer, ids))
        except UserError as error:
            if config.prompt is not None:
                raise
            print(error, file=sys.stderr)
            continue
        # a turn without a reply is forgotten: the next question would follow a question
        messages = [*messages, {"role": "assistant", "content": reply}] if reply.strip() else messages[:-1]


def load(config: EvalConfig):
    """(model, tokenizer) of the stage that the flags name."""
    stage, folders = MODES[config.model_mode]
    advice = f"run {stage}.py first, or pass --model_dir (python quickstart.py makes out/quickstart/{stage})"
    if config.model_dir:
        folders, advice = [config.model_dir], "expected the folder of a checkpoint, such as out/SFT"
    folder = find_checkpoint(folders, advice)
    model, tokenizer = WeakWater.from_pretrained(folder), ChatTokenizer(folder)
    check_vocabulary(folder, tokenizer)
    return model.to(pick_device(config.device)), tokenizer


def main(argv=None):
    config = parse_args(RECIPE, __doc__, argv)
    model, tokenizer = load(config)
    if config.score:
        return report(*score_file(model, tokenizer, config, prompt_ids, judged_replies), config)
    greeting = GREETING if config.model_mode else f"{GREETING} This model continues texts."
    chat(model, tokenizer, typed_lines(greeting, config.prompt), config)


if __name__ == "__main__":
    run_script(main)
