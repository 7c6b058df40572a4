"""tools/benchmark.py and its peers: what they measure is what they say."""

import json
import os
import subprocess
import sys
from copy import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import conversation, tiny_config, tiny_model, write_jsonl

from dataset import prompt_ids
from eval_model import EvalConfig
from infra.checkpoint import save_model
from infra.cli import UserError
from infra.conversation import Chat
from model import WeakWater, document_mask
from tools import chat_speed, generate_speed, gpu_report
from tools.benchmark import CANDIDATES, BenchmarkConfig, candidates, measure, medians
from tools.generate_speed import generate_ours
from tools.measures import untrained
from tools.peers import Peer, train_with_adamw, transformers_generator
from tools.train_speed import train_ours, unpack

ROOT = Path(__file__).resolve().parents[1]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def small(data, tokenizer, tmp_path):
    return BenchmarkConfig(
        data_path=str(data["sft"]), tokenizer=str(tokenizer.folder), cache_dir=str(tmp_path), vocab_size=450,
        preset="tiny", device="cpu", max_seq_len=128, batch_size=2, steps=1,
    )  # fmt: skip


def test_candidates_can_be_chosen():
    assert candidates("train", CPU) == candidates("train", CUDA) == CANDIDATES["train"][1]
    assert candidates("train", CPU, ["weakwater eager"]) == ["weakwater eager"]
    with pytest.raises(UserError, match="llama.* is unknown to train"):
        candidates("train", CPU, ["llama"])
    with pytest.raises(UserError, match="llama.cpp needs a CPU"):
        candidates("generate", CUDA, ["llama.cpp"])


def test_medians_are_of_the_rounds_and_ratios_of_the_same_round():
    speeds = ((8, 4), (9, 9), (1, 5))
    rounds = [{"ours": {"speed": ours}, "peer": {"speed": peer, "alone": 1}} for ours, peer in speeds]
    assert medians(rounds, "ours", "ours") == ({"speed": 8}, {})
    assert medians(rounds, "peer", "ours") == ({"speed": 5, "alone": 1}, {"speed": 1.0})  # 2, 1 and 0.2


def test_generation_is_measured_by_what_the_clock_says_at_one_size(small, monkeypatch):
    now, shapes = [0.0], []

    def generator(shape, device):
        shapes.append(shape)

        def generate(prompts, count):
            now[0] += 0.5 + 0.25 * (count - 1)
            return count

        return generate

    monkeypatch.setattr(generate_speed, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(generate_speed, "generate_ours", generator)
    monkeypatch.setattr(generate_speed.peers, "transformers_generator", generator)
    ours, theirs = (measure("generate", name, small) for name in ("weakwater", "transformers"))
    expected = {
        "prefill_tokens_per_second": 256 / 0.5,
        "decode_tokens_per_second": 4,
        "batched_prefill_tokens_per_second": 32 * 256 / 0.5,
        "batched_decode_tokens_per_second": 32 * 4,
        "question_prefill_tokens_per_second": 64 / 0.5,
        "question_decode_tokens_per_second": 4,
        "questions_prefill_tokens_per_second": 128 * 64 / 0.5,
        "questions_decode_tokens_per_second": 128 * 4,
    }
    for found in (ours, theirs):
        assert found.pop("peak_megabytes") > 1 and found == expected
    checkpoint = WeakWater.from_pretrained(untrained(small)).config  # llama.cpp's
    assert {shape.vocab_size for shape in shapes} == {checkpoint.vocab_size}
    assert untrained(small) != untrained(replace(small, preset="5m"))


@pytest.mark.parametrize("place", [chat_speed.bare_loop, chat_speed.terminal])
def test_a_chat_is_measured_from_the_question_to_its_last_token(place, tokenizer, monkeypatch):
    now = [0.0]

    def tokens(model, prompts, config, shared):
        for number, id in enumerate(tokenizer.encode("一二三四")):
            now[0] += 0.25 if number else 2.0
            yield [id]
        now[0] += 100

    monkeypatch.setattr(chat_speed, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(chat_speed, "stream", tokens)
    model, sampling = tiny_model(vocab_size=len(tokenizer)), EvalConfig(max_new_tokens=8)
    times = place(lambda: Chat(model, tokenizer, sampling, tokens, prompt_ids, chat_speed.no_other_stage))
    for _ in range(2):
        start, count = now[0], len(tokenizer.encode("一二三四"))
        found = next(times)
        assert (found[0] - start, found[-1] - start) == (2.0, 2.0 + 0.25 * (count - 1))


def test_report_of_a_card_begins_nothing_after_its_time_and_outlives_what_fails(tmp_path):
    def fail():
        raise RuntimeError("no kernel image")

    path = tmp_path / "new/report.json"
    report = gpu_report.Report(path, {"command": "c"}, minutes=1)
    report.do("checks", "a", fail)
    assert "no kernel image" in json.loads(path.read_text())["checks"]["a"]["error"]
    report.do("training", "b", lambda: {"speed": 2.0})
    assert json.loads(path.read_text())["training"]["b"]["speed"] == 2.0
    report.deadline = 0
    report.do("training", "c", lambda: pytest.fail("begun"))
    assert "the time was over" in json.loads(path.read_text())["training"]["c"]["error"]


def test_report_of_a_card_asks_for_candidates_that_exist():
    assert {name for name, _ in gpu_report.ROWS} <= set(CANDIDATES["train"][1])


def test_peer_has_our_loss_names_and_checkpoint(tokenizer, tmp_path):
    ours = tiny_model()
    peer = Peer(ours.config)
    peer.load_state_dict(ours.state_dict())
    assert peer.num_parameters() == ours.num_parameters()
    B, T = 3, 20
    ids, labels = torch.randint(7, 400, (2, B, T), generator=torch.Generator().manual_seed(0))
    loss_weights = torch.rand(B, T, generator=torch.Generator().manual_seed(1))
    mask = document_mask(torch.ones(B, T, dtype=torch.long))  # one document in a row
    expected = ours(ids, mask, labels, loss_weights)
    torch.testing.assert_close(peer(ids, mask, labels, loss_weights), expected, rtol=1e-5, atol=1e-4)
    save_model(peer, tmp_path, tokenizer, 128)
    saved = WeakWater.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(saved[name], tensor) for name, tensor in ours.state_dict().items())


def test_both_loops_count_tokens_alike_and_tell_the_loss_of_the_whole_step(rows, config):
    config = replace(config, batch_size=2, accumulation_steps=3, max_steps=4, log_every=1)
    found = []
    for train in (train_ours, train_with_adamw):
        torch.manual_seed(0)
        found.append(train(Peer(tiny_config()), unpack(copy(rows)), config))
    ours, plain = found
    assert [line["tokens"] for line in ours] == [line["tokens"] for line in plain]
    assert plain[0]["loss"] == pytest.approx(ours[0]["loss"], rel=1e-5)  # before the first update
    assert plain[-1]["loss"] < plain[0]["loss"] and plain[0]["seconds"] < plain[-1]["seconds"]


def test_padded_rows_hold_the_same_segments_one_in_each(rows):
    padded = unpack(copy(rows))
    assert len(padded) == len(rows.starts) > len(rows)
    assert all(int(padded[row].document_ids.max()) == 1 for row in range(len(padded)))
    assert sum(int((padded[row].document_ids > 0).sum()) for row in range(len(padded))) == rows.useful


def test_tokenize_counts_the_documents_and_tokens_of_a_file(small, data):
    found = measure("tokenize", "weakwater", replace(small, data_path=str(data["pretrain"])))
    assert found["documents"] == len(data["pretrain"].read_bytes().splitlines())
    assert 1 < found["bytes_per_token"] < 10 and found["megabytes"] == data["pretrain"].stat().st_size / 1e6


def test_chat_is_measured_in_the_terminal_and_on_the_page(small, tokenizer, tmp_path):
    tokenizer.save(tmp_path, 1024)
    for name in CANDIDATES["chat"][1]:
        found = measure("chat", name, replace(small, tokenizer=str(tmp_path)))
        assert 0 < found["first_token_seconds"] < 30 and found["tokens_per_second"] > 1


def test_tokens_of_any_length_are_learned_without_the_limit(small, tmp_path):
    line = json.dumps({"text": "一二三四五六七八九十甲乙丙丁戊己庚辛壬癸"}, ensure_ascii=False)  # 60 bytes
    (tmp_path / "texts.jsonl").write_text(f"{line}\n" * 50, encoding="utf-8")
    config = replace(small, data_path=str(tmp_path / "texts.jsonl"), vocab_size=322)
    limited, free = (measure("learn", name, config) for name in CANDIDATES["learn"][1])
    assert limited["bytes_per_token"] < 48 < 50 < free["bytes_per_token"]


@pytest.mark.parametrize("generator", [generate_ours, transformers_generator])
def test_generators_take_as_many_steps_as_they_are_asked_for(generator):
    generate = generator(tiny_config(), CPU)
    assert [generate([[7, 8, 9]] * 2, count) for count in (1, 4)] == [1, 4]


@pytest.mark.slow
def test_command_writes_medians_ratios_and_the_optimizer(tmp_path):
    # much shorter than rows, which are full therefore
    sums = [{"conversations": conversation(f"{a}+{a}=?", f"{2 * a}")} for a in range(400)]
    flags = {
        "data_path": write_jsonl(tmp_path / "sums.jsonl", sums),
        "vocab_size": 300,
        "preset": "tiny",
        "max_seq_len": 1024,
        "batch_size": 1,
        "steps": 1,
        "rounds": 1,
    }
    names = ["weakwater eager", "transformers eager padded, AdamW"]
    command = [sys.executable, str(ROOT / "tools/benchmark.py"), "train", "--device=cpu"]
    command += [*(f"--{name}={value}" for name, value in flags.items()), "--only", *names]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    ours, padded = json.loads((tmp_path / "benchmarks/train_cpu.json").read_text())["candidates"].values()
    assert (ours["optimizer"], padded["optimizer"]) == ("Muon and AdamW", "AdamW")
    assert ours["padding"] < 0.1 < 0.5 < padded["padding"] < 1
    speed, ratios = "useful_tokens_per_second", padded["ratio_of_weakwater eager"]
    assert ours[speed] == pytest.approx(ours["positions_per_second"] * (1 - ours["padding"]))
    assert ratios[speed] == pytest.approx(ours[speed] / padded[speed])
