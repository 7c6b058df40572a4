"""What happens to a run from outside: kills, full disks, strangers' files, lost processes."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import conversation, tiny_model, write_jsonl
from safetensors.torch import load_file
from test_scripts import ROOT, run

import eval_model
from dataset import ChatTokenizer, check_vocabulary, open_cache
from model import WeakWater
from train_tokenizer import save_tokenizer, train_tokenizer
from trainer import read_metrics

needs_posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals and limits")


@pytest.fixture
def folder(data, tokenizer, tmp_path):
    """A folder with a tokenizer and a pretraining file, ready for pretrain.py."""
    shutil.copytree(tokenizer.folder, tmp_path / "WeakWater_tokenizer")
    shutil.copy(data["pretrain_val"], tmp_path / "pretrain.jsonl")
    return tmp_path


def flags(**changes):
    values = {"preset": "tiny", "batch_size": 2, "max_seq_len": 256, "device": "cpu", "max_steps": 4, "save_every": 2, "log_every": 1, **changes}
    return [f"--{name}={value}" for name, value in values.items()]


# ---- kills ----


@pytest.mark.slow
@pytest.mark.long
def test_run_killed_at_25_random_moments_ends_as_one_never_interrupted(tmp_path):
    result = run("tools/verify_resume.py", "--kills", "25", cwd=tmp_path, timeout=900)
    print(result.stdout)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "DIFFERENT" not in result.stdout and result.stdout.count("identical") >= 1


def test_cache_that_a_killed_process_left_half_done_is_made_anew(tokenizer, tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "一"}, {"text": "二"}])
    folder = open_cache(path, tokenizer, "text").folder
    whole = {file.name: file.read_bytes() for file in folder.iterdir()}
    half = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(folder)
    half.mkdir()
    (half / "ids.bin").write_bytes(b"half")
    assert {file.name: file.read_bytes() for file in open_cache(path, tokenizer, "text").folder.iterdir()} == whole
    assert not half.exists()


def test_runs_started_at_once_on_one_file_make_its_cache_once(data, tokenizer, tmp_path):
    path = tmp_path / "pretrain.jsonl"
    path.write_bytes(data["pretrain"].read_bytes() * 100)
    code = f"""if True:
        import sys; sys.path.insert(0, {str(ROOT)!r})
        from dataset import ChatTokenizer, open_cache
        print(open_cache({str(path)!r}, ChatTokenizer({str(tokenizer.folder)!r}), "text").ids.sum())"""
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda _: subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300), range(3)))
    assert [result.returncode for result in results] == [0, 0, 0], results
    assert len({result.stdout for result in results}) == 1
    assert sum("tokenizing pretrain.jsonl (" in result.stderr for result in results) == 1
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".cache", ".jsonl"]


def test_folder_that_cannot_be_locked_is_named(tokenizer, tmp_path, monkeypatch):
    def refuse(lock, **more):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("dataset.FileLock.acquire", refuse)
    with pytest.raises(ValueError, match="a.jsonl.lock cannot be locked .*No locks available.*pass --cache_dir"):
        open_cache(write_jsonl(tmp_path / "a.jsonl", [{"text": "一"}]), tokenizer, "text")


def test_cache_that_lost_its_end_in_a_power_cut_is_named(tokenizer, tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "一"}])
    (open_cache(path, tokenizer, "text").folder / "about.json").write_text("")
    with pytest.raises(ValueError, match="a.jsonl.*cache: not a whole cache of tokens .*delete it"):
        open_cache(path, tokenizer, "text")


# ---- a full disk ----


@needs_posix
@pytest.mark.parametrize("what, limit", [("training_state.pt", 1_000_000), ("metrics.jsonl", 6000)])
def test_full_disk_gives_one_line_and_leaves_the_last_checkpoint(what, limit, folder):
    """A limit on the size of files stands for the disk: it makes the same calls fail."""
    import resource

    run("pretrain.py", *flags(max_steps=2), cwd=folder)
    good = load_file(folder / "out/pretrain/model.safetensors")
    again = flags(seed=1, max_steps=30, save_every=2 if what == "training_state.pt" else 100)
    result = run("pretrain.py", *again, cwd=folder, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert f"out/pretrain/{what} could not be written (File too large); " in result.stderr.splitlines()[-1] and "make room" in result.stderr
    assert not list(folder.rglob("*.tmp"))
    WeakWater.from_pretrained(folder / "out/pretrain")
    kept = load_file(folder / "out/pretrain/model.safetensors")
    assert all((kept[name] == good[name]).all() for name in good)
    assert run("pretrain.py", *again, "--resume", cwd=folder).returncode == 0


@needs_posix
def test_full_disk_while_tokenizing_leaves_no_cache(folder):
    import resource

    result = run("pretrain.py", *flags(), cwd=folder, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000)))
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
    tiny_model().save_pretrained(folder, tokenizer.vocabulary_hash)
    tokenizer.save_pretrained(folder, 128)
    return folder


def chat(*flags, capsys):
    eval_model.main(["--temperature", "0", "--max_new_tokens", "3", "--prompt", "你好", *map(str, flags)])
    return capsys.readouterr().out


def test_no_file_of_a_checkpoint_can_run_code(tokenizer, tmp_path, capsys, folder):
    stranger = checkpoint(tmp_path / "stranger", tokenizer)
    before = chat("--model_dir", stranger, capsys=capsys)
    for name in ("pytorch_model.bin", "training_state.pt", "modeling_llama.py", "tokenizer.py"):
        (stranger / name).write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")) if name.endswith(("bin", "pt")) else b"import os; os.mkdir('exploded')")
    about = json.loads((stranger / "tokenizer_config.json").read_text())
    about |= {"auto_map": {"AutoTokenizer": ["tokenizer.Bomb", None]}, "chat_template": "{{ ''.__class__.__mro__[1].__subclasses__() }}"}
    (stranger / "tokenizer_config.json").write_text(json.dumps(about))
    assert chat("--model_dir", stranger, capsys=capsys) == before
    result = run("pretrain.py", *flags(max_seq_len=64), f"--init_from={stranger}", f"--out_dir={stranger}", "--resume", cwd=folder)
    assert result.returncode == 2 and "not a whole training state" in result.stderr
    assert not list(tmp_path.rglob("exploded"))


def other_tokenizer(folder):
    """As long as the tests' own, from other texts."""
    words = ["".join(chr(0x4E00 + (7 * i + 13 * j) % 500) for j in range(9)) for i in range(300)]
    save_tokenizer(train_tokenizer(words, 400), folder, 128)
    return ChatTokenizer(folder)


def test_vocabulary_of_another_model_is_refused_in_chat_and_in_training(tokenizer, tmp_path, folder):
    theirs = checkpoint(tmp_path / "theirs", tokenizer)
    other_tokenizer(tmp_path / "other")
    for file in (tmp_path / "other").iterdir():
        shutil.copy(file, theirs)
    with pytest.raises(ValueError, match="found another vocabulary than the one that .*theirs was trained with"):
        eval_model.main(["--model_dir", str(theirs), "--prompt", "你好"])
    write_jsonl(folder / "sft.jsonl", [{"conversations": conversation("一", "二")}] * 3)
    result = run("SFT.py", *flags(max_seq_len=64), "--data_path=sft.jsonl", f"--init_from={theirs}", cwd=folder)
    assert result.returncode == 2 and "found another vocabulary" in result.stderr and not list(folder.glob("*.cache"))
    checkpoint(theirs, tokenizer)
    config = json.loads((theirs / "config.json").read_text())
    (theirs / "config.json").write_text(json.dumps({name: value for name, value in config.items() if name != "vocabulary"}))
    with pytest.raises(ValueError, match="found another vocabulary"):  # a checkpoint that does not say is known by its tokenizer
        check_vocabulary(theirs, ChatTokenizer(tmp_path / "other"))
    check_vocabulary(theirs, tokenizer)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_checkpoint_with_a_file_cut_short_is_refused_with_its_name(name, share, tokenizer, tmp_path):
    stranger = checkpoint(tmp_path / "stranger", tokenizer)
    content = (stranger / name).read_bytes()
    (stranger / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=name):
        eval_model.main(["--model_dir", str(stranger), "--prompt", "你好"])


# ---- many processes ----


def torchrun(processes, *flags):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), str(ROOT / "pretrain.py"), *flags]
    return command, {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def losses(folder):
    return np.array([line["loss"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line])


@needs_posix
def test_lost_process_ends_the_run_with_a_message_and_another_number_goes_on(folder):
    # the rows of each of its epochs do not divide by the rows of a step
    more = flags(accumulation_steps=4, batch_size=3, max_seq_len=128, max_steps=60, save_every=3, epochs=40, min_lr_ratio=1)
    whole = run("pretrain.py", *more, "--out_dir=whole", cwd=folder)
    assert whole.returncode == 0, whole.stderr
    command, environment = torchrun(2, *more, "--out_dir=cut")
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (folder / "cut/training_state.pt").is_file() and process.poll() is None:
        time.sleep(0.05)
    ranks = subprocess.run(["pgrep", "-P", str(process.pid), "-f", "pretrain.py"], capture_output=True, text=True).stdout.split()
    assert len(ranks) == 2
    os.kill(int(ranks[1]), signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "another process of this run has ended" in err and "cut keeps the last checkpoint: the same command with --resume" in err
    done = len(losses(folder / "cut"))
    assert 3 <= done < 60
    for processes in (1, 4):
        again = f"again_{processes}"
        shutil.copytree(folder / "cut", folder / again)
        command, environment = torchrun(processes, *more, f"--out_dir={again}", "--resume")
        result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr
        assert f"the stopped run had 2 processes, this one has {processes}: from here on it equals an uninterrupted one to rounding" in result.stdout
        assert losses(folder / again) == pytest.approx(losses(folder / "whole"), rel=2e-3)
