"""Text, ids and bytes: what the tokenizer keeps, what it can never emit, and how it is learned."""

import json
import shutil

import pytest
from conftest import VOCAB_SIZE
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from infra.cli import UserError
from infra.text_sample import SAMPLE_BYTES, mixed_in, sample_lines, texts_of
from infra.tokenizer import CONTROL_TOKENS, ChatTokenizer
from train_tokenizer import SPLIT, main, train_tokenizer

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SPELLINGS = [*CONTROL_TOKENS, "<", ">", "s", "/", "think", "answer", "\n", "user", " "]


@pytest.fixture(scope="module")
def hugging_face(tokenizer):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer.folder)


@given(ANY_TEXT)
@settings(max_examples=300, deadline=None)
def test_tokenizer_round_trip_is_lossless(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.lists(st.sampled_from(SPELLINGS)).map("".join))
@settings(max_examples=300, deadline=None)
def test_no_text_encodes_to_a_control_token(tokenizer, text):
    assert min(tokenizer.encode(text), default=99) >= len(CONTROL_TOKENS)


@given(ANY_TEXT.filter(lambda text: "<" not in text))
@settings(max_examples=200, deadline=None)
def test_text_without_tags_has_the_ids_that_transformers_gives_it(tokenizer, hugging_face, text):
    assert tokenizer.encode(text) == hugging_face.encode(text, add_special_tokens=False)


@given(st.lists(ANY_TEXT, max_size=5))
@settings(max_examples=50, deadline=None)
def test_texts_encoded_together_have_the_ids_that_they_have_alone(tokenizer, texts):
    assert tokenizer.encode_together(texts) == [tokenizer.encode(text) for text in texts]


def test_control_tokens_have_the_first_ids(hugging_face):
    assert hugging_face.convert_tokens_to_ids(list(CONTROL_TOKENS)) == list(range(7))


def test_transformers_finds_the_begin_end_and_padding_tokens(hugging_face):
    assert (hugging_face.bos_token_id, hugging_face.eos_token_id, hugging_face.pad_token_id) == (1, 2, 0)


def test_transformers_shows_reasoning_tags_when_it_skips_special_tokens(hugging_face):
    assert hugging_face.decode([1, 3, 4, 2], skip_special_tokens=True).replace(" ", "") == "<think></think>"


def test_digits_stay_single(tokenizer):
    assert [tokenizer.decode([id]) for id in tokenizer.encode("2024")] == list("2024")


def test_text_is_split_as_in_qwen2():
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    assert SPLIT == PRETOKENIZE_REGEX


def test_token_bytes_add_up_to_the_text(tokenizer):
    text = "小明有 345 个苹果。Hello!"
    assert tokenizer.token_bytes[tokenizer.encode(text)].sum() == len(text.encode())


def test_of_the_control_tokens_only_the_tags_are_text_that_a_reader_sees(tokenizer):
    assert tokenizer.decode(range(7)) == "<think></think><answer></answer>"
    assert tokenizer.token_bytes[:7].tolist() == [0, 0, 0, 7, 8, 8, 9]


def test_half_of_a_character_decodes_to_one_sign(tokenizer):
    assert tokenizer.decode(tokenizer.encode("龘")[:-1]) == "\ufffd"


def test_saved_tokenizer_splits_the_same_and_tells_its_new_length(tokenizer, tmp_path):
    tokenizer.save(tmp_path, 77)
    saved = ChatTokenizer(tmp_path)
    assert saved.fingerprint == tokenizer.fingerprint and saved.vocabulary_hash == tokenizer.vocabulary_hash
    assert saved.max_length == 77 and tokenizer.max_length == 128
    assert saved.about["chat_template"] == tokenizer.about["chat_template"]


def test_tokenizer_that_does_not_tell_its_length_sets_no_limit(tokenizer, tmp_path):
    tokenizer.save(tmp_path, None)
    assert ChatTokenizer(tmp_path).max_length > 2**31


def test_another_split_changes_the_fingerprint_but_not_the_vocabulary(tokenizer, tmp_path):
    tokenizer.save(tmp_path, 128)
    stored = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    stored["pre_tokenizer"]["pretokenizers"].pop(0)
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored), encoding="utf-8")
    other = ChatTokenizer(tmp_path)
    assert other.fingerprint != tokenizer.fingerprint
    assert other.vocabulary_hash == tokenizer.vocabulary_hash


def test_template_that_transformers_saved_beside_the_configuration_is_kept(tokenizer, hugging_face, tmp_path):
    hugging_face.save_pretrained(tmp_path)
    assert ChatTokenizer(tmp_path).about["chat_template"] == tokenizer.about["chat_template"]


def test_batches_are_padded_on_the_left(hugging_face):
    assert hugging_face.padding_side == "left"


# ---- folders that hold no tokenizer of ours ----


@pytest.mark.parametrize("missing", ["tokenizer.json", "tokenizer_config.json"])
def test_missing_file_of_a_tokenizer_is_named_with_the_script_that_makes_it(missing, tokenizer, tmp_path):
    shutil.copytree(tokenizer.folder, tmp_path / "copy")
    (tmp_path / "copy" / missing).unlink()
    with pytest.raises(FileNotFoundError, match=f"{missing} not found: run train_tokenizer.py first"):
        ChatTokenizer(tmp_path / "copy")


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"model": {"type": "BPE"}}', "null"])
def test_file_that_is_no_tokenizer_is_refused(content, tokenizer, tmp_path):
    tokenizer.save(tmp_path, 128)
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match="not a tokenizer file"):
        ChatTokenizer(tmp_path)


@pytest.mark.parametrize("length", ["1024", [1024], -1, float("nan")])
def test_length_that_is_no_number_of_tokens_is_refused(length, tokenizer, tmp_path):
    tokenizer.save(tmp_path, length)
    with pytest.raises(UserError, match="expected a number of tokens for model_max_length, found"):
        print(ChatTokenizer(tmp_path).max_length)


def test_tokenizer_that_changes_the_text_is_refused(tokenizer, tmp_path):
    tokenizer.save(tmp_path, 128)
    stored = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    stored["normalizer"] = {"type": "Lowercase"}
    stored["model"]["dropout"] = 0.1
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored), encoding="utf-8")
    with pytest.raises(UserError, match="found normalizer .*Lowercase.* and dropout 0.1, expected none"):
        ChatTokenizer(tmp_path)


def save_other(folder, special_tokens, alphabet=()):
    """A tokenizer of single characters and their merges, as others train them."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.Whitespace(), decoders.BPEDecoder()
    trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=special_tokens, initial_alphabet=alphabet)
    bpe.train_from_iterator(["一二三 abc", "一二 ab"] * 5, trainer)
    bpe.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text("{}")


def test_tokenizer_with_other_control_tokens_is_refused(tmp_path):
    save_other(tmp_path, ["<pad>", "<s>", "</s>"])
    with pytest.raises(UserError, match="expected the control tokens <unk> <s> .* as ids 0 to 6"):
        ChatTokenizer(tmp_path)


def test_unigram_tokenizer_is_refused(tmp_path):
    Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0)).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(UserError, match="expected the control tokens <unk> <s> .* as ids 0 to 6"):
        ChatTokenizer(tmp_path)


def test_tokenizer_that_is_not_byte_level_is_refused(tmp_path):
    save_other(tmp_path, list(CONTROL_TOKENS))
    with pytest.raises(UserError, match="expected a byte-level BPE with the ids 0 to"):
        ChatTokenizer(tmp_path)


# ---- how it is learned ----


def test_tokenizer_has_exactly_as_many_entries_as_asked_for(tokenizer):
    assert len(tokenizer) == VOCAB_SIZE
    assert sorted(tokenizer.spelling) == list(range(VOCAB_SIZE))


def test_every_byte_has_a_token(tokenizer):
    assert {tokenizer.bytes_of(id) for id in range(7, 7 + 256)} == {bytes([byte]) for byte in range(256)}


def test_texts_that_give_too_few_merges_are_refused():
    with pytest.raises(UserError, match=r"expected 6400: more data, or a smaller --vocab_size"):
        train_tokenizer(["短"], 6400)


def test_no_token_is_longer_than_48_bytes():
    clause = (
        "春眠不觉晓处处闻啼鸟夜来风雨声花落知多少"  # 20 characters, 60 bytes, often enough to become a token
    )
    trained = train_tokenizer([clause] * 200, 290)
    assert max(map(len, trained.get_vocab())) <= 48  # one character for each byte


def test_what_every_conversation_has_is_mixed_in_once_in_fifty_texts():
    texts = [str(number) for number in range(101)]
    found = list(mixed_in(texts, "frame"))
    assert [text for text in found if text != "frame"] == texts
    assert [place for place, text in enumerate(found) if text == "frame"] == [0, 51, 102]


def test_small_file_is_sampled_whole(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"one\ntwo\nthree")
    assert list(sample_lines(path)) == [b"one\n", b"two\n", b"three"]


def test_sample_of_a_large_file_is_bounded_and_even(tmp_path):
    path, count = tmp_path / "a.jsonl", 4 * SAMPLE_BYTES // 1000
    with open(path, "wb") as file:
        for number in range(count):
            file.write(b"%06d%s\n" % (number, b"." * 993))
    numbers = [int(line[:6]) for line in sample_lines(path)]
    assert numbers == sorted(set(numbers))
    assert 0.9 * SAMPLE_BYTES < 1000 * len(numbers) < 1.1 * SAMPLE_BYTES
    quarters = [
        sum(count * part <= 4 * number < count * (part + 1) for number in numbers) for part in range(4)
    ]
    assert max(quarters) - min(quarters) < 0.1 * len(numbers)


def test_bad_lines_are_passed_over_in_the_sample():
    lines = [b'\xef\xbb\xbf{"text": "a"}', b"broken", b'{"text": 3}', b'{"text": "b"}']
    assert list(texts_of(lines, "text")) == ["a", "b"]


def test_all_messages_of_a_conversation_are_in_the_sample():
    line = b'{"conversations": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'
    assert list(texts_of([line], "conversations")) == ["a", "b"]


def test_tokenizer_learns_from_conversations_too(data, tmp_path, capsys):
    out_dir = tmp_path / "tokenizer"
    main([f"--data_path={data['sft']}", "--vocab_size=300", f"--out_dir={out_dir}"])
    assert len(ChatTokenizer(out_dir)) == 300
    assert "300 tokens, " in capsys.readouterr().out
