"""python train_tokenizer.py

Learn the byte-level BPE (Sennrich et al. 2016, arXiv:1508.07909) from a JSONL file and write it as a Hugging Face folder.

The first ids are the control tokens and the 256 bytes, the merges follow. Text is split before merging as in Qwen2's
tokenizer, except that there is no Unicode normalization, so that decode(encode(text)) == text. Digits stay single.
However large the file, only a sample of it is read, taken evenly from its whole length.
"""

import argparse
import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from Config import run_script, write_atomically
from dataset import BYTE_OF_CHARACTER, CHAT_TEMPLATE, CONTROL_TOKENS, DEFAULT_SYSTEM, check_file, detect_kind, parse_line

# Qwen2's, so that llama.cpp knows it as tokenizer.ggml.pre = qwen2
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SAMPLE_BYTES = 2**24
SAMPLE_WINDOWS = 64
CHAT_FRAME = f"system\n{DEFAULT_SYSTEM}\nuser\nassistant\n"  # in every conversation, so worth a few tokens of its own
TEXTS_PER_CHAT_FRAME = 50
SMALLEST_VOCABULARY = len(CONTROL_TOKENS) + len(BYTE_OF_CHARACTER)


def sample_lines(path):
    """Whole lines of a file: all of them up to SAMPLE_BYTES, else those of evenly spread windows that add up to so much."""
    size = path.stat().st_size
    windows = SAMPLE_WINDOWS if size > SAMPLE_BYTES else 1
    with open(path, "rb") as file:
        for window in range(windows):
            start = window * size // windows
            file.seek(start)
            if start:
                file.readline()  # the rest of a line that began before the window
            end = start + min(size, SAMPLE_BYTES) // windows
            while file.tell() < end and (line := file.readline()):
                yield line


def texts_of(lines, kind):
    """The texts in JSONL lines, passing over bad ones: training will name them."""
    for line in lines:
        try:
            record = parse_line(line.removeprefix(b"\xef\xbb\xbf"), kind)
        except ValueError:
            continue
        if kind == "text":
            yield record
        else:
            yield from (message["content"] for message in record)


def with_chat_frames(texts):
    """The texts, and now and then what every conversation has in common: pretraining texts have none of it."""
    for number, text in enumerate(texts):
        if number % TEXTS_PER_CHAT_FRAME == 0:
            yield CHAT_FRAME
        yield text


def train_tokenizer(texts, vocab_size):
    """A `tokenizers.Tokenizer` with exactly `vocab_size` entries. Raises ValueError when the texts do not give so many."""
    if not SMALLEST_VOCABULARY < vocab_size <= 2**16:
        raise ValueError(f"--vocab_size ({vocab_size}) must be above {SMALLEST_VOCABULARY} (control tokens and bytes) and at most {2**16}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(CONTROL_TOKENS),
        initial_alphabet=list(BYTE_OF_CHARACTER),
        max_token_length=48,  # bytes
    )
    tokenizer.train_from_iterator(with_chat_frames(texts), trainer)
    # <think> and the like are shown in replies, so they are added tokens but not special ones
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS[:3]])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in CONTROL_TOKENS[3:]])
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(f"found {tokenizer.get_vocab_size()} tokens in the data, expected {vocab_size}: more data, or a smaller --vocab_size")
    return tokenizer


def save_tokenizer(tokenizer, folder, context):
    """Write tokenizer.json and tokenizer_config.json, which hold all that transformers needs."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<unk>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        "chat_template": CHAT_TEMPLATE,
    }
    about = json.dumps(about, ensure_ascii=False, indent=2) + "\n"
    write_atomically(folder / "tokenizer.json", lambda path: tokenizer.save(str(path)))
    write_atomically(folder / "tokenizer_config.json", lambda path: path.write_text(about, encoding="utf-8"))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path", default="pretrain.jsonl", help="the JSONL file to learn from (default: pretrain.jsonl)")
    parser.add_argument("--vocab_size", type=int, default=6400, help="entries, counting everything (default: 6400)")
    parser.add_argument("--out_dir", default="WeakWater_tokenizer", help="where to write it (default: WeakWater_tokenizer)")
    args = parser.parse_args(argv)
    path = check_file(args.data_path)
    kind = detect_kind(path)
    tokenizer = train_tokenizer(texts_of(sample_lines(path), kind), args.vocab_size)
    save_tokenizer(tokenizer, Path(args.out_dir), context=1024)
    sample = "".join(text for _, text in zip(range(200), texts_of(sample_lines(path), kind)))
    tokens = len(tokenizer.encode(sample).ids)
    print(f"{args.out_dir}: {args.vocab_size} tokens, {len(sample.encode()) / tokens:.2f} bytes a token, {len(sample) / tokens:.2f} characters a token")


if __name__ == "__main__":
    run_script(main)
