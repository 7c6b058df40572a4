"""python eval_model.py --model_mode 2

Talk with the pretrained (0), SFT (1), distilled (2) or rewarded (3) model, or let it answer a file.

    python eval_model.py --model_mode 2 --prompt "小明有345个苹果，又买了278个，一共有多少个？"
    python eval_model.py --model_mode 2 --score r1_test.jsonl
    python eval_model.py --model_mode 2 --web

--score also takes texts, whose loss it tells, and multiple choice: {"question", "choices", "answer"}. Mode 1
takes the newest finished one of out/SFT_1024 and out/SFT. --web opens a page that shows replies from inside.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from Config import DEVICES_HELP, SFT_FOLDERS
from dataset import prompt_ids
from generate import Sampling, judged_replies, stream
from infra.chat import converse
from infra.checkpoint import SAMPLED, check_vocabulary, find_checkpoint, has_checkpoint
from infra.cli import flag, parse_args, run_script
from infra.commands import COMMANDS
from infra.conversation import Chat
from infra.device import pick_device
from infra.scores import report, score_file
from infra.terminal import typed_lines
from infra.tokenizer import ChatTokenizer
from model import WeakWater

MODES = {
    0: ("pretrain", ["out/pretrain"]), 1: ("SFT", SFT_FOLDERS),
    2: ("distill", ["out/distill"]), 3: ("GRPO", ["out/GRPO"]),
}  # fmt: skip
GREETING = "Ctrl-C stops a reply, /help tells what else there is, Ctrl-D ends the program."


@dataclass(frozen=True)
class EvalConfig(Sampling):
    model_mode: int = flag(2, "0 pretrained (base model), 1 SFT, 2 distilled, 3 GRPO", choices=list(MODES))
    model_dir: str = flag("", "the checkpoint's folder (default: the mode's, out/pretrain, ...)")
    prompt: str = flag(None, "answer this and exit")
    score: str = flag("", "answer a JSONL file's questions, print the share of right answers, and exit")
    score_out: str = flag("", "a JSON file for what --score finds, line by line")
    web: bool = flag(False, "the chat as a page in a browser on this machine")
    port: int = flag(8000, "of the page", least=0, most=65535)
    device: str = flag("", DEVICES_HELP)


RECIPE = EvalConfig(**SAMPLED, seed=42)


def load(config: EvalConfig):
    """(model, tokenizer) of the stage that the flags name."""
    stage, folders = MODES[config.model_mode]
    quickstart = "quickstart.py --reward" if stage == "GRPO" else "quickstart.py"
    advice = f"run {stage}.py first, or pass --model_dir (python {quickstart} makes out/quickstart/{stage})"
    if config.model_dir:
        folders, advice = [config.model_dir], "expected the folder of a checkpoint, such as out/SFT"
    folder = find_checkpoint(folders, advice)
    model, tokenizer = WeakWater.from_pretrained(folder), ChatTokenizer(folder)
    check_vocabulary(folder, tokenizer)
    return model.to(pick_device(config.device)), tokenizer


def load_stage(config: EvalConfig, mode: int):
    """(config, model, tokenizer) of another stage, the one beside --model_dir if there is one there."""
    beside = Path(config.model_dir).parent / MODES[mode][0]
    model_dir = str(beside) if config.model_dir and has_checkpoint(beside) else ""
    config = replace(config, model_mode=mode, model_dir=model_dir)
    return config, *load(config)


def open_chat(config: EvalConfig) -> Chat:
    return Chat(*load(config), config, stream, prompt_ids, load_stage)


def main(argv=None):
    config = parse_args(RECIPE, __doc__, argv)
    if config.score:
        return report(*score_file(*load(config), config, prompt_ids, judged_replies), config)
    if config.web:
        from infra.web import serve  # a server is loaded for nothing else

        return serve(lambda: open_chat(config), config.port)
    greeting = GREETING if config.model_mode else f"{GREETING} This model continues texts."
    converse(open_chat(config), typed_lines(greeting, config.prompt, COMMANDS))


if __name__ == "__main__":
    run_script(main)
