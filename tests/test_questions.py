"""Questions with a known answer, from rows or from a file, and how replies to them are judged."""

import json
from functools import partial

import numpy as np
import pytest
from conftest import conversation, write_jsonl

from dataset import PackedRows, open_tokens, prompt_ids
from infra.cli import UserError
from infra.questions import first_questions, interval, judge, read_questions

REASONED = "<think>3+4=7</think>\n<answer>一共7个。</answer>"
DOCUMENTS = [
    conversation("a", "b", "c", "d"),
    conversation("长", "短" * 200),
    conversation("甲？", REASONED, system="你是老师。"),
    conversation("e", "f"),
]


def as_question(tokenizer, messages):
    """(the prompt's ids, the reply) of a conversation's first question."""
    first = [message["role"] for message in messages].index("assistant")
    return prompt_ids(tokenizer, messages[:first]), messages[first]["content"]


@pytest.fixture
def path(tmp_path):
    return write_jsonl(tmp_path / "a.jsonl", [{"conversations": messages} for messages in DOCUMENTS])


def test_first_questions_of_rows_are_those_that_fit_a_row_with_their_reply(path, tokenizer):
    rows = PackedRows(open_tokens(path, tokenizer, "conversations"), np.arange(4), 200)
    expected = [as_question(tokenizer, DOCUMENTS[number]) for number in (0, 2, 3)]
    assert first_questions(rows, 2) == expected[:2]
    assert first_questions(rows, 99) == expected


def test_questions_come_from_the_documents_of_the_rows_alone(path, tokenizer):
    rows = PackedRows(open_tokens(path, tokenizer, "conversations"), np.array([3]), 200)
    assert first_questions(rows, 9) == [as_question(tokenizer, DOCUMENTS[3])]


def test_questions_of_a_file_are_the_first_of_each_conversation(path, tokenizer):
    expected = [as_question(tokenizer, messages) for messages in DOCUMENTS]
    assert read_questions(path, partial(prompt_ids, tokenizer)) == expected


def test_conversation_that_begins_with_the_reply_asks_with_the_system_message_alone(path, tokenizer):
    write_jsonl(path, [{"conversations": [{"role": "assistant", "content": "你好"}]}])
    rows = PackedRows(open_tokens(path, tokenizer, "conversations"), np.arange(1), 200)
    assert read_questions(path, partial(prompt_ids, tokenizer)) == first_questions(rows, 1)


def test_bad_line_of_questions_is_named_with_its_place(path):
    path.write_text(json.dumps({"conversations": DOCUMENTS[0]}) + '\n\n{"text": "a"}\n')
    with pytest.raises(UserError, match='a.jsonl:3: expected a list under "conversations"'):
        read_questions(path, len)


def test_file_without_questions_is_refused(path):
    path.write_text("\n")
    with pytest.raises(UserError, match="a.jsonl: expected conversations, found an empty file"):
        read_questions(path, len)


def test_missing_file_of_questions_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.jsonl not found"):
        read_questions(tmp_path / "nowhere.jsonl", len)


def test_replies_are_judged_in_the_order_of_the_questions():
    questions = [([1], REASONED), ([2], "一共8个。"), ([3], "9")]
    replies = ["一共7个。", REASONED, "<think>9</think><answer>9</answer>"]
    verdicts = judge(replies, questions)
    assert [verdict["reply"] for verdict in verdicts] == replies
    assert [verdict["is_right"] for verdict in verdicts] == [True, False, True]
    assert [verdict["is_well_formed"] for verdict in verdicts] == [False, True, True]


def test_replies_without_their_question_are_a_bug():
    with pytest.raises(ValueError):
        judge(["a"], [])


def test_interval_is_the_one_worked_out_by_hand():
    # 50 of 100: the middle stays, half is 1.96 sqrt(0.25/100 + 1.96^2/40000) / (1 + 1.96^2/100) = 0.09617
    assert interval(0.5, 100) == [0.4038, 0.5962]
    assert interval(0.0, 10)[0] == 0 and interval(1.0, 10)[1] == 1
