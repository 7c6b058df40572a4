"""python tools/lora.py --init_from out/distill --data_path data/shop.jsonl --out_dir out/shop_lora

Fine-tune with LoRA (Hu et al. 2021, arXiv:2106.09685) by Hugging Face's peft and trl, and merge the result:
the folder is a checkpoint like any other, for eval_model.py, export_gguf.py and SFT.py.

Needs `pip install peft trl`. `SFT.py --init_from` does the same with every weight trained.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from infra.checkpoint import find_checkpoint
from infra.cli import Flags, UserError, flag, parse_args, run_script
from infra.device import pick_device
from infra.questions import read_conversations


@dataclass(frozen=True)
class LoraFlags(Flags):
    init_from: str = flag("out/distill", "the checkpoint's folder")
    data_path: str = flag("data/shop.jsonl", "conversations, JSONL")
    out_dir: str = flag("out/lora", "where the merged checkpoint goes")
    rank: int = flag(16, "of the two matrices beside each layer's", above=0)
    epochs: int = flag(20, "passes over the data", above=0)
    batch_size: int = flag(8, "conversations in a step", above=0)
    max_seq_len: int = flag(256, "tokens of a conversation, at most", above=0)
    learning_rate: float = flag(2e-3, "peak learning rate", above=0)
    seed: int = flag(0, "of order and weights", least=0)


def finetune(config: LoraFlags) -> None:
    """Train on the replies of the conversations, which the chat template marks, and save the merged model."""
    try:
        from datasets import Dataset
        from peft import LoraConfig
        from trl import SFTConfig, SFTTrainer
    except ImportError as error:
        raise UserError(f"{error}: pip install peft trl") from None
    from transformers import AutoModelForCausalLM, AutoTokenizer

    start = find_checkpoint([config.init_from], "expected the folder of a checkpoint, such as out/SFT")
    if start.resolve() == Path(config.out_dir).resolve():
        raise UserError(f"--init_from and --out_dir are both {config.out_dir}: pass another --out_dir")
    conversations = Dataset.from_list([{"messages": turns} for turns in read_conversations(config.data_path)])
    if not len(conversations):
        raise UserError(f"{config.data_path}: expected conversations, found an empty file")
    tokenizer = AutoTokenizer.from_pretrained(start)
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(start),
        processing_class=tokenizer,
        train_dataset=conversations,
        peft_config=LoraConfig(
            r=config.rank, lora_alpha=2 * config.rank, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        args=SFTConfig(
            output_dir=config.out_dir, save_strategy="no", report_to=[], logging_steps=20, seed=config.seed,
            num_train_epochs=config.epochs, per_device_train_batch_size=config.batch_size,
            learning_rate=config.learning_rate, lr_scheduler_type="cosine", max_length=config.max_seq_len,
            assistant_only_loss=True, use_cpu=pick_device("").type == "cpu",
            bf16=False,
        ),
    )  # fmt: skip
    trainer.train()
    merged = trainer.model.merge_and_unload()
    merged.save_pretrained(config.out_dir)
    tokenizer.save_pretrained(config.out_dir)


def main(argv=None):
    config = parse_args(LoraFlags(), __doc__, argv)
    finetune(config)
    print(f"the merged model is in {config.out_dir}: python eval_model.py --model_dir {config.out_dir}")


if __name__ == "__main__":
    run_script(main)
