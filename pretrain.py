"""python pretrain.py --data_path pretrain.jsonl --epochs 1 --batch_size 80

Stage 1: a new model learns to continue text. Every token is graded.
"""

import torch

from Config import LLMConfig, TrainConfig, parse_args, run_script
from dataset import ChatTokenizer, load_rows
from model import WeakWater, find_checkpoint
from trainer import check_run, train

RECIPE = TrainConfig(stage="pretrain", data_path="pretrain.jsonl", out_dir="out/pretrain", embedding_rate=4.0)  # docs/speedrun.md


def main(argv=None):
    config = parse_args(RECIPE, __doc__, argv)
    if config.init_from:
        model = WeakWater.from_pretrained(find_checkpoint(config.init_from, made_by="pretrain.py"))
    tokenizer = ChatTokenizer(config.tokenizer or config.init_from or "WeakWater_tokenizer")
    if not config.init_from:
        torch.manual_seed(config.seed)
        model = WeakWater(LLMConfig.preset(config.preset, vocab_size=len(tokenizer)))
    check_run(config, model, tokenizer)
    rows, validation = load_rows(config, tokenizer, "text")
    return train(model, rows, config, validation)


if __name__ == "__main__":
    run_script(main)
