"""The cache of a tokenized file: what it holds, when it is made anew, what it leaves behind."""

import json
import os
import pickle
import shutil
import time
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import conversation, write_jsonl
from filelock import FileLock

from dataset import encode_documents, open_tokens
from infra.cli import UserError
from infra.jsonl import BATCH_BYTES
from infra.token_cache import DTYPES, one_ahead, open_cache
from infra.tokenizer import ChatTokenizer

DOCUMENTS = [
    conversation("你好", "你好！"),
    conversation("小明3个，小红4个？", "<think>3+4=7</think>\n<answer>一共7个。</answer>"),
    conversation("a", "b", "c", "d", system="你是老师。"),
]


@pytest.fixture
def path(tmp_path):
    return write_jsonl(tmp_path / "a.jsonl", [{"text": "一"}, {"text": "二"}])


def caches(folder):
    return sorted(folder.glob("*.cache"))


def other_tokenizer(tokenizer, folder):
    """The same vocabulary, other ids for the same text."""
    tokenizer.save(folder, 128)
    stored = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    stored["pre_tokenizer"]["pretokenizers"].pop(0)
    (folder / "tokenizer.json").write_text(json.dumps(stored), encoding="utf-8")
    return ChatTokenizer(folder)


# ---- what it holds ----


def test_cache_holds_every_document_as_encoded(tokenizer, tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"conversations": messages} for messages in DOCUMENTS])
    cache = open_tokens(path, tokenizer, "conversations")
    assert len(cache) == len(DOCUMENTS)
    for number, messages in enumerate(DOCUMENTS):
        ids, loss_mask, _ = encode_documents(tokenizer, [messages])
        found, found_mask = cache.document(number)
        assert found.tolist() == ids.tolist() and found_mask.tolist() == loss_mask.tolist()
        assert cache.first_counted[number] == np.flatnonzero(loss_mask)[0]


def encode_bytes(tokenizer, documents):
    """An encoder whose ids are the bytes of a text, the last two of which count."""
    ids = [np.frombuffer(text.encode(), np.uint8).astype(np.int32) for text in documents]
    loss_mask = [np.where(np.arange(len(text)) < len(text) - 2, 0, 1) for text in ids]
    return np.concatenate(ids), np.concatenate(loss_mask), np.array([len(text) for text in ids])


def test_cache_of_several_batches_of_lines_has_one_run_of_tokens(tokenizer, tmp_path):
    texts = [str(number) * (BATCH_BYTES // 3 + number) for number in range(7)]  # three of them fill a batch
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    cache = open_cache(path, tokenizer, "text", encode_bytes, "1")
    assert [cache.document(number)[0].astype(np.uint8).tobytes().decode() for number in range(7)] == texts
    assert cache.first_counted.tolist() == [len(text) - 2 for text in texts]
    starts, ends = cache.spans(np.array([6, 0]))
    assert starts.tolist() == [cache.ends[5], 0] and ends.tolist() == [cache.ends[6], cache.ends[0]]


def test_memory_does_not_grow_with_the_file(tokenizer, tmp_path):
    lines = [{"text": str(number) * (BATCH_BYTES // 10)} for number in range(10, 210)]  # 40 batches
    path = write_jsonl(tmp_path / "a.jsonl", lines)
    encode = lambda tokenizer, documents: encode_bytes(tokenizer, ["ab"] * len(documents))
    del lines
    tracemalloc.start()
    try:
        cache = open_cache(path, tokenizer, "text", encode, "1")
        assert len(cache) == 200 and tracemalloc.get_traced_memory()[1] < 8 * BATCH_BYTES
    finally:
        tracemalloc.stop()


def test_cache_reaches_another_process_as_the_path_of_its_files(tokenizer, path):
    cache = open_tokens(path, tokenizer, "text")
    dumped = pickle.dumps(cache.__reduce__()[1][0])
    assert len(dumped) < 1000
    function, arguments = cache.__reduce__()
    assert function(*arguments).ids.tolist() == cache.ids.tolist()


def test_results_of_one_ahead_come_in_the_order_of_the_items():
    items = [0.02, 0.0, 0.01, 0.0]
    assert list(one_ahead(lambda seconds: (time.sleep(seconds), seconds)[1], items)) == items
    assert list(one_ahead(str, [])) == []


def test_error_of_one_ahead_is_raised_and_not_swallowed():
    with pytest.raises(ZeroDivisionError):
        list(one_ahead(lambda item: 1 / item, [1, 0]))


# ---- when it is made anew ----


def test_cache_is_reused(tokenizer, path):
    made = (open_tokens(path, tokenizer, "text").folder / "ids.bin").stat().st_mtime_ns
    assert (open_tokens(path, tokenizer, "text").folder / "ids.bin").stat().st_mtime_ns == made


def test_changed_file_gets_a_new_cache_and_its_old_one_is_removed(tokenizer, path):
    old = open_tokens(path, tokenizer, "text").folder
    write_jsonl(path, [{"text": "一"}, {"text": "二"}, {"text": "三"}])
    new = open_tokens(path, tokenizer, "text")
    assert len(new) == 3 and caches(path.parent) == [new.folder] != [old]


def test_old_cache_of_a_linked_file_is_removed(tokenizer, path, tmp_path):
    link = tmp_path / "linked.jsonl"
    link.symlink_to(path)
    open_tokens(link, tokenizer, "text")
    write_jsonl(path, [{"text": "三"}])
    new = open_tokens(link, tokenizer, "text").folder
    assert caches(tmp_path) == [new]


def test_what_a_killed_process_left_is_removed_though_the_file_has_changed(tokenizer, path):
    left, other = (path.with_name(f"{name}.jsonl.{'0' * 16}.cache.tmp") for name in "ab")
    left.mkdir(), other.mkdir()
    open_tokens(path, tokenizer, "text")
    assert not left.exists() and other.exists()


def test_file_of_the_same_size_written_later_gets_a_new_cache(tokenizer, path):
    before = open_tokens(path, tokenizer, "text").ids.tolist()
    write_jsonl(path, [{"text": "三"}, {"text": "四"}])
    os.utime(path, ns=(1, 2_000_000_000))
    assert open_tokens(path, tokenizer, "text").ids.tolist() != before
    assert len(caches(path.parent)) == 1


def test_newer_encoder_replaces_the_cache_of_the_older_one(tokenizer, path):
    for version in ("1", "2"):
        cache = open_cache(path, tokenizer, "text", encode_documents, version)
        assert caches(path.parent) == [cache.folder]


def test_cache_whose_source_is_unknown_is_removed_beside_a_rebuilt_one(tokenizer, path):
    earlier = path.with_name("a.jsonl.0123456789abcdef.cache")
    earlier.mkdir()
    (earlier / "about.json").write_text('{"file": "a.jsonl", "tokens": 3, "sha256": "0"}')
    new = open_tokens(path, tokenizer, "text").folder
    assert caches(path.parent) == [new]


@pytest.mark.parametrize("name", ["a.jsonl.mine.cache", "a.jsonl.0123456789abcdef.cache"])
@pytest.mark.parametrize("about", ['{"mine": 1}', "[]"])
def test_folder_that_is_no_cache_of_ours_stays(name, about, tokenizer, path):
    (path.parent / name).mkdir()
    (path.parent / name / "about.json").write_text(about)
    open_tokens(path, tokenizer, "text")
    assert (path.parent / name / "about.json").read_text() == about


@pytest.mark.parametrize("size", [0, 1, 4])
def test_cache_that_lost_tokens_is_named(size, tokenizer, path):
    ids = open_tokens(path, tokenizer, "text").folder / "ids.bin"
    ids.write_bytes(ids.read_bytes()[:size])
    with pytest.raises(UserError, match="not a whole cache of tokens .*delete it"):
        open_tokens(path, tokenizer, "text")


def test_cache_for_another_tokenizer_stays(tokenizer, path, tmp_path):
    (tmp_path / "other").mkdir()
    other = other_tokenizer(tokenizer, tmp_path / "other")
    kept = open_tokens(path, other, "text").folder
    here = open_tokens(path, tokenizer, "text").folder
    assert caches(path.parent) == sorted([kept, here])


def test_cache_of_another_field_stays(tokenizer, tmp_path):
    both = [{"text": "一", "conversations": messages} for messages in DOCUMENTS]
    path = write_jsonl(tmp_path / "a.jsonl", both)
    kept = open_tokens(path, tokenizer, "text").folder
    here = open_tokens(path, tokenizer, "conversations").folder
    assert caches(tmp_path) == sorted([kept, here])


def test_cache_of_a_file_of_the_same_name_elsewhere_stays(tokenizer, path, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    shared = tmp_path / "caches"
    namesake = write_jsonl(tmp_path / "elsewhere" / path.name, [{"text": "三"}])
    kept = open_tokens(namesake, tokenizer, "text", cache_dir=shared).folder
    here = open_tokens(path, tokenizer, "text", cache_dir=shared).folder
    assert caches(shared) == sorted([kept, here]) and not caches(tmp_path)


def test_cache_of_a_file_whose_name_begins_alike_stays(tokenizer, path):
    longer = write_jsonl(path.with_name("a.jsonl.more.jsonl"), [{"text": "三"}])
    kept = open_tokens(longer, tokenizer, "text").folder
    here = open_tokens(path, tokenizer, "text").folder
    assert caches(path.parent) == sorted([kept, here])


def test_superseded_cache_is_found_for_a_name_with_brackets(tokenizer, tmp_path):
    path = write_jsonl(tmp_path / "a[1].jsonl", [{"text": "一"}])
    open_tokens(path, tokenizer, "text")
    write_jsonl(path, [{"text": "一二"}])
    new = open_tokens(path, tokenizer, "text").folder
    assert caches(tmp_path) == [new]


def test_cache_goes_where_it_is_told(tokenizer, path, tmp_path):
    cache = open_tokens(path, tokenizer, "text", cache_dir=tmp_path / "some" / "where")
    assert cache.folder.parent == tmp_path / "some" / "where" and not caches(tmp_path)


# ---- what it leaves behind ----


def test_only_the_cache_is_left_beside_the_file(tokenizer, path):
    folder = open_tokens(path, tokenizer, "text").folder
    assert sorted(path.parent.iterdir()) == sorted([path, folder])
    assert sorted(file.name for file in folder.iterdir()) == sorted(
        ["about.json", *(f"{n}.bin" for n in DTYPES)]
    )


def test_cache_that_is_not_kept_leaves_nothing(tokenizer, path):
    cache = open_tokens(path, tokenizer, "text", keep=False)
    assert len(cache) == 2 and len(list(path.parent.iterdir())) == 2
    del cache
    assert list(path.parent.iterdir()) == [path]


def test_cache_that_is_there_already_is_used_and_stays_where_none_is_to_be_kept(tokenizer, path):
    folder = open_tokens(path, tokenizer, "text").folder
    cache = open_tokens(path, tokenizer, "text", keep=False)
    assert cache.folder == folder
    del cache
    assert caches(path.parent) == [folder]


def test_cache_that_a_killed_process_left_half_done_is_made_anew(tokenizer, path):
    folder = open_tokens(path, tokenizer, "text").folder
    whole = {file.name: file.read_bytes() for file in folder.iterdir()}
    half = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(folder)
    half.mkdir()
    (half / "ids.bin").write_bytes(b"half")
    again = open_tokens(path, tokenizer, "text").folder
    assert {file.name: file.read_bytes() for file in again.iterdir()} == whole
    assert not half.exists()


def test_cache_that_lost_its_end_in_a_power_cut_is_named(tokenizer, path):
    (open_tokens(path, tokenizer, "text").folder / "about.json").write_text("")
    with pytest.raises(UserError, match="a.jsonl.*cache: not a whole cache of tokens .*delete it"):
        open_tokens(path, tokenizer, "text")


def test_folder_that_cannot_be_locked_is_named(tokenizer, path, monkeypatch):
    def refuse(lock, **more):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with pytest.raises(UserError, match="a.jsonl.lock cannot be locked .*No locks available.*--cache_dir"):
        open_tokens(path, tokenizer, "text")
    assert list(path.parent.iterdir()) == [path]


# ---- files that cannot be used ----


def test_a_bad_line_stops_with_its_place_and_leaves_nothing(tokenizer, path):
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n\r\n{"text": 1}\n{"text": "two"}')
    with pytest.raises(UserError, match=r'a.jsonl:3: expected a text under "text".*--skip_bad_lines'):
        open_tokens(path, tokenizer, "text")
    assert [file for file in path.parent.iterdir() if file.suffix in (".cache", ".tmp")] == []


def test_bad_lines_are_skipped_and_told_of_with_their_places(tokenizer, path):
    path.write_bytes(b'{"text": "one"}\n\n{"text": 1}\nbroken\n{"text": "two"}')
    cache = open_tokens(path, tokenizer, "text", skip_bad_lines=True)
    assert len(cache) == 2 and cache.about["bad_kinds"] == {'no "text"': 1, "not JSON": 1}
    assert [number for number, _ in cache.about["bad_lines"]] == [3, 4]


def test_cache_made_while_skipping_does_not_hide_the_bad_line(tokenizer, path):
    path.write_bytes(b'{"text": "one"}\n{"text": 1}\n')
    open_tokens(path, tokenizer, "text", skip_bad_lines=True)
    with pytest.raises(UserError, match="a.jsonl:2: .*--skip_bad_lines"):
        open_tokens(path, tokenizer, "text")


def test_a_line_of_megabytes_is_a_document_like_any_other(tokenizer, path):
    long = "长，" * (BATCH_BYTES // 6 + 1)  # more than is read together
    cache = open_tokens(write_jsonl(path, [{"text": "好"}, {"text": long}]), tokenizer, "text")
    assert tokenizer.decode(cache.document(1)[0].tolist()) == long


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "found an empty file"),
        (b"\n\n", "found an empty file"),
        (b"1\n2", r"found no good line \(2 no \"text\"\)"),
    ],
)
def test_file_without_a_document_is_named(content, reason, tokenizer, path):
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"a.jsonl: expected .*{reason}"):
        open_tokens(path, tokenizer, "text", skip_bad_lines=True)
    assert not caches(path.parent)


def test_vocabulary_that_ids_of_16_bits_cannot_hold_is_refused(path):
    class Large(SimpleNamespace):
        def __len__(self):
            return 2**16 + 1

    with pytest.raises(UserError, match="big: found 65537 tokens, the cache holds ids below 65536"):
        open_tokens(path, Large(folder="big"), "text")
