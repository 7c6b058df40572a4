"""python pretrain.py --data_path pretrain.jsonl --epochs 1 --batch_size 80

Stage 1: a new model learns to continue text. Every token is in the loss.
"""

import torch

from Config import LLMConfig, TrainConfig
from dataset import load_rows
from generate import example_replies
from infra.checks import check_run
from infra.cli import parse_args, run_script
from infra.tokenizer import ChatTokenizer
from model import WeakWater
from trainer import train

# embedding_rate: docs/speedrun.md
RECIPE = TrainConfig(stage="pretrain", data_path="pretrain.jsonl", out_dir="out/pretrain", embedding_rate=4.0)


def main(argv=None):
    config = parse_args(RECIPE, __doc__, argv)
    model = WeakWater.from_pretrained(config.init_from, config.max_seq_len) if config.init_from else None
    tokenizer = ChatTokenizer(config.tokenizer or config.init_from or "WeakWater_tokenizer")
    if model is None:
        torch.manual_seed(config.seed)
        model = WeakWater(LLMConfig.preset(config.preset, vocab_size=len(tokenizer)))
    check_run(config, model, tokenizer)
    rows, validation = load_rows(config, tokenizer, "text")
    return train(model, rows, config, validation, lambda model: example_replies(model, validation))


if __name__ == "__main__":
    run_script(main)
