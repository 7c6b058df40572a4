"""python SFT.py --data_path sft_512.jsonl --epochs 1 --batch_size 84

Stage 2: the pretrained model learns to answer. Replies and their ends are in the loss, questions are not.

Phase 2, on longer conversations, starts from phase 1's result:

    python SFT.py --data_path sft_1024.jsonl --max_seq_len 1024 --batch_size 21 \\
        --init_from out/SFT --out_dir out/SFT_1024
"""

from Config import TrainConfig
from dataset import load_rows
from generate import example_replies
from infra.checkpoint import find_checkpoint
from infra.checks import check_run
from infra.cli import parse_args, run_script
from infra.tokenizer import ChatTokenizer
from model import WeakWater
from trainer import train

RECIPE = TrainConfig(
    stage="SFT", data_path="sft_512.jsonl", init_from="out/pretrain", out_dir="out/SFT",
    batch_size=84, learning_rate=2e-3,
)  # fmt: skip


def main(argv=None):
    config = parse_args(RECIPE, __doc__, argv)
    start = find_checkpoint([config.init_from], "run pretrain.py first, or pass --init_from")
    model = WeakWater.from_pretrained(start, config.max_seq_len)
    tokenizer = ChatTokenizer(config.tokenizer or start)
    check_run(config, model, tokenizer)
    rows, validation = load_rows(config, tokenizer, "conversations")
    return train(model, rows, config, validation, lambda model: example_replies(model, validation))


if __name__ == "__main__":
    run_script(main)
