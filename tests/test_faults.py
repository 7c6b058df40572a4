"""What happens to a run from outside: kills, full disks, strangers' files, lost processes."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import VOCAB_SIZE, conversation, tiny_model, write_jsonl
from safetensors.torch import load_file
from test_scripts import ENVIRONMENT, ROOT, TORCHRUN, command, run

import eval_model
from dataset import open_tokens
from infra.checkpoint import save_model
from infra.cli import UserError
from infra.metrics import read_metrics
from model import WeakWater
from train_tokenizer import save_tokenizer, train_tokenizer

needs_posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals and limits")


@pytest.fixture
def folder(data, tokenizer, tmp_path):
    """A folder with a pretraining file and a tiny model to start from."""
    save_model(tiny_model(), tmp_path / "start", tokenizer, 128)
    lines = data["pretrain_val"].read_bytes().splitlines(keepends=True)
    (tmp_path / "pretrain.jsonl").write_bytes(b"".join(lines[:100]))
    return tmp_path


def flags(**changes):
    values = {"init_from": "start", "batch_size": 2, "max_seq_len": 128, "device": "cpu", "max_steps": 4}
    values |= {"save_every": 2, "log_every": 1}
    return [f"--{name}={value}" for name, value in {**values, **changes}.items()]


# ---- kills ----


@pytest.mark.slow
@pytest.mark.long
def test_run_killed_at_25_random_moments_ends_as_one_never_interrupted(tmp_path):
    result = run("tools/verify_resume.py", "--kills", "25", cwd=tmp_path, timeout=900)
    print(result.stdout)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "DIFFERENT" not in result.stdout and result.stdout.count("identical") >= 1


@needs_posix
def test_run_that_is_told_to_stop_saves_and_goes_on_from_there(folder):
    words = ["pretrain.py", *flags(max_steps=500, save_every=400)]
    process = subprocess.Popen(
        command(*words), cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    while not process.stdout.readline().startswith("step 2/"):
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    stopped = int(out.split("stopped at step ")[1].split("/")[0])
    assert 2 <= stopped < 500 and "the same command with --resume goes on from here" in out
    assert len(read_metrics(folder / "out/pretrain/metrics.jsonl")) == stopped
    WeakWater.from_pretrained(folder / "out/pretrain")


def test_runs_started_at_once_on_one_file_make_its_cache_once(data, tokenizer, tmp_path):
    path = tmp_path / "pretrain.jsonl"
    path.write_bytes(data["pretrain"].read_bytes() * 40)
    code = "import sys; from dataset import ChatTokenizer, open_tokens;"
    code += "print(open_tokens(sys.argv[1], ChatTokenizer(sys.argv[2]), 'text').ids.sum())"
    words = [sys.executable, "-c", code, str(path), str(tokenizer.folder)]

    def tokenize(number):
        return subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)

    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(tokenize, range(3)))
    assert [result.returncode for result in results] == [0, 0, 0], results
    assert len({result.stdout for result in results}) == 1
    assert sum("tokenizing pretrain.jsonl (" in result.stderr for result in results) == 1
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".cache", ".jsonl"]


# ---- a full disk ----


def no_file_beyond(limit):
    """For a process to come: a limit on the size of files, which makes the same calls fail as a full disk."""
    import resource

    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


@needs_posix
@pytest.mark.slow
@pytest.mark.parametrize("what, limit", [("training_state.pt", 400_000), ("metrics.jsonl", 6000)])
def test_full_disk_gives_one_line_and_leaves_the_last_checkpoint(what, limit, folder, tokenizer):
    save_model(tiny_model(1), folder / "out/pretrain", tokenizer, 128)
    open_tokens(
        folder / "pretrain.jsonl", tokenizer, "text"
    )  # so that it is not the first thing that is full
    good = load_file(folder / "out/pretrain/model.safetensors")
    again = flags(max_steps=30, save_every=2 if what == "training_state.pt" else 100)
    result = run("pretrain.py", *again, cwd=folder, preexec_fn=no_file_beyond(limit))
    assert result.returncode == 2 and "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert f"out/pretrain/{what} could not be written (File too large); " in last and "make room" in last
    assert not list(folder.rglob("*.tmp"))
    WeakWater.from_pretrained(folder / "out/pretrain")
    kept = load_file(folder / "out/pretrain/model.safetensors")
    assert all((kept[name] == good[name]).all() for name in good)
    assert run("pretrain.py", *again, "--resume", cwd=folder).returncode == 0


@needs_posix
def test_full_disk_while_tokenizing_leaves_no_cache(folder):
    result = run("pretrain.py", *flags(), cwd=folder, preexec_fn=no_file_beyond(5000))
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert ".cache could not be written (" in result.stderr.splitlines()[-1]
    assert not list(folder.glob("*.cache")) + list(folder.glob("*.tmp"))


# ---- files from strangers ----


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def checkpoint(folder, tokenizer):
    save_model(tiny_model(), folder, tokenizer, 128)
    return folder


def chat(folder, capsys):
    """The greedy reply of a checkpoint."""
    eval_model.main([f"--model_dir={folder}", "--temperature=0", "--max_new_tokens=3", "--prompt=你好"])
    return capsys.readouterr().out


@pytest.fixture
def stranger(tokenizer, tmp_path):
    """A checkpoint with every file that could bring code along; the code would make a folder `exploded`."""
    stranger = checkpoint(tmp_path / "stranger", tokenizer)
    for name in ("pytorch_model.bin", "training_state.pt"):
        (stranger / name).write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    for name in ("modeling_llama.py", "tokenizer.py"):
        (stranger / name).write_text("import os; os.mkdir('exploded')")
    about = json.loads((stranger / "tokenizer_config.json").read_text())
    template = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    about |= {"auto_map": {"AutoTokenizer": ["tokenizer.Bomb", None]}, "chat_template": template}
    (stranger / "tokenizer_config.json").write_text(json.dumps(about))
    return stranger


def test_chat_runs_no_code_of_a_checkpoint(stranger, tokenizer, tmp_path, capsys):
    assert chat(stranger, capsys) == chat(checkpoint(tmp_path / "own", tokenizer), capsys)
    assert not list(tmp_path.rglob("exploded"))


def test_resume_runs_no_code_of_a_training_state(stranger, folder):
    more = [f"--init_from={stranger}", f"--out_dir={stranger}", "--resume"]
    result = run("pretrain.py", *flags(max_seq_len=64), *more, cwd=folder)
    assert result.returncode == 2 and "not a whole training state" in result.stderr
    assert not list(folder.rglob("exploded"))


@pytest.fixture
def swapped(tokenizer, tmp_path):
    """A checkpoint beside which somebody put another tokenizer of the same size."""
    theirs = checkpoint(tmp_path / "theirs", tokenizer)
    words = ["".join(chr(0x4E00 + (7 * i + 13 * j) % 500) for j in range(9)) for i in range(300)]
    save_tokenizer(train_tokenizer(words, VOCAB_SIZE), theirs, 128)
    return theirs


def test_vocabulary_of_another_model_is_refused_in_chat(swapped, capsys):
    with pytest.raises(
        UserError, match="found another vocabulary than the one that .*theirs was trained with"
    ):
        chat(swapped, capsys)


def test_vocabulary_of_another_model_is_refused_in_training_before_any_data_is_read(swapped, folder):
    write_jsonl(folder / "sft.jsonl", [{"conversations": conversation("一", "二")}] * 3)
    more = ["--data_path=sft.jsonl", f"--init_from={swapped}"]
    result = run("SFT.py", *flags(max_seq_len=64), *more, cwd=folder)
    assert result.returncode == 2 and "found another vocabulary" in result.stderr
    assert not list(folder.glob("*.cache"))


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_checkpoint_with_a_file_cut_short_is_refused_with_its_name(name, share, tokenizer, tmp_path, capsys):
    stranger = checkpoint(tmp_path / "stranger", tokenizer)
    content = (stranger / name).read_bytes()
    (stranger / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=name):
        chat(stranger, capsys)


# ---- many processes ----


def torchrun(processes, *words):
    return command(*TORCHRUN[:-1], processes, ROOT / "pretrain.py", *words)


def losses(folder):
    return np.array([line["loss"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line])


def kill_one_of_two_after_the_first_save(words, folder, out_dir):
    """Start a run of two processes and kill the second one; returns (exit code, stderr) of torchrun."""
    process = subprocess.Popen(
        torchrun(2, *words, f"--out_dir={out_dir}"),
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (folder / out_dir / "training_state.pt").is_file() and process.poll() is None:
        time.sleep(0.05)
    children = ["pgrep", "-P", str(process.pid), "-f", "pretrain.py"]
    ranks = subprocess.run(children, capture_output=True, text=True).stdout.split()
    assert len(ranks) == 2
    os.kill(int(ranks[1]), signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    return process.returncode, err


@needs_posix
@pytest.mark.slow
def test_lost_process_ends_the_run_with_a_message_and_another_number_goes_on(folder):
    # the rows of each of its epochs do not divide by the rows of a step
    more = flags(accumulation_steps=4, max_steps=16, save_every=3, epochs=40, min_lr_ratio=1)
    whole = run("pretrain.py", *more, "--out_dir=whole", cwd=folder)
    assert whole.returncode == 0, whole.stderr
    code, err = kill_one_of_two_after_the_first_save(more, folder, "cut")
    assert code != 0 and "another process of this run has ended" in err
    assert "cut keeps the last checkpoint: the same command with --resume" in err
    assert 3 <= len(losses(folder / "cut")) < 16
    result = run("pretrain.py", *more, "--out_dir=cut", "--resume", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert "the stopped run had 2 processes, this one has 1: from here on" in result.stdout
    assert losses(folder / "cut") == pytest.approx(losses(folder / "whole"), rel=2e-3)
