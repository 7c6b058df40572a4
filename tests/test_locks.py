"""Two processes, one folder: the second is told who has it, and nothing outlives its holder."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import tiny_model

from infra.cli import UserError
from infra.locks import alone_in
from trainer import train

HOLD = """
import sys
from pathlib import Path
from infra.locks import alone_in
with alone_in(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that has the folder."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    root, pipe = Path(__file__).resolve().parents[1], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=root) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_second_process_is_told_who_has_the_folder(holder, tmp_path):
    found = f"process {holder.pid} on .* is training into it: wait for it, or pass another --out_dir"
    with pytest.raises(UserError, match=found), alone_in(tmp_path):
        pass
    with alone_in(tmp_path / "other"):
        pass


def test_lock_ends_with_its_holder(holder, tmp_path):
    os.kill(holder.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
    holder.wait()
    with alone_in(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_second_training_into_a_folder_is_refused_and_the_first_is_not_touched(rows, config):
    folder = Path(config.out_dir)
    with alone_in(folder):
        before = sorted(path.name for path in folder.iterdir())
        with pytest.raises(UserError, match=f"process {os.getpid()} on .* is training into it"):
            train(tiny_model(), rows, config)
        assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.parametrize("error", [OSError(37, "No locks available"), NotImplementedError("no locks")])
def test_disk_without_locks_is_told_and_used(error, tmp_path, monkeypatch, capsys):
    def refuse(lock, **options):
        raise error

    monkeypatch.setattr("infra.locks.FileLock.acquire", refuse)
    with pytest.raises(RuntimeError) as raised, alone_in(tmp_path / "out"):
        raise RuntimeError("of the run itself")
    assert raised.value.__context__ is None  # else it would be taken for an error of the disk
    assert f"{tmp_path / 'out'} cannot be locked ({error})" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())
