"""What is refused before any data is read."""

from dataclasses import replace

import pytest
from conftest import VOCAB_SIZE, tiny_model, trained

from infra.checkpoint import save_model
from infra.checks import check_processes, check_run
from infra.cli import UserError
from infra.tokenizer import ChatTokenizer
from train_tokenizer import save_tokenizer, train_tokenizer


@pytest.fixture
def checkpoint(tokenizer, tmp_path):
    """A folder with a tiny model."""
    save_model(tiny_model(), tmp_path / "start", tokenizer, context=128)
    return tmp_path / "start"


def test_run_that_fits_is_not_refused(config, tokenizer, checkpoint):
    check_run(config, tiny_model(), tokenizer)
    check_run(replace(config, init_from=str(checkpoint)), tiny_model(), tokenizer)


# ---- the folder that a run starts from, and the one that it writes ----


def test_run_that_would_write_over_its_start_is_refused(checkpoint, config, tokenizer):
    config = replace(config, init_from=str(checkpoint), out_dir=str(checkpoint))
    found = f"--init_from and --out_dir are both {checkpoint}: pass another --out_dir"
    with pytest.raises(UserError, match=found):
        check_run(config, tiny_model(), tokenizer)


@pytest.mark.parametrize("spelling", ["start/", "start/../start", "link"])
def test_run_that_would_write_over_its_start_is_refused_however_it_is_spelled(
    spelling, checkpoint, config, tokenizer, tmp_path
):
    (tmp_path / "link").symlink_to(checkpoint)
    config = replace(config, init_from=str(checkpoint), out_dir=f"{tmp_path}/{spelling}")
    with pytest.raises(UserError, match="--init_from and --out_dir are both"):
        check_run(config, tiny_model(), tokenizer)


def test_run_that_would_write_over_its_start_is_refused_with_resume_where_there_is_no_state(
    checkpoint, config, tokenizer
):
    config = replace(config, init_from=str(checkpoint), out_dir=str(checkpoint), resume=True)
    with pytest.raises(UserError, match="--init_from and --out_dir are both"):
        check_run(config, tiny_model(), tokenizer)


def test_run_that_resumes_may_name_its_own_folder_as_its_start(rows, config, tokenizer):
    trained(rows, config, max_steps=1)
    config = replace(config, init_from=config.out_dir)
    check_run(replace(config, resume=True), tiny_model(), tokenizer)
    with pytest.raises(UserError, match="--init_from and --out_dir are both"):
        check_run(config, tiny_model(), tokenizer)


def test_checkpoint_of_another_model_is_not_overwritten(checkpoint, config, tokenizer):
    config = replace(config, out_dir=str(checkpoint))
    found = r"holds another model's checkpoint \(num_hidden_layers 3, here 2\): pass another --out_dir"
    with pytest.raises(UserError, match=found):
        check_run(config, tiny_model(num_hidden_layers=2), tokenizer)
    check_run(config, tiny_model(), tokenizer)


@pytest.fixture(scope="module")
def other_tokenizer(tmp_path_factory):
    """As long as the tests' own, from other texts."""
    words = ["".join(chr(0x4E00 + (7 * i + 13 * j) % 500) for j in range(9)) for i in range(300)]
    folder = tmp_path_factory.mktemp("other")
    save_tokenizer(train_tokenizer(words, VOCAB_SIZE), folder, context=128)
    return ChatTokenizer(folder)


@pytest.mark.parametrize("flag", ["init_from", "out_dir"])
def test_tokenizer_of_another_vocabulary_is_refused(flag, checkpoint, config, other_tokenizer):
    with pytest.raises(
        UserError, match="found another vocabulary than the one that .*start was trained with"
    ):
        check_run(replace(config, **{flag: str(checkpoint)}), tiny_model(), other_tokenizer)


# ---- flags ----


def test_rows_longer_than_the_context_are_refused(config, tokenizer):
    check_run(replace(config, max_seq_len=128), tiny_model(), tokenizer)
    found = r"--max_seq_len \(129\) must be at most the model's max_position_embeddings \(128\)"
    with pytest.raises(UserError, match=found):
        check_run(replace(config, max_seq_len=129), tiny_model(), tokenizer)


def test_arithmetic_that_the_device_has_not_is_refused(config, tokenizer):
    with pytest.raises(UserError, match="--dtype fp16 needs a CUDA device, found cpu"):
        check_run(replace(config, dtype="fp16"), tiny_model(), tokenizer)


def test_device_that_is_not_there_is_refused(config, tokenizer):
    with pytest.raises(UserError, match="device 'abacus' cannot be used here"):
        check_run(replace(config, device="abacus"), tiny_model(), tokenizer)


# ---- many processes ----


def test_accumulation_that_processes_cannot_share_is_refused():
    check_processes(accumulation_steps=6, world=3)
    found = r"--accumulation_steps \(2\) must be a multiple of the number of processes \(3\)"
    with pytest.raises(UserError, match=found):
        check_processes(accumulation_steps=2, world=3)


def test_accumulation_is_checked_against_the_processes_of_torchrun(config, tokenizer, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UserError, match=r"--accumulation_steps \(2\) must be a multiple"):
        check_run(config, tiny_model(), tokenizer)


def test_dry_run_of_many_processes_is_refused_with_the_flag_for_one(config, tokenizer, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    config = replace(config, accumulation_steps=12, dry_run=True)
    found = (
        "--dry_run measures one process: run it without torchrun, with --accumulation_steps 3 for the share"
    )
    with pytest.raises(UserError, match=found):
        check_run(config, tiny_model(), tokenizer)
    check_run(replace(config, dry_run=False), tiny_model(), tokenizer)


def test_dry_run_of_one_process_is_not_refused(config, tokenizer):
    check_run(replace(config, dry_run=True), tiny_model(), tokenizer)
