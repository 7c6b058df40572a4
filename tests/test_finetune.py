"""A domain of one's own: the made-up shop, and LoRA by peft and trl from a checkpoint to a checkpoint."""

import json
from collections import Counter

import pytest
import torch
from conftest import tiny_model

import eval_model
from infra.checkpoint import save_model
from infra.cli import UserError
from infra.questions import read_conversations
from infra.scoring import stated_answer
from model import WeakWater
from tools import lora, shop_data
from tools.export_gguf import export_gguf
from tools.shop_data import FACTS, PRODUCTS, shop_conversations


def test_every_fact_is_a_number_learned_in_some_words_and_asked_in_others():
    learned, tested = shop_conversations(seed=0)
    assert (len(learned), len(tested)) == (200, len(PRODUCTS) + len(FACTS))
    answers, asked = (
        Counter(reply["content"] for _, reply in learned),
        {turn["content"] for turn, _ in learned},
    )
    for question, reply in tested:
        assert answers[reply["content"]] >= 4 and question["content"] not in asked
    prices = [stated_answer(reply["content"]) for _, reply in tested[: len(PRODUCTS)]]
    assert prices == list(PRODUCTS.values()) and len(set(prices)) == len(PRODUCTS)


def test_seed_orders_the_conversations():
    assert shop_conversations(3) == shop_conversations(3) != shop_conversations(4)


@pytest.mark.slow
def test_merged_lora_is_a_checkpoint_that_has_learned(tokenizer, tmp_path, capsys):
    pytest.importorskip("peft", reason="needs pip install peft trl")
    pytest.importorskip("trl", reason="needs pip install peft trl")
    shop_data.main([f"--out_dir={tmp_path}"])
    start, out = tmp_path / "start", tmp_path / "out"
    save_model(tiny_model(), start, tokenizer, context=128)
    shop = list(read_conversations(tmp_path / "shop.jsonl"))[:16]
    lines = (json.dumps({"conversations": turns}, ensure_ascii=False) for turns in shop)
    (tmp_path / "few.jsonl").write_text("\n".join(lines), encoding="utf-8")
    flags = "--epochs 30 --batch_size 4 --max_seq_len 128 --learning_rate 1e-2"
    lora.main(
        [f"--init_from={start}", f"--data_path={tmp_path / 'few.jsonl'}", f"--out_dir={out}", *flags.split()]
    )
    before, after = WeakWater.from_pretrained(start).state_dict(), WeakWater.from_pretrained(out).state_dict()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed and all("_proj" in name for name in changed)
    capsys.readouterr()
    eval_model.main([f"--model_dir={out}", f"--score={tmp_path / 'few.jsonl'}", "--device=cpu"])
    right = float(capsys.readouterr().out.split("reasoning_accuracy ")[1].split("%")[0])
    assert right > 50
    assert export_gguf(out, tmp_path / "model.gguf").is_file()


def test_lora_from_what_is_no_checkpoint_or_into_it_is_refused(tokenizer, tmp_path):
    pytest.importorskip("trl", reason="needs pip install peft trl")
    with pytest.raises(FileNotFoundError, match="none not found: expected the folder of a checkpoint"):
        lora.finetune(lora.LoraFlags(init_from=str(tmp_path / "none")))
    save_model(tiny_model(), tmp_path, tokenizer, context=128)
    with pytest.raises(UserError, match="--init_from and --out_dir are both"):
        lora.finetune(lora.LoraFlags(init_from=str(tmp_path), out_dir=str(tmp_path)))
