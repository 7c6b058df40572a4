"""python distill.py --data_path r1_1024.jsonl --epochs 2 --batch_size 28

Stage 3: the SFT model learns to think before it answers, from replies `<think>...</think>\\n<answer>...</answer>` of a
stronger reasoner (DeepSeek-AI 2025, arXiv:2501.12948). The four reasoning tags weigh --tag_weight in the loss.

Each validation lets the model answer a few held-out questions and prints the share of well-formed replies: a model that
does not think cannot go unnoticed. (The classic --learning_rate 1e-6 is one at which it does not learn to.)
"""

from dataclasses import dataclass
from functools import partial

from Config import TrainConfig, flag, parse_args, run_script
from dataset import ChatTokenizer, load_rows
from eval_model import score
from model import WeakWater, find_checkpoint
from trainer import check_run, train

PROBED = 32  # held-out questions


@dataclass(frozen=True)
class DistillConfig(TrainConfig):
    tag_weight: float = flag(1.0, "weight of the reasoning tags in the loss")


RECIPE = DistillConfig(
    stage="distill", data_path="r1_1024.jsonl", init_from="out/SFT", out_dir="out/distill",
    epochs=2, batch_size=28, max_seq_len=1024, learning_rate=3e-3, eval_every=100,
)  # fmt: skip


def main(argv=None):
    config = parse_args(RECIPE, __doc__, argv)
    model = WeakWater.from_pretrained(find_checkpoint(config.init_from, made_by="SFT.py"))
    tokenizer = ChatTokenizer(config.tokenizer or config.init_from)
    check_run(config, model, tokenizer)
    rows, validation = load_rows(config, tokenizer, "conversations")
    questions = validation.prompts(PROBED)
    if not questions:
        raise ValueError(f"{config.val_path or config.data_path}: expected held-out conversations with one reply to probe with, found none")
    probe = partial(score, tokenizer=tokenizer, questions=questions)
    return train(model, rows, config, validation, probe)


if __name__ == "__main__":
    run_script(main)
