"""The side doors: benchmarks, experiments and the export to GGUF."""

import json
import lzma
import math
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import conversation, tiny_model, write_jsonl

import distill
import pretrain
from dataset import ChatTokenizer
from model import rope_tables, rotate
from quickstart import Report
from tools.export_gguf import export_gguf, interleave
from tools.full_run import GRADING, as_markdown, command_line, flags_of, gather, hold_out, interval, plan, signs_test, stages, time_for, train_stage, typical, word_problems
from tools.full_run import main as full_run
from tools.gpu_report import captured_against_plain
from tools.speedrun import chunks, newton_schulz, polar_express, table, window
from trainer import Diverged

ROOT = Path(__file__).resolve().parents[1]


def run_tool(name, *flags, cwd):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, str(ROOT / "tools" / name), *map(str, flags)], cwd=cwd, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


# ---- GGUF ----


def test_interleaved_queries_and_keys_have_the_same_products_under_rotation_of_neighbours():
    heads, D, T = 3, 8, 5
    q, k = torch.randn(heads * D, 12), torch.randn(heads * D, 12)
    x = torch.randn(T, 12)
    cos, sin = rope_tables(T, D, 1e4)

    def turn_halves(weight):
        return rotate((x @ weight.T).view(T, heads, D).transpose(0, 1)[None], cos, sin)[0]

    def turn_neighbours(weight):
        pairs = torch.view_as_complex((x @ torch.from_numpy(interleave(weight.numpy(), heads)).T).view(T, heads, D // 2, 2))
        angles = torch.arange(T)[:, None, None] * torch.tensor([1e4 ** (-2 * i / D) for i in range(D // 2)])
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(2).transpose(0, 1)

    expected = turn_halves(q) @ turn_halves(k).mT
    torch.testing.assert_close(turn_neighbours(q) @ turn_neighbours(k).mT, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("half", [False, True])
def test_gguf_holds_every_tensor_the_vocabulary_and_the_chat_template(half, tokenizer, tmp_path):
    from gguf import GGUFReader

    model = tiny_model()
    model.save_pretrained(tmp_path, tokenizer.vocabulary_hash)
    tokenizer.save_pretrained(tmp_path, 128)
    reader = GGUFReader(export_gguf(tmp_path, tmp_path / "model.gguf", half))
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "llama" and fields["tokenizer.ggml.pre"] == "qwen2"
    assert (fields["llama.attention.head_count"], fields["llama.attention.head_count_kv"], fields["llama.rope.dimension_count"]) == (6, 2, 8)
    assert fields["tokenizer.ggml.tokens"][:4] == ["<unk>", "<s>", "</s>", "<think>"] and len(fields["tokenizer.ggml.tokens"]) == 400
    assert fields["tokenizer.ggml.token_type"][:4] == [3, 3, 3, 4] and "messages" in fields["tokenizer.chat_template"]
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert len(tensors) == 1 + 3 * 9 + 1  # the embedding, which is also the head, the layers, the last norm
    down = model.model.layers[1].mlp.down_proj.weight.detach().numpy()
    found = tensors["blk.1.ffn_down.weight"].data.reshape(down.shape)
    assert found.dtype == (np.float16 if half else np.float32) and np.allclose(found, down, atol=1e-3 if half else 0)
    key = model.model.layers[2].self_attn.k_proj.weight.detach().numpy()
    found = tensors["blk.2.attn_k.weight"].data.reshape(key.shape)
    assert np.allclose(found[1], key[4], atol=1e-3) and np.allclose(found[8 + 3], key[8 + 5], atol=1e-3)


def test_llama_cpp_computes_the_same_logits(tokenizer, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp")
    model = tiny_model()
    model.save_pretrained(tmp_path, tokenizer.vocabulary_hash)
    tokenizer.save_pretrained(tmp_path, 128)
    llm = llama_cpp.Llama(str(export_gguf(tmp_path, tmp_path / "model.gguf")), n_ctx=128, logits_all=True, verbose=False, n_threads=1)
    ids = tokenizer.prompt_ids([{"role": "user", "content": "3加4等于几？ Hello"}])
    llm.eval(ids)
    with torch.no_grad():
        expected = model(torch.tensor([ids]))[0]
    torch.testing.assert_close(torch.tensor(np.array(llm.scores[: len(ids)])), expected, rtol=0, atol=0.02)  # its cache is float16
    assert llm.tokenize("3加4等于几？ Hello".encode(), add_bos=False, special=False) == tokenizer.encode("3加4等于几？ Hello")


# ---- benchmarks and experiments ----


@pytest.mark.slow
def test_benchmark_writes_medians_and_ratios_of_the_same_round(data, tmp_path):
    flags = ["--data_path", data["sft"], "--vocab_size", 500, "--preset", "tiny", "--batch_size", 1, "--steps", 1, "--rounds", 1]
    run_tool("benchmark.py", "train", *flags, "--only", "weakwater", "transformers eager padded", cwd=tmp_path)
    found = json.loads((tmp_path / "benchmarks/train_cpu.json").read_text())["candidates"]
    ours, padded = found["weakwater"], found["transformers eager padded"]
    assert ours["padding"] < 0.1 < 0.5 < padded["padding"] < 1
    assert ours["useful_tokens_per_second"] == pytest.approx(ours["positions_per_second"] * (1 - ours["padding"]))
    speeds = [candidate["useful_tokens_per_second"] for candidate in (ours, padded)]
    assert padded["ratio_of_weakwater"]["useful_tokens_per_second"] == pytest.approx(speeds[0] / speeds[1])


def test_benchmark_counts_the_tokens_of_a_file(data, tmp_path):
    run_tool("benchmark.py", "tokenize", "--data_path", data["pretrain"], "--vocab_size", 500, "--rounds", 1, cwd=tmp_path)
    found = json.loads((tmp_path / "benchmarks/tokenize_cpu.json").read_text())["candidates"]["weakwater"]
    assert found["documents"] == len(data["pretrain"].read_bytes().splitlines()) and 1 < found["bytes_per_token"] < 10


@pytest.mark.slow
def test_speedrun_trains_on_equally_many_tokens_whatever_the_shape_of_a_step(data, tmp_path):
    run_tool("../train_tokenizer.py", "--data_path", data["pretrain"], "--vocab_size", 500, cwd=tmp_path)
    names = ["baseline", "rows of 128, then 512", "batch 4 rows, then 8, then 16", "NorMuon"]
    flags = ["--data_path", data["pretrain"], "--val_path", data["pretrain_val"], "--tokens", 2 * 8 * 512, "--change", *names]
    run_tool("speedrun.py", *flags, cwd=tmp_path)
    results = [json.loads(line) for line in (tmp_path / "out/speedrun.jsonl").read_text().splitlines()]
    assert [result["change"] for result in results] == names
    assert len({result["val_loss"] for result in results}) == 4 and all(4 < result["val_loss"] < 7 for result in results)


def test_speedrun_table_does_not_mix_lengths(tmp_path):
    (tmp_path / "results.jsonl").write_text("\n".join(json.dumps({"change": "baseline", "seed": 1, "val_loss": 5.0, "tokens": tokens}) for tokens in (10, 20)))
    with pytest.raises(ValueError, match="runs with tokens"):
        table(tmp_path / "results.jsonl")


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("speedrun*.jsonl")), ids=lambda path: path.stem)
def test_documented_speedrun_tables_are_those_of_their_files(path):
    told = (ROOT / "docs/speedrun.md").read_text(encoding="utf-8")
    rows = table(path).splitlines()[2:]
    assert len(rows) >= 2
    for row in rows if "long" not in path.stem else []:
        assert row in told, row


def test_speedrun_table_compares_with_the_baseline_of_the_same_seeds(tmp_path):
    results = [("baseline", 1, 5.0), ("baseline", 2, 6.0), ("a", 1, 4.5), ("a", 2, 5.9), ("b", 2, 6.25)]
    lines = [json.dumps({"change": change, "seed": seed, "val_loss": loss}) for change, seed, loss in results]
    (tmp_path / "results.jsonl").write_text("\n".join(lines))
    assert [line.split("|")[1:3] for line in table(tmp_path / "results.jsonl").splitlines()[2:]] == [
        [" a ", " -0.300 "], [" baseline ", " +0.000 "], [" b ", " +0.250 "],
    ]  # fmt: skip


@pytest.mark.parametrize("orthogonalize, largest_error", [(newton_schulz, 0.35), (polar_express, 0.2)])
def test_orthogonalized_matrices_have_singular_values_near_one(orthogonalize, largest_error):
    matrices = torch.randn(2, 24, 40, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(matrices, torch.float32))
    assert math.isclose(float(values.mean()), 1, abs_tol=0.2) and float((values - 1).abs().max()) < largest_error


def test_masks_that_look_back_less_far_at_first_are_those_of_their_formulas():
    document_ids = torch.tensor([[1, 1, 1, 1, 1, 2, 2, 2]])
    for query in range(8):
        for key in range(8):
            visible = key <= query and document_ids[0, query] == document_ids[0, key]
            assert window(3)(document_ids, 0.4)[0, 0, query, key] == (visible and query - key < 3)
            assert chunks(3)(document_ids, 0.4)[0, 0, query, key] == (visible and query // 3 == key // 3)
            assert window(3)(document_ids, 0.5)[0, 0, query, key] == chunks(3)(document_ids, 0.5)[0, 0, query, key] == visible


def test_decoding_is_checked_against_plain_decoding_without_a_card_too():
    model = tiny_model()
    found = captured_against_plain(SimpleNamespace(model=lambda: model, config=model.config, device=torch.device("cpu")))
    assert found["largest_logit_difference"] == 0 < found["largest_logit"]


# ---- the full run ----


def test_interval_is_the_one_worked_out_by_hand():
    # 50 of 100: the middle stays, half = 1.96 sqrt(0.25 / 100 + 1.96^2 / 40000) / (1 + 1.96^2 / 100) = 0.09617
    assert interval(0.5, 100) == [0.4038, 0.5962]
    assert interval(0.0, 10)[0] == 0 and interval(1.0, 10)[1] == 1


def test_signs_test_is_the_one_worked_out_by_hand():
    assert signs_test(5, 1) == signs_test(1, 5) == 2 * (1 + 6) / 2**6  # both tails of 6 coins: none or one
    assert signs_test(3, 3) == signs_test(0, 0) == 1


def test_typical_leaves_out_what_compiled_and_averages_the_end():
    lines = [{"loss": 9.0, "tokens_per_second": 1.0, "mfu": 0.01}, *({"loss": 5.0 + step, "tokens_per_second": 100.0 + step, "mfu": 0.3} for step in range(7))]
    lines.insert(4, {"val_loss": 2.0})
    assert typical([*lines, {"loss": None, "tokens_per_second": 7.0}]) == {"loss": 9.0, "tokens_per_second": 103.0, "mfu": 0.3}  # of 7 to 11
    assert typical(lines[:1]) == {"loss": 9.0, "tokens_per_second": 1.0, "mfu": 0.01}


def test_a_distillation_that_diverges_is_told_of_and_left(monkeypatch, tmp_path):
    def diverge(argv):
        raise Diverged(f"step 3 at {argv[-1]}")

    args, (first, _, _, distillation, _) = planning(), stages([3e-3])
    for script in (pretrain, distill):
        monkeypatch.setattr(script, "main", diverge)
    assert train_stage(distillation, {"flags": {"max_steps": 9}}, tmp_path, args) == {"diverged": "step 3 at --max_steps=9"}
    with pytest.raises(Diverged):  # all the other stages go on from it
        train_stage(first, {"flags": {"max_steps": 9}}, tmp_path, args)


def test_tables_tell_what_was_measured():
    chosen = stages([3e-3, 1e9])
    stage = {"step": 9, "tokens": 2_500_000, "train_seconds": 90, "tokens_per_second": 31234.5, "mfu": 0.25, "loss": 2.0, "val_loss": 2.5, "val_ppl": 12.18, "val_bpb": 0.9, "parameters": 12345}
    graded = {"questions": 40, "reasoning_accuracy": 0.05, "right": [3, 4], "interval": [0.01, 0.17], "well_formed": 0.5, "ordinary_loss": 3.25, "replies": {}}
    parts = {
        "settings": {"device": "a later card", "preset": "tiny", "torch": "2", "dtype": "bfloat16"}, "commands": ["python a"], "seconds": 600.0,
        "tokens": {"word_problems": 40, "constant_answer": "7", "constant_right": 3}, "pretrain": {**stage, "device": "a card"}, "SFT_1024": stage,
        "distill_1e+09": {"diverged": "step 3"}, "distill_0.003": {**stage, "device": "another"}, "grade SFT_1024": graded,
        "grade distill_0.003": {**graded, "against": {"model": "SFT_1024", "won": 5, "lost": 1, "p": 0.21875}},
    }  # fmt: skip
    told = as_markdown(parts, chosen)
    assert "12,345 parameters; a card, then another, torch 2, bfloat16; 10 minutes in all" in told
    assert "\n| pretrain | 9 | 2.5M | 1.5 | 31,234 | 25.0% | 2.000 | 2.500 | 12.18 | 0.900 |\n" in told
    assert "\n| distill_1e+09 | diverged |" in told and told.count("distill_1e+09") == 1
    assert "\n| distill_0.003 | 2 of 40, 5.0% | 1.0% to 17.0% | +5 -1 (p = 0.22) | 50.0% | 3.250 |\n| always 7 | 3 of 40, 7.5% |" in told
    lines = [line.count("|") for line in told.splitlines() if line.startswith("|")]
    assert lines == [11] * 6 + [7] * 5  # each table's rows are as wide as its head


def test_word_problems_ask_in_chinese_for_a_number(tokenizer, tmp_path):
    reply = "<think>想</think>\n<answer>{}</answer>".format
    kept = {"conversations": conversation("3加4等于几？", reply("3+4=7。答案：7"))}
    others = [("What is 3 + 4?", reply("7")), ("选哪个？", reply("A")), ("一共多少？", reply("一共有7个。")), ("1加1等于几？", reply("2")), ("几" * 200, reply("7"))]
    path = write_jsonl(tmp_path / "a.jsonl", [*({"conversations": conversation(*other)} for other in others), kept])
    trained_on = write_jsonl(tmp_path / "b.jsonl", [{"conversations": conversation("你好", "你好", "1加1等于几？", "2")}])
    (tmp_path / "tokenizer").mkdir()
    tokenizer.save_pretrained(tmp_path / "tokenizer", 512)  # a prompt may have half of it
    assert word_problems(path, tmp_path / "c.jsonl", ChatTokenizer(tmp_path / "tokenizer"), [trained_on]) == {"word_problems": 1, "constant_answer": "7", "constant_right": 1}
    assert json.loads((tmp_path / "c.jsonl").read_text(encoding="utf-8")) == kept


def test_full_run_can_be_repeated_when_bad_lines_are_mended(data, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name, source in {"pretrain": "pretrain", "sft_512": "sft", "sft_1024": "sft", "r1_1024": "r1"}.items():
        shutil.copy(data[source], folder / f"{name}.jsonl")
    whole = (folder / "r1_1024.jsonl").read_bytes()
    (folder / "r1_1024.jsonl").write_bytes(whole[:-20])
    flags = ["--data_dir", str(folder), "--out_dir", str(tmp_path / "out"), "--vocab_size", "500", "--preset", "tiny", "--last", "none"]
    with pytest.raises(ValueError, match="--last 'none' is unknown"):
        full_run(flags)
    flags = [*flags[:-2], "--pretrain_tokens", "2048", "--step_tokens", "1024", "--last", "pretrain"]
    with pytest.raises(ValueError, match=f"r1_val.jsonl:.*Mend it in {re.escape(str(folder))}"):
        full_run(flags)
    (folder / "r1_1024.jsonl").write_bytes(whole)
    conversations = (folder / "sft_1024.jsonl").read_bytes()
    shutil.copy(data["pretrain"], folder / "sft_1024.jsonl")
    with pytest.raises(ValueError, match="sft_1024.jsonl:1: .*conversations"):
        full_run(flags)
    (folder / "sft_1024.jsonl").write_bytes(conversations)
    full_run(flags)
    assert (tmp_path / "out/pretrain/model.safetensors").is_file()


def test_report_counts_the_time_of_what_was_interrupted(tmp_path):
    def interrupted():
        time.sleep(0.3)
        raise KeyboardInterrupt

    report = Report(tmp_path, {"seed": 1}, anew="--fresh")
    report.do("first", "first", dict)
    with pytest.raises(KeyboardInterrupt):
        report.do("second", "second", interrupted)
    again = Report(tmp_path, {"seed": 1}, anew="--fresh")
    assert 0.3 <= again.parts["seconds"] < 5 and set(again.parts) == {"settings", "seconds", "first"}
    with pytest.raises(ValueError, match="a run with seed 1, here it is 2: .* --fresh to start over"):
        Report(tmp_path, {"seed": 2}, anew="--fresh")


def test_speedrun_help_can_be_printed(tmp_path):
    assert "constant, last 40% linear to 0" in " ".join(run_tool("speedrun.py", "--help", cwd=tmp_path).split())


@pytest.mark.long
def test_full_run_goes_on_after_a_stage_and_tells_all_of_them(data, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    lines = data["pretrain"].read_bytes().splitlines(keepends=True)
    (folder / "pretrain-00.jsonl").write_bytes(b"".join(lines[:50]))
    (folder / "pretrain-01.jsonl.xz").write_bytes(lzma.compress(b"".join(lines[50:])))
    for name, source in {"pretrain_val": "pretrain_val", "sft_512": "sft", "sft_1024": "sft", "sft_val": "sft_val", "r1_1024": "r1", "r1_val": "r1_val"}.items():
        shutil.copy(data[source], folder / f"{name}.jsonl")
    problem = {"conversations": conversation("3加4等于几？", "<think>3+4=7</think>\n<answer>答案：7</answer>")}
    with open(folder / "r1_1024.jsonl", "a", encoding="utf-8") as file:
        file.write(3 * (json.dumps(problem) + "\n"))  # held out
    flags = ["--data_dir", folder, "--preset", "tiny", "--vocab_size", 500, "--step_tokens", 2048, "--most_tokens", 1024, "--max_new_tokens", 8, "--distill_rates", 1e-3]
    flags += ["--pretrain_tokens", 3 * 2048, "--sft_tokens", 2 * 2048]
    run_tool("full_run.py", *flags, "--last", "pretrain", cwd=tmp_path)
    flags += ["--distill_tokens", 2 * 2048]
    report = tmp_path / "out/full/report.json"
    before = json.loads(report.read_text())
    assert (tmp_path / "out/full/data/pretrain.jsonl").read_bytes() == data["pretrain"].read_bytes()
    assert before["plan pretrain"]["steps"] == before["pretrain"]["step"] == 3 and "SFT_512" not in before
    assert before["plan pretrain"]["flags"]["batch_size"] == before["plan pretrain"]["flags"]["accumulation_steps"] == 2
    output = run_tool("full_run.py", *flags, cwd=tmp_path)
    after = json.loads(report.read_text())
    assert output.count("done before") == 6 and after["pretrain"] == before["pretrain"]
    assert {"SFT_512", "SFT_1024", "distill_0.001", "grade SFT_512", "grade SFT_1024", "grade distill_0.001", "grade distill_0.001_mixed"} <= set(after)
    assert after["grade SFT_1024"]["ordinary_loss"] == pytest.approx(after["SFT_1024"]["val_loss"], abs=1e-3)
    assert len((tmp_path / "out/full/distill_0.001/replies.jsonl").read_text(encoding="utf-8").splitlines()) == 3
    told = (tmp_path / "out/full/results/experiments.md").read_text(encoding="utf-8")
    assert told.count("\n| pretrain | 3 |") == told.count("\n| distill_0.001 | 2 |") == told.count("## SFT_1024 replies") == 1
    kept = {str(path.relative_to(tmp_path / "out/full/results")) for path in (tmp_path / "out/full/results").rglob("*.*")}
    assert {"charts_pretrain/loss_pretrain.png", "charts_SFT/lr_SFT_1024.png", "charts_Distill/rates.png", "metrics/distill_0.001.jsonl", "report.json"} <= kept
    held_out, trained_on = ((tmp_path / "out/full/data" / name).read_bytes() for name in ("r1_test.jsonl", "r1_1024.jsonl"))
    assert trained_on + held_out == (folder / "r1_1024.jsonl").read_bytes() and 0 < len(held_out) < len(trained_on)
    assert after["grade SFT_1024"]["questions"] == after["tokens"]["word_problems"] == 3


def test_the_last_lines_are_held_out(tmp_path):
    for count, held_out in ((25, 2), (8000, 700)):
        text = "\n".join(map(str, range(count)))  # its last line without an end
        (tmp_path / "all").write_text(text)
        hold_out(tmp_path / "all", tmp_path / "end", 700)
        assert (tmp_path / "all").read_text() + (tmp_path / "end").read_text() == text
        assert len((tmp_path / "end").read_text().split()) == held_out
    (tmp_path / "all").write_text("1\n" * 9)
    with pytest.raises(ValueError, match="all: found 9 lines, expected at least 10"):
        hold_out(tmp_path / "all", tmp_path / "end", 700)


def test_shards_are_joined_and_what_is_missing_is_held_out(tmp_path):
    lines = [f"{number}\n".encode() for number in range(3000)]
    (tmp_path / "pretrain-00.jsonl").write_bytes(b"".join(lines[:1000])[:-1])  # without its last newline
    (tmp_path / "pretrain-01.jsonl.xz").write_bytes(lzma.compress(b"".join(lines[1000:])))
    for name in ("sft_512", "sft_1024", "sft_val", "r1_1024"):
        (tmp_path / f"{name}.jsonl").write_bytes(b"".join(lines))
    gather(tmp_path, tmp_path / "all")
    found = {path.stem: path.read_bytes().splitlines(keepends=True) for path in (tmp_path / "all").iterdir()}
    assert found == {
        "pretrain": lines[:2700], "pretrain_val": lines[2700:], "sft_512": lines, "sft_val": lines, "sft_1024": lines,
        "r1_1024": lines[:2520], "r1_test": lines[2520:2800], "r1_val": lines[2800:],
        "r1_mixed": lines[:2520] + lines[:1371],  # half of 11,490 bytes: 10 lines of 2, 90 of 3, 900 of 4, 371 of 5
    }  # fmt: skip
    (tmp_path / "pretrain.jsonl").write_bytes(b"1\n")
    with pytest.raises(ValueError, match="expected pretrain once"):
        gather(tmp_path, tmp_path / "all")
    (tmp_path / "pretrain.jsonl").unlink()
    before = {path: path.read_bytes() for path in tmp_path.glob("*.jsonl*")}
    with pytest.raises(ValueError, match="would destroy them"):
        gather(tmp_path, tmp_path)
    assert before == {path: path.read_bytes() for path in tmp_path.glob("*.jsonl*")}
    (tmp_path / "pretrain-01.jsonl.xz").write_bytes(lzma.compress(b"1\n" * 99)[:-20])
    with pytest.raises(ValueError, match="pretrain-01.jsonl.xz: not a whole xz file"):
        gather(tmp_path, tmp_path / "all")


def test_time_that_is_left_is_shared_by_what_is_left_to_do():
    chosen = stages([3e-3, 3e-4])
    assert time_for(chosen[0], 0.0, chosen, 60) == pytest.approx(3600 * 0.5 / (0.96 + 5 * GRADING))
    assert time_for(chosen[3], 600.0, chosen, 60) == pytest.approx(3000 * 0.08 / (0.24 + 3 * GRADING))
    assert time_for(chosen[5], 9999.0, chosen, 60) == 0


def planning(**changes):
    usual = dict(
        step_tokens=2048, most_tokens=1024, rate_scale=1, seed=1, dtype="auto", num_workers=0, device="cpu", compile=False, preset="tiny",
        pretrain_tokens=1e9, distill_tokens=50e3, minutes=0, validations=4,
    )  # fmt: skip
    return SimpleNamespace(**{**usual, **changes})


def test_planned_steps_and_validations_fill_their_share_of_the_time(data, tokenizer, tmp_path):
    chosen = stages([3e-3])
    for name in ("tokenizer", "data"):
        (tmp_path / name).mkdir()
    tokenizer.save_pretrained(tmp_path / "tokenizer", 512)
    for name in ("pretrain", "pretrain_val"):
        shutil.copy(data[name], tmp_path / "data" / f"{name}.jsonl")
    found = plan(chosen[0], tmp_path, planning(minutes=20), {"seconds": 30.0}, chosen)
    assert found["flags"]["batch_size"] == found["flags"]["accumulation_steps"] == 2 and found["validation_seconds"] > 0
    share = (1170 - found["start_seconds"]) * 0.5 / (0.96 + 4 * GRADING)
    taken = found["start_seconds"] + 4 * found["validation_seconds"] + found["steps"] * found["step_seconds"]
    assert found["steps"] > 2 and share - found["step_seconds"] < taken <= share
    assert plan(chosen[0], tmp_path, planning(minutes=20), {"seconds": 1200.0}, chosen)["steps"] == 2


def test_every_distillation_is_planned_alike_but_for_its_rate(tmp_path):
    chosen = stages([3e-3, 3e-4])
    args = planning(step_tokens=8192, most_tokens=8192, compile=True)
    first = plan(chosen[3], tmp_path, args, {}, chosen)
    assert first == {"steps": 6, "flags": {"batch_size": 8, "accumulation_steps": 1, "max_steps": 6, "eval_every": 2, "save_every": 1, "log_every": 1}}
    assert plan(chosen[4], tmp_path, args, {"plan distill_0.003": {**first, "steps": 7}}, chosen) == {**first, "steps": 7}
    flags, other, mixed = (flags_of(stage, tmp_path, args) for stage in chosen[3:6])
    assert flags["compile"] is True and "max_steps" not in flags
    assert other == flags | {"learning_rate": 3e-4, "out_dir": tmp_path / "distill_0.0003"}
    assert mixed == flags | {"data_path": tmp_path / "data/r1_mixed.jsonl", "out_dir": tmp_path / "distill_0.003_mixed"}
    assert command_line({"compile": True, "seed": "1"}) == ["--compile", "--seed=1"]


@pytest.mark.parametrize("flags, message", [
    (["--validations", "0"], "--validations (0)"), (["--minutes", "-1"], "--minutes (-1)"), (["--minutes", "inf"], "--minutes (inf)"),
    (["--distill_rates", "3e-3", "3e-3"], "--distill_rates (0.003 0.003)"),
])  # fmt: skip
def test_full_run_refuses_budgets_that_make_no_sense(flags, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        full_run([*flags, "--out_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
