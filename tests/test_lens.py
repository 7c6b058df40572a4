"""The loss mask made visible, as `dataset.py --show` prints it."""

import numpy as np
import pytest
from conftest import conversation, write_jsonl

from dataset import PackedRows, main, open_tokens
from infra.lens import colour_document, show

REASONED = "<think>3+4=7</think>\n<answer>一共7个。</answer>"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.jsonl"


def shown(path, tokenizer, capsys, *flags):
    main(["--show", str(path), "--tokenizer", str(tokenizer.folder), "--max_seq_len", "128", *flags])
    return capsys.readouterr().out


def test_lens_shows_what_each_token_is_for(path, tokenizer, capsys):
    write_jsonl(path, [{"conversations": conversation("甲", REASONED)}])
    assert "[tag]<think>|[counted]3|+|4|=|7|[tag]</think>" in shown(path, tokenizer, capsys)


def test_lens_shows_and_counts_what_is_cut_off(path, tokenizer, capsys):
    write_jsonl(path, [{"conversations": conversation("甲", "短" * 200)}])
    out = shown(path, tokenizer, capsys)
    cache = open_tokens(path, tokenizer, "conversations")
    lost = np.count_nonzero(cache.loss_mask[129:])
    assert "[cut off]" in out
    assert f"truncated  1 documents (100.00%), {lost} tokens of the loss lost, at 128 tokens" in out


def test_lens_cuts_no_text_off(path, tokenizer, capsys):
    write_jsonl(path, [{"text": "短" * 200}])
    out = shown(path, tokenizer, capsys)
    assert "[cut off]" not in out and "truncated  0 documents" in out


def test_lens_counts_and_names_bad_lines(path, tokenizer, capsys):
    write_jsonl(path, [{"text": "一"}])
    path.write_bytes(path.read_bytes() + b"broken\n" * 25)
    out = shown(path, tokenizer, capsys)
    assert "bad lines  25 (25 not JSON)" in out and "... and 5 more" in out
    assert f"{path}:2: expected a JSON object" in out and f"{path}:22:" not in out


def test_lens_counts_tokens_as_worked_out_by_hand(path, tokenizer, capsys):
    write_jsonl(path, [{"text": "12"}, {"text": "1234"}])
    out = shown(path, tokenizer, capsys, "--max_seq_len", "8")
    assert "documents  2, 5.0 tokens on average, 6 at most" in out
    assert "tokens     10, 8 in the loss (80.0%)" in out
    assert "padding    0.00% of 1 rows; one document a row would be 50.00%" in out  # 3 + 5 positions


def test_lens_prints_as_many_documents_as_asked_for(path, tokenizer, capsys):
    write_jsonl(path, [{"text": str(number)} for number in range(5)])
    assert shown(path, tokenizer, capsys, "--count", "2").count("--- document") == 2


def test_lens_leaves_no_cache(path, tokenizer, capsys):
    write_jsonl(path, [{"text": "一"}])
    shown(path, tokenizer, capsys)
    assert list(path.parent.iterdir()) == [path]


def test_escape_sequences_of_a_file_reach_no_terminal(path, tokenizer, capsys):
    write_jsonl(path, [{"text": "\x1b[2J\x9b31m\n\t"}])
    out = shown(path, tokenizer, capsys)
    assert not set(out) & {"\x1b", "\x9b", "\t"}
    assert "␛" in out and "⏎" in out and "⇥" in out


def test_parts_of_a_character_are_shown_in_hexadecimal(tokenizer):
    ids = np.array(tokenizer.encode("龘"))
    assert len(ids) > 1
    text = colour_document(ids, np.ones_like(ids), tokenizer, 99, has_colours=False)
    found = bytes.fromhex(text.removeprefix("[counted]").replace("|", "").replace("<", " ").replace(">", " "))
    assert found.decode() == "龘"


def test_on_a_terminal_colours_take_the_place_of_words(tokenizer):
    ids = np.array([3, *tokenizer.encode("1"), 4])
    text = colour_document(ids, np.array([2, 1, 2]), tokenizer, 99, has_colours=True)
    assert text == "\033[1;35m<think>\033[0m|\033[32m1\033[0m|\033[1;35m</think>\033[0m"


def test_show_takes_any_rows(path, tokenizer, capsys):
    cache = open_tokens(write_jsonl(path, [{"text": "1"}]), tokenizer, "text")
    show(PackedRows(cache, np.arange(1), 8), count=1, cut_at=8)
    assert "[ignored]<s>|[counted]1|</s>" in capsys.readouterr().out


def test_row_too_short_is_refused(path, tokenizer, capsys):
    with pytest.raises(ValueError, match=r"--max_seq_len \(7\) must be at least 8"):
        shown(path, tokenizer, capsys, "--max_seq_len", "7")
