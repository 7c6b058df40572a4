"""The scripts as a person runs them: in a process of their own, with and without what they need."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import write_jsonl

ROOT = Path(__file__).resolve().parents[1]
SMALL = "--preset tiny --max_steps 2 --batch_size 2 --max_seq_len 256 --device cpu".split()


def run(script, *flags, cwd, timeout=300, **more):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, script if script == "-m" else str(ROOT / script), *map(str, flags)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=timeout, **more)


MISSING = [
    (["train_tokenizer.py"], "pretrain.jsonl not found: modelscope download --dataset Harris/pretrain pretrain.jsonl --local_dir ./"),
    (["pretrain.py"], "tokenizer.json not found: run train_tokenizer.py first"),
    (["SFT.py"], "out/pretrain not found: run pretrain.py first, or pass --init_from"),
    (["distill.py"], "out/SFT not found: run SFT.py first, or pass --init_from"),
    (["eval_model.py", "--model_mode", "0"], "out/pretrain not found: run pretrain.py first"),
    (["dataset.py", "--show", "a.jsonl"], "tokenizer.json not found: run train_tokenizer.py first"),
    (["pretrain.py", "--init_from", "out/nowhere"], "out/nowhere not found: run pretrain.py first, or pass --init_from"),
    (["pretrain.py", "--batch_size", "0"], "--batch_size (0) must be greater than 0"),
    (["pretrain.py", "--dtype", "int3"], "invalid choice: 'int3'"),
    (["eval_model.py", "--temperature", "-1"], "--temperature (-1.0) must not be negative"),
]


@pytest.mark.parametrize("command, message", MISSING, ids=[" ".join(command) for command, _ in MISSING])
def test_what_is_missing_is_named_with_exit_code_2_and_no_traceback(command, message, tmp_path):
    result = run(*command, cwd=tmp_path)
    assert result.returncode == 2
    assert message in result.stderr.replace("\\", "/") and "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_tokenizer_that_the_data_cannot_fill_is_refused(tmp_path):
    write_jsonl(tmp_path / "pretrain.jsonl", [{"text": "短"}])
    result = run("train_tokenizer.py", cwd=tmp_path)
    assert result.returncode == 2 and "expected 6400: more data, or a smaller --vocab_size" in result.stderr


def test_five_commands_from_jsonl_to_chat(data, tmp_path):
    def ok(*command, **more):
        result = run(*command, cwd=tmp_path, **more)
        assert result.returncode == 0, result.stderr
        return result

    ok("train_tokenizer.py", "--data_path", data["pretrain"], "--vocab_size", 500)
    ok("pretrain.py", "--data_path", data["pretrain"], *SMALL)
    ok("SFT.py", "--data_path", data["sft"], *SMALL)
    first = (tmp_path / "out/SFT/model.safetensors").read_bytes()
    ok("SFT.py", "--data_path", data["sft"], *SMALL, "--max_seq_len", "320", "--init_from", "out/SFT")
    assert (tmp_path / "out/SFT/model.safetensors").read_bytes() != first
    log = ok("distill.py", "--data_path", data["r1"], *SMALL, "--max_seq_len", "512", "--learning_rate", "1e-6")
    assert "well_formed 0.0%" in log.stdout and "tok/s" in log.stdout
    last = [json.loads(line) for line in (tmp_path / "out/distill/metrics.jsonl").read_text().splitlines()][-1]
    assert {"val_loss", "val_ppl", "val_bpb", "well_formed", "reasoning_accuracy"} <= set(last)
    for mode in "012":
        ok("eval_model.py", "--model_mode", mode, "--prompt", "你好", "--max_new_tokens", "8", "--device", "cpu")
    assert "reasoning_accuracy" in ok("eval_model.py", "--score", data["r1_test"], "--max_new_tokens", "8").stdout
    assert "documents" in ok("dataset.py", "--show", data["sft_val"]).stdout
    repeated = ok("SFT.py", "--data_path", data["sft"], *SMALL, "--max_seq_len", "320", "--init_from", "out/SFT", "--resume")
    assert "finished: out/SFT is at step 2/2" in repeated.stdout


def test_bad_line_is_named_with_its_place_or_skipped(data, tmp_path):
    run("train_tokenizer.py", "--data_path", data["pretrain"], "--vocab_size", 500, cwd=tmp_path)
    bad = tmp_path / "bad.jsonl"
    bad.write_text(data["pretrain"].read_text(encoding="utf-8") + '{"txt": "a"}\n', encoding="utf-8")
    line = len(bad.read_text(encoding="utf-8").splitlines())
    result = run("pretrain.py", "--data_path", bad, *SMALL, cwd=tmp_path)
    assert result.returncode == 2 and f'bad.jsonl:{line}: expected a text under "text"' in result.stderr
    result = run("pretrain.py", "--data_path", bad, "--skip_bad_lines", *SMALL, cwd=tmp_path)
    assert result.returncode == 0 and '1 bad lines (1 no "text") skipped' in result.stdout


def test_importing_the_scripts_imports_neither_wandb_nor_modelscope(tmp_path):
    code = "import sys, quickstart, eval_model, train_tokenizer; assert not {'wandb', 'modelscope', 'transformers'} & set(sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, cwd=tmp_path)


def test_dry_run_tells_time_memory_and_disk_and_leaves_nothing(data, tmp_path):
    run("train_tokenizer.py", "--data_path", data["pretrain"], "--vocab_size", 500, cwd=tmp_path)
    mine = tmp_path / "mine.jsonl"
    mine.write_bytes(data["pretrain_val"].read_bytes())
    before = sorted(tmp_path.rglob("*"))
    result = run("pretrain.py", "--data_path", mine, *SMALL, "--max_steps", "4", "--dry_run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for expected in ("seconds a step (3 were timed)", "4 steps take 0.", " minutes with validation", " fits", "GB are free", "Nothing was written"):
        assert expected in result.stdout, (expected, result.stdout)
    assert sorted(tmp_path.rglob("*")) == before


def test_two_processes_train_as_one_does(data, tmp_path):
    run("train_tokenizer.py", "--data_path", data["pretrain"], "--vocab_size", 500, cwd=tmp_path)
    flags = ["--data_path", data["pretrain_val"], "--accumulation_steps", "2", "--batch_size", "3", "--log_every", "1", *SMALL[:2], *SMALL[-4:]]
    assert run("pretrain.py", *flags, "--out_dir", "one", cwd=tmp_path).returncode == 0
    two = run("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", ROOT / "pretrain.py", *flags, "--out_dir", "two", cwd=tmp_path)
    assert two.returncode == 0, two.stderr
    one, two = ([json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()] for name in ("one", "two"))
    assert len(one) == len(two) > 10  # the last step has rows for less than both processes
    for alone, shared in zip(one, two):
        for name in {"loss", "grad_norm", "tokens", "val_loss", "val_bpb"} & set(alone):
            assert shared[name] == pytest.approx(alone[name], rel=2e-3), name


def test_fresh_deletes_nothing_but_a_quickstart(tmp_path):
    thesis = tmp_path / "mine" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("years of work")
    result = run("quickstart.py", "--fresh", "--out_dir", "mine", cwd=tmp_path)
    assert result.returncode == 2 and "found no report.json" in result.stderr and thesis.is_file()


@pytest.mark.slow
def test_quickstart_rehearsal_reports_every_number_and_is_not_redone(tmp_path):
    first = run("quickstart.py", "--scale", "0.02", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert first.stdout.count(" 0 documents truncated") == 3
    report = json.loads((tmp_path / "out/quickstart/report.json").read_text())
    assert {"seconds", "tokens_per_second", "pretrain", "sft", "distill"} <= set(report)
    assert all({"val_loss", "val_ppl"} <= set(report[stage]) for stage in ("pretrain", "sft", "distill"))
    assert all({"reasoning_accuracy", "well_formed"} <= set(report[stage]) for stage in ("sft", "distill"))
    second = run("quickstart.py", "--scale", "0.02", cwd=tmp_path)
    assert second.returncode == 0 and second.stdout.count("done before") >= 5
    assert json.loads((tmp_path / "out/quickstart/report.json").read_text()) == report
    other = run("quickstart.py", "--scale", "0.03", cwd=tmp_path)
    assert other.returncode == 2 and "--fresh" in other.stderr
