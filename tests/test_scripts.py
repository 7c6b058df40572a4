"""The scripts as a person runs them: in a process of their own, with and without what they need."""

import json
import os
import shlex
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import tiny_model, write_jsonl
from safetensors.torch import load_file

from infra.checkpoint import save_model

ROOT = Path(__file__).resolve().parents[1]
SMALL = shlex.split("--preset tiny --max_steps 2 --batch_size 2 --max_seq_len 256 --device cpu")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def command(script, *flags):
    return [sys.executable, script if script == "-m" else str(ROOT / script), *map(str, flags)]


def run(script, *flags, cwd, timeout=300, environment=ENVIRONMENT, **more):
    return subprocess.run(
        command(script, *flags),
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=timeout,
        **more,
    )


def run_ok(*command, cwd, **more):
    result = run(*command, cwd=cwd, **more)
    assert result.returncode == 0, result.stderr
    return result


@pytest.fixture
def folder(data, tokenizer, tmp_path):
    """A folder with the tokenizer and generated data."""
    shutil.copytree(tokenizer.folder, tmp_path / "WeakWater_tokenizer")
    for name in ("pretrain", "pretrain_val", "sft", "r1"):
        shutil.copy(data[name], tmp_path / f"{name}.jsonl")
    return tmp_path


def weights(folder):
    return {name: tensor.tolist() for name, tensor in load_file(folder / "model.safetensors").items()}


# ---- what is missing or cannot be ----

MISSING = [
    (
        "train_tokenizer.py",
        "pretrain.jsonl not found: modelscope download --dataset Harris/pretrain pretrain.jsonl",
    ),
    ("pretrain.py", "tokenizer.json not found: run train_tokenizer.py first"),
    ("SFT.py", "out/pretrain not found: run pretrain.py first, or pass --init_from"),
    ("distill.py", "out/SFT not found: run SFT.py first, or pass --init_from"),
    ("eval_model.py --model_mode 0", "out/pretrain not found: run pretrain.py first"),
    ("dataset.py --show a.jsonl", "tokenizer.json not found: run train_tokenizer.py first"),
    ("SFT.py --init_from out/no", "out/no not found: run pretrain.py first, or pass --init_from"),
    ("pretrain.py --init_from out/no", "model.safetensors not found: out/no is not a finished checkpoint"),
    ("pretrain.py --batch_size 0", "--batch_size (0) must be greater than 0"),
]


@pytest.mark.parametrize("line, message", MISSING, ids=[line for line, _ in MISSING])
def test_what_is_missing_is_named_with_exit_code_2_and_no_traceback(line, message, tmp_path):
    result = run(*line.split(), cwd=tmp_path)
    assert result.returncode == 2
    assert message in result.stderr.replace("\\", "/") and "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_tokenizer_that_the_data_cannot_fill_is_refused(tmp_path):
    write_jsonl(tmp_path / "pretrain.jsonl", [{"text": "短"}])
    result = run("train_tokenizer.py", cwd=tmp_path)
    assert result.returncode == 2 and "expected 6400: more data, or a smaller --vocab_size" in result.stderr


def test_bad_line_is_named_with_its_place(folder):
    path = folder / "pretrain.jsonl"
    path.write_text(path.read_text(encoding="utf-8") + '{"txt": "a"}\n', encoding="utf-8")
    number = len(path.read_bytes().splitlines())
    result = run("pretrain.py", *SMALL, cwd=folder)
    assert (
        result.returncode == 2 and f'pretrain.jsonl:{number}: expected a text under "text"' in result.stderr
    )
    assert not (folder / "out").exists()


def test_bad_line_is_skipped_counted_and_told_when_asked(folder):
    path = folder / "pretrain.jsonl"
    path.write_text(path.read_text(encoding="utf-8") + '{"txt": "a"}\n', encoding="utf-8")
    result = run_ok("pretrain.py", "--skip_bad_lines", *SMALL, cwd=folder)
    assert '1 bad lines (1 no "text") skipped' in result.stdout


# ---- where a run starts and where it goes ----


@pytest.fixture
def pretrained(folder, tokenizer):
    """The folder with the checkpoint of a pretraining that never was, on longer rows than what follows."""
    save_model(tiny_model(max_position_embeddings=320), folder / "out/pretrain", tokenizer, 320)
    return folder


PHASE_1 = ["SFT.py", "--data_path", "sft.jsonl", *SMALL]
PHASE_2 = [*PHASE_1, "--max_seq_len", "320", "--init_from", "out/SFT", "--out_dir", "out/SFT_1024"]


@pytest.mark.parametrize("out_dir", ["out/pretrain", "out/SFT/../pretrain/"])
def test_run_that_would_read_its_start_from_the_folder_it_writes_is_refused(out_dir, pretrained):
    (pretrained / "out/SFT").mkdir()
    before = (pretrained / "out/pretrain/model.safetensors").read_bytes()
    result = run(*PHASE_1, "--out_dir", out_dir, cwd=pretrained)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
    assert "--init_from and --out_dir are both" in result.stderr and "pass another --out_dir" in result.stderr
    assert (pretrained / "out/pretrain/model.safetensors").read_bytes() == before
    assert not list(pretrained.glob("*.cache"))


def test_resume_without_a_state_does_not_excuse_reading_the_folder_that_is_written(pretrained):
    result = run(*PHASE_1, "--out_dir", "out/pretrain", "--resume", cwd=pretrained)
    assert result.returncode == 2 and "--init_from and --out_dir are both" in result.stderr


def test_run_that_resumes_may_name_its_folder_as_its_start(pretrained):
    run_ok(*PHASE_1, cwd=pretrained)
    after = weights(pretrained / "out/SFT")
    result = run_ok(*PHASE_1, "--init_from", "out/SFT", "--resume", cwd=pretrained)
    assert "finished: out/SFT is at step 2/2" in result.stdout and weights(pretrained / "out/SFT") == after


def kill_after_the_first_save(*words, cwd):
    """Start a run and kill it in the middle of its way, once it has saved."""
    process = subprocess.Popen(command(*words), cwd=cwd, env=ENVIRONMENT, stdout=subprocess.PIPE)
    for line in process.stdout:
        if line.startswith(b"step 3/"):  # after the save of step 2
            break
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.slow
def test_second_phase_killed_and_started_again_ends_as_one_never_interrupted(folder, tokenizer):
    save_model(tiny_model(max_position_embeddings=320), folder / "out/SFT", tokenizer, 256)
    phase_2 = [*PHASE_2, "--max_steps", "7", "--save_every", "2", "--log_every", "1"]
    run_ok(*phase_2, cwd=folder)
    expected = weights(folder / "out/SFT_1024")
    shutil.rmtree(folder / "out/SFT_1024")
    kill_after_the_first_save(*phase_2, cwd=folder)
    assert json.loads((folder / "out/SFT_1024/config.json").read_text())["is_finished"] is False
    shutil.copytree(folder / "out/SFT_1024", folder / "killed")
    run_ok(*phase_2, "--resume", cwd=folder)
    assert weights(folder / "out/SFT_1024") == expected
    shutil.rmtree(folder / "out/SFT_1024")
    shutil.copytree(folder / "killed", folder / "out/SFT_1024")
    run_ok(*phase_2, cwd=folder)
    assert weights(folder / "out/SFT_1024") == expected


# ---- the whole way ----


@pytest.mark.slow
def test_five_commands_from_jsonl_to_chat(data, tmp_path):
    def ok(*words):
        return run_ok(*words, cwd=tmp_path)

    ok("train_tokenizer.py", "--data_path", data["pretrain"], "--vocab_size", 500)
    ok("pretrain.py", "--data_path", data["pretrain"], *SMALL)
    ok("SFT.py", "--data_path", data["sft"], *SMALL)
    first = weights(tmp_path / "out/SFT")
    second = ["--max_seq_len", "320", "--init_from", "out/SFT", "--out_dir", "out/SFT_1024"]
    ok("SFT.py", "--data_path", data["sft"], *SMALL, *second)
    assert weights(tmp_path / "out/SFT") == first != weights(tmp_path / "out/SFT_1024")
    distillation = ok(
        "distill.py", "--data_path", data["r1"], *SMALL, "--max_seq_len", "512", "--learning_rate", "1e-6"
    )
    assert "the model in " in distillation.stderr and "SFT_1024" in distillation.stderr
    assert "well_formed 0.0%" in distillation.stdout and "tok/s" in distillation.stdout
    metrics = (tmp_path / "out/distill/metrics.jsonl").read_text().splitlines()
    assert {"val_loss", "val_ppl", "val_bpb", "well_formed", "reasoning_accuracy"} <= set(
        json.loads(metrics[-1])
    )
    for mode in "012":
        ok(
            "eval_model.py",
            "--model_mode",
            mode,
            "--prompt",
            "你好",
            "--max_new_tokens",
            "8",
            "--device",
            "cpu",
        )


def test_importing_the_scripts_imports_neither_wandb_nor_modelscope(tmp_path):
    code = "import sys, quickstart, eval_model, train_tokenizer, trainer\n"
    code += "assert not {'wandb', 'modelscope', 'transformers', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, check=True, cwd=tmp_path)


@pytest.mark.slow
def test_dry_run_tells_time_memory_and_disk_and_leaves_nothing(folder):
    before = sorted(folder.rglob("*"))
    flags = ["--data_path", "pretrain_val.jsonl", *SMALL, "--max_steps", "4", "--dry_run"]
    result = run_ok("pretrain.py", *flags, cwd=folder)
    for expected in ("seconds a step", "4 steps take", " fits", "GB are free", "Nothing was written"):
        assert expected in result.stdout, (expected, result.stdout)
    assert sorted(folder.rglob("*")) == before


# ---- many processes ----


@pytest.mark.slow
def test_two_processes_train_as_one_does(folder):
    few = (folder / "pretrain_val.jsonl").read_bytes().splitlines(keepends=True)[:60]
    (folder / "pretrain.jsonl").write_bytes(b"".join(few))
    flags = [*SMALL, "--max_steps", "0", "--accumulation_steps", "2", "--batch_size", "3", "--log_every", "1"]
    run_ok("pretrain.py", *flags, "--out_dir", "one", cwd=folder)
    run_ok(*TORCHRUN, ROOT / "pretrain.py", *flags, "--out_dir", "two", cwd=folder)
    one, two = (
        [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert len(one) == len(two) == 7  # six steps, the last of which has rows for one process alone
    for alone, shared in zip(one, two):
        for name in {"loss", "grad_norm", "tokens", "val_loss", "val_bpb"} & set(alone):
            assert shared[name] == pytest.approx(alone[name], rel=2e-3), name


def test_dry_run_of_several_processes_is_refused_in_one_line(folder):
    several = {**ENVIRONMENT, "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}  # as torchrun sets them
    flags = [*SMALL, "--accumulation_steps", "4", "--dry_run"]
    result = run("pretrain.py", *flags, cwd=folder, environment=several)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
    assert "--dry_run measures one process" in result.stderr and "--accumulation_steps 2" in result.stderr
    assert not list(folder.glob("*.cache"))


def test_dry_run_under_torchrun_ends_without_waiting_for_anything(folder):
    flags = [*SMALL, "--accumulation_steps", "2", "--dry_run"]
    result = run(*TORCHRUN, ROOT / "pretrain.py", *flags, cwd=folder, timeout=60)
    assert result.returncode != 0 and "--dry_run measures one process" in result.stderr


# ---- quickstart ----


def test_fresh_deletes_nothing_but_a_quickstart(tmp_path):
    thesis = tmp_path / "mine" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("years of work")
    result = run("quickstart.py", "--fresh", "--out_dir", "mine", cwd=tmp_path)
    assert result.returncode == 2 and "found no report.json" in result.stderr and thesis.is_file()


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory):
    """(folder, result) of a quickstart on little data."""
    folder = tmp_path_factory.mktemp("quickstart")
    return folder, run_ok("quickstart.py", "--scale", "0.01", cwd=folder)


@pytest.mark.slow
def test_quickstart_rehearsal_reports_every_number(rehearsed):
    folder, result = rehearsed
    assert result.stdout.count(" 0 documents truncated") == 3
    report = json.loads((folder / "out/quickstart/report.json").read_text())
    assert {"seconds", "tokens_per_second", "pretrain", "sft", "distill"} <= set(report)
    assert all({"val_loss", "val_ppl"} <= set(report[stage]) for stage in ("pretrain", "sft", "distill"))
    assert all({"reasoning_accuracy", "well_formed"} <= set(report[stage]) for stage in ("sft", "distill"))
    page = folder / result.stdout.splitlines()[-1].partition("all on one page: ")[2]
    text = page.read_text(encoding="utf-8")
    assert page.name == "report.html" and text.count("<h2>Samples</h2>") == 3 and "&gt; 你是谁" in text


@pytest.mark.slow
def test_quickstart_started_again_redoes_nothing(rehearsed):
    folder, _ = rehearsed
    before = (folder / "out/quickstart/report.json").read_text()
    start = time.time()
    second = run_ok("quickstart.py", "--scale", "0.01", cwd=folder)
    assert second.stdout.count("done before") >= 5
    assert (folder / "out/quickstart/report.json").read_text() == before
    assert not [path for path in folder.rglob("*.safetensors") if path.stat().st_mtime > start]


@pytest.mark.slow
def test_reward_goes_on_from_the_same_sft_and_half_of_the_distillation(rehearsed):
    folder, _ = rehearsed
    result = run_ok("quickstart.py", "--scale", "0.01", "--reward", cwd=folder)
    assert result.stdout.count("done before") == 4  # data, tokenizer, pretrain, sft
    report = json.loads((folder / "out/quickstart/report.json").read_text())
    assert {"half", "grpo"} <= set(report) and "reasoning_accuracy" in report["grpo"]
    assert "--model_dir out/quickstart/GRPO" in result.stdout


@pytest.mark.slow
def test_quickstart_of_another_scale_is_refused_with_the_flag_that_helps(rehearsed):
    folder, _ = rehearsed
    other = run("quickstart.py", "--scale", "0.03", cwd=folder)
    assert other.returncode == 2 and "--fresh" in other.stderr


# ---- Weights & Biases ----


def wandb_history(path):
    """{step: {name: value}} of a run that was kept offline: a header of 7 bytes, then blocks of 32 KiB of
    chunks of (checksum, size, kind), whole (1), first (2), middle (3) or last (4) of a record."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, record, found = path.read_bytes(), 7, b"", {}
    while place < len(content):
        if 2**15 - place % 2**15 < 7:  # no room for a chunk's head
            place += 2**15 - place % 2**15
            continue
        _, size, kind = struct.unpack_from("<IHB", content, place)
        record += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):
            items = Record.FromString(record).history.item
            values = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
            found |= {values["_step"]: values} if values else {}
            record = b""
    return found


def test_wandb_offline_has_the_numbers_of_the_metrics_file(folder):
    pytest.importorskip("wandb")
    settings = {**ENVIRONMENT, "WANDB_MODE": "offline", "WANDB_DIR": str(folder)}
    flags = shlex.split("--log_every 1 --eval_every 1 --val_path pretrain_val.jsonl --use_wandb")
    run_ok("pretrain.py", *SMALL, *flags, cwd=folder, environment=settings)
    history = wandb_history(next(folder.glob("wandb/offline-run-*/*.wandb")))
    lines = (folder / "out/pretrain/metrics.jsonl").read_text().splitlines()
    assert {"loss", "val_loss", "lr"} <= {name for line in lines for name in json.loads(line)}
    for line in map(json.loads, lines):
        assert line.items() <= history[line["step"]].items()
