"""The side doors: benchmarks, experiments and the export to GGUF."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_model

from model import rope_tables, rotate
from tools.export_gguf import export_gguf, interleave
from tools.speedrun import newton_schulz, polar_express, table

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
    results = [json.loads(line) for line in (tmp_path / "benchmarks/speedrun.jsonl").read_text().splitlines()]
    assert [result["change"] for result in results] == names
    assert len({result["val_loss"] for result in results}) == 4 and all(4 < result["val_loss"] < 7 for result in results)


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
