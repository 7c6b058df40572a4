"""python SFT.py --data_path sft_512.jsonl --epochs 1 --batch_size 84

Stage 2: the pretrained model learns to answer. Replies and their ends are graded, questions are not.

Phase 2, with longer conversations, starts from phase 1's result:

    python SFT.py --data_path sft_1024.jsonl --max_seq_len 1024 --batch_size 21 --init_from out/SFT
"""

from Config import TrainConfig, parse_args, run_script
from dataset import ChatTokenizer, load_rows
from model import WeakWater, find_checkpoint
from trainer import check_run, train

RECIPE = TrainConfig(
    stage="SFT", data_path="sft_512.jsonl", init_from="out/pretrain", out_dir="out/SFT", batch_size=84, learning_rate=2e-3
)


def main(argv=None):
    config = parse_args(RECIPE, __doc__, argv)
    model = WeakWater.from_pretrained(find_checkpoint(config.init_from, made_by="pretrain.py"))
    tokenizer = ChatTokenizer(config.tokenizer or config.init_from)
    check_run(config, model, tokenizer)
    rows, validation = load_rows(config, tokenizer, "conversations")
    return train(model, rows, config, validation)


if __name__ == "__main__":
    run_script(main)
