"""python train_tokenizer.py

Train a byte-level BPE (Sennrich et al. 2016, arXiv:1508.07909) on a JSONL file; write a Hugging Face folder.

The first ids are the control tokens and the 256 bytes; the merges follow. Text is split before merging as in
Qwen2's tokenizer, except that there is no Unicode normalization, so that decode(encode(text)) == text. Digits
stay single. However large the file, only a sample of it is read, taken evenly from its whole length.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from Config import LLMConfig
from dataset import CHAT_TEMPLATE, DEFAULT_SYSTEM
from infra.cli import Flags, UserError, flag, parse_args, run_script
from infra.jsonl import check_file, detect_field
from infra.text_sample import mixed_in, sample_lines, texts_of
from infra.tokenizer import BYTE_OF_CHARACTER, CONTROL_TOKENS, write_tokenizer

# Qwen2's, so that llama.cpp knows it as tokenizer.ggml.pre = qwen2
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LONGEST_TOKEN = 48  # bytes, 16 Chinese characters: without spaces, whole clauses would become tokens
# in every conversation but not in pretraining texts, so mixed into these now and then
CHAT_FRAME = f"system\n{DEFAULT_SYSTEM}\nuser\nassistant\n"
SMALLEST_VOCABULARY = len(CONTROL_TOKENS) + len(BYTE_OF_CHARACTER) + 1


@dataclass(frozen=True)
class TokenizerConfig(Flags):
    data_path: str = flag("pretrain.jsonl", "the JSONL file to learn from")
    vocab_size: int = flag(6400, "entries, counting everything", least=SMALLEST_VOCABULARY, most=2**16)
    out_dir: str = flag("WeakWater_tokenizer", "where to write it")


def train_tokenizer(texts: Iterable[str], vocab_size: int, longest_token=LONGEST_TOKEN) -> Tokenizer:
    """A tokenizer with exactly `vocab_size` entries. Raises UserError when the texts do not give so many."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(CONTROL_TOKENS),
        initial_alphabet=list(BYTE_OF_CHARACTER),
        max_token_length=longest_token,
    )
    tokenizer.train_from_iterator(mixed_in(texts, CHAT_FRAME), trainer)
    # the tags are no special tokens, so that decoding shows them
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in CONTROL_TOKENS[:3]])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in CONTROL_TOKENS[3:]])
    found = tokenizer.get_vocab_size()
    if found != vocab_size:
        advice = "more data, or a smaller --vocab_size"
        raise UserError(f"found {found} tokens in the data, expected {vocab_size}: {advice}")
    return tokenizer


save_tokenizer = partial(write_tokenizer, chat_template=CHAT_TEMPLATE)


def main(argv=None):
    config = parse_args(TokenizerConfig(), __doc__, argv)
    path = check_file(config.data_path)
    field = detect_field(path)
    tokenizer = train_tokenizer(texts_of(sample_lines(path), field), config.vocab_size)
    save_tokenizer(tokenizer, Path(config.out_dir), LLMConfig().max_position_embeddings)
    sample = "".join(text for _, text in zip(range(200), texts_of(sample_lines(path), field)))
    tokens, size = len(tokenizer.encode(sample).ids), len(sample.encode())
    each = f"{size / tokens:.2f} bytes a token, {len(sample) / tokens:.2f} characters a token"
    print(f"{config.out_dir}: {config.vocab_size} tokens, {each}")


if __name__ == "__main__":
    run_script(main)
