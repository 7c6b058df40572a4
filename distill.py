"""python distill.py --data_path r1_1024.jsonl --epochs 2 --batch_size 28

Stage 3: the newest finished one of out/SFT_1024 and out/SFT learns to think before it answers, by SFT on the
replies of a stronger reasoner, `<think>...</think>\\n<answer>...</answer>` (DeepSeek-AI 2025,
arXiv:2501.12948). No teacher runs here. At each validation the model answers a few held-out questions.
"""

from dataclasses import dataclass, replace

from Config import SFT_FOLDERS, TrainConfig
from dataset import load_rows
from generate import example_replies, score
from infra.checkpoint import find_checkpoint
from infra.checks import check_run
from infra.cli import flag, parse_args, run_script
from infra.questions import first_questions
from infra.tokenizer import ChatTokenizer
from model import WeakWater
from trainer import train

PROBED, SHOWN = 32, 256  # held-out questions; tokens of a reply that is logged


@dataclass(frozen=True)
class DistillConfig(TrainConfig):
    init_from: str = flag(
        "", "the folder to start from (default: the newest finished of out/SFT_1024 and out/SFT)"
    )
    tag_weight: float = flag(1.0, "weight of the reasoning tags in the loss", above=0)


RECIPE = DistillConfig(
    stage="distill", data_path="r1_1024.jsonl", out_dir="out/distill",
    epochs=2, batch_size=28, max_seq_len=1024, learning_rate=3e-3, min_lr_ratio=0.02, eval_every=100,
)  # fmt: skip


def main(argv=None):
    config = parse_args(RECIPE, __doc__, argv)
    folders = [config.init_from] if config.init_from else SFT_FOLDERS
    start = find_checkpoint(folders, "run SFT.py first, or pass --init_from")
    config = replace(config, init_from=str(start))
    model = WeakWater.from_pretrained(start, config.max_seq_len)
    tokenizer = ChatTokenizer(config.tokenizer or start)
    check_run(config, model, tokenizer)
    rows, validation = load_rows(config, tokenizer, "conversations")
    questions = first_questions(validation, PROBED)
    probe = lambda model: score(model, tokenizer, questions) | example_replies(model, validation, SHOWN)
    return train(model, rows, config, validation, probe)


if __name__ == "__main__":
    run_script(main)
