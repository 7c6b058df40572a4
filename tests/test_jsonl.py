"""One line and what can be wrong with it; one file and what it may be instead of JSONL."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset import encode_documents
from infra.cli import UserError
from infra.jsonl import (
    BAD_LINES_KEPT,
    BATCH_BYTES,
    BadLine,
    BadLines,
    check_file,
    count_kinds,
    detect_field,
    numbered_lines,
    parse_line,
    read_documents,
)
from infra.tokenizer import BOS, EOS

USER, REPLY = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
BAD_TEXT_LINES = [
    (b'{"text": "a"', "not JSON", "expected a JSON object"),
    (b'{"text": "\xff"}', "not UTF-8", "expected UTF-8 text, found the byte 0xff at column 11"),
    (b'{"text": "\\ud800"}', "half a surrogate pair", r"half of a surrogate pair \(\\ud800\)"),
    (b'{"text": 3}', 'no "text"', 'found a number under "text"'),
    (b'{"text": true}', 'no "text"', 'found true or false under "text"'),
    (b'{"text": "  "}', "empty text", 'expected some text in "text", found none'),
    (b'{"txt": "a"}', 'no "text"', 'found only "txt"'),
    (b"{}", 'no "text"', "found an object"),
    (b'["a"]', 'no "text"', "found a list"),
    (b"null", 'no "text"', "found nothing"),
    (b"\x00\x00", "not JSON", "expected a JSON object"),
    (b"[" * 200_000, "not JSON", "too deeply nested"),
]
BAD_CONVERSATIONS = [
    ([], "no messages", "an empty list"),
    ("hi", 'no "conversations"', 'found "hi" under "conversations"'),
    ([["user", "a"]], "broken message", "as message 1, found a list"),
    ([{"role": "human", "content": "a"}], "unknown role", 'the role of message 1 .*, found "human"'),
    ([USER, {"content": "a"}], "unknown role", "the role of message 2 .*, found nothing"),
    ([USER], "no reply", "nothing to learn from"),
    (
        [{"role": "user", "content": None}, REPLY],
        "broken message",
        "as the content of message 1, found nothing",
    ),
    ([USER, {"role": "assistant", "content": ""}], "empty text", "expected some text in message 2"),
]


@pytest.mark.parametrize("line, kind, reason", BAD_TEXT_LINES, ids=range(len(BAD_TEXT_LINES)))
def test_bad_text_lines_are_named(line, kind, reason):
    with pytest.raises(BadLine, match=reason) as caught:
        parse_line(line, "text")
    assert caught.value.kind == kind


@pytest.mark.parametrize("messages, kind, reason", BAD_CONVERSATIONS, ids=range(len(BAD_CONVERSATIONS)))
def test_bad_conversations_are_named(messages, kind, reason):
    with pytest.raises(BadLine, match=reason) as caught:
        parse_line(json.dumps({"conversations": messages}).encode(), "conversations")
    assert caught.value.kind == kind


def test_good_lines_give_their_content():
    assert parse_line(b'{"text": " a\\n", "more": 1}', "text") == " a\n"
    assert parse_line(json.dumps({"conversations": [USER, REPLY]}).encode(), "conversations") == [USER, REPLY]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda values: (
        st.lists(values, max_size=4)
        | st.dictionaries(st.sampled_from(["text", "conversations", "role", "content", "a"]), values)
    ),
    max_leaves=12,
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool", 3]), "content": JSON_VALUES}
)


def damaged(text: str, at: int, written: bytes) -> bytes:
    """A good line, cut or overwritten somewhere."""
    line = json.dumps({"text": text}).encode()
    return line[:at] + written + line[at + len(written) :]


LINES = st.one_of(
    st.binary(max_size=60),
    JSON_VALUES.map(lambda value: json.dumps(value).encode()),
    st.lists(MESSAGE, max_size=4).map(lambda messages: json.dumps({"conversations": messages}).encode()),
    st.builds(damaged, st.text(max_size=20), st.integers(0, 40), st.binary(max_size=3)),
)


@given(LINES, st.sampled_from(["text", "conversations"]))
@settings(max_examples=1000, deadline=None)
def test_any_line_is_parsed_and_encoded_or_named_as_bad(tokenizer, line, field):
    try:
        document = parse_line(line, field)
    except BadLine as error:
        assert error.kind and "expected" in str(error) and "found" in str(error) and str(error).isprintable()
        return
    ids, loss_mask, _ = encode_documents(tokenizer, [document])
    assert len(ids) == len(loss_mask) and ids[0] == BOS and (EOS, 1) in zip(ids, loss_mask)


def test_an_escape_sequence_in_a_line_is_not_repeated_raw():
    with pytest.raises(BadLine) as caught:
        parse_line(b"\x1b[2J broken", "text")
    assert str(caught.value).isprintable()


# ---- lines of a file ----


def test_lines_are_numbered_from_1_without_blank_ones_and_without_the_byte_order_mark(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\r\n \nfour\n\xef\xbb\xbffive")
    assert list(numbered_lines(path)) == [(1, b"one\r\n"), (4, b"four\n"), (5, b"\xef\xbb\xbffive")]


def test_documents_come_in_lists_of_bounded_size(tmp_path):
    path, text = tmp_path / "a.jsonl", "x" * (BATCH_BYTES // 4)
    path.write_text((json.dumps({"text": text}) + "\n") * 10)
    assert [len(documents) for documents in read_documents(path, "text", False, BadLines())] == [4, 4, 2]


def test_bad_line_stops_the_reading_with_its_place_and_the_flag_that_skips_it(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n\n{"txt": 1}\n')
    with pytest.raises(UserError, match=r'a\.jsonl:3: expected a text .*found only "txt".*--skip_bad_lines'):
        list(read_documents(path, "text", False, BadLines()))


def test_all_bad_lines_are_counted_and_the_first_are_kept_with_their_places(tmp_path):
    path, bad = tmp_path / "a.jsonl", BadLines()
    path.write_text("[]\n" * (BAD_LINES_KEPT + 5) + '{"text": "a"}\n{"text": ""}\n')
    assert list(read_documents(path, "text", True, bad)) == [["a"]]
    assert bad.kinds == {'no "text"': BAD_LINES_KEPT + 5, "empty text": 1}
    assert [number for number, _ in bad.first] == list(range(1, BAD_LINES_KEPT + 1))


def test_counts_of_bad_lines_are_told_by_kind():
    assert count_kinds({"not JSON": 2, "no reply": 1}) == "2 not JSON, 1 no reply"


@pytest.mark.parametrize(
    "content, field",
    [
        (b'broken\n{"text": ""}\n{"text": "a"}\n', "text"),
        (json.dumps({"conversations": [USER, REPLY]}).encode(), "conversations"),
        (json.dumps({"text": "", "conversations": [USER, REPLY]}).encode(), "conversations"),
    ],
)
def test_field_is_that_of_the_first_line_that_has_one(content, field, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(content)
    assert detect_field(tmp_path / "a.jsonl") == field


def test_file_without_any_field_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"txt": "a"}\n')
    with pytest.raises(UserError, match='a.jsonl: found no line with a text under "text".* or a list under'):
        detect_field(tmp_path / "a.jsonl")


# ---- what is no JSONL file ----


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"\x1f\x8b\x08", "found a gzip file: run gunzip first"),
        (b"\xfd7zXZ\x00", "found an xz file: run unxz first"),
        (b"\x28\xb5\x2f\xfd\x00", "found a zstd file: run unzstd first"),
        (b"PK\x03\x04", "found a zip file: unpack it first"),
        (b"PAR1", "found a Parquet file"),
        ("{}".encode("utf-16"), "found UTF-16 text"),
    ],
)
def test_files_of_another_format_are_named(content, reason, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=f"a.jsonl: expected a JSONL file, {reason}"):
        check_file(tmp_path / "a.jsonl")


def test_folder_in_place_of_a_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="expected a JSONL file, found a folder"):
        check_file(tmp_path)


def test_missing_file_of_the_official_data_comes_with_the_command_that_fetches_it(tmp_path):
    command = "modelscope download --dataset Harris/pretrain sft_512.jsonl --local_dir ./"
    with pytest.raises(FileNotFoundError, match=f"sft_512.jsonl not found: {command}"):
        check_file(tmp_path / "sft_512.jsonl")


def test_other_missing_file_asks_for_a_path(tmp_path):
    with pytest.raises(FileNotFoundError, match="mine.jsonl not found: pass the path of a JSONL file"):
        check_file(tmp_path / "mine.jsonl")
