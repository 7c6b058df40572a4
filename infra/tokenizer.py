"""Text, token ids and bytes: the byte-level BPE of a tokenizer folder."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from infra.cli import UserError
from infra.files import write_atomically, write_json

CONTROL_TOKENS = ("<unk>", "<s>", "</s>", "<think>", "</think>", "<answer>", "</answer>")  # ids 0 to 6
PAD, BOS, EOS = 0, 1, 2
TAGS = {text: id for id, text in enumerate(CONTROL_TOKENS) if id > EOS}


def byte_alphabet() -> dict[str, int]:
    """The byte for which each character of byte-level BPE stands (Radford et al. 2019)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]  # these stand for themselves
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTE_OF_CHARACTER = byte_alphabet()


class ChatTokenizer:
    """A tokenizer that no text can make emit a control token.

    Raises FileNotFoundError where there is no tokenizer, UserError where it is not one of ours.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        path = self.folder / "tokenizer.json"
        for needed in (path, self.folder / "tokenizer_config.json"):
            if not needed.is_file():
                raise FileNotFoundError(
                    f"{needed} not found: run train_tokenizer.py first, or pass --tokenizer"
                )
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            # without added tokens, the text `<s>` is three characters like any others
            bare = {**stored, "added_tokens": [], "padding": None, "truncation": None}
            self.bpe = Tokenizer.from_str(json.dumps(bare, sort_keys=True))
            vocabulary = stored["model"]["vocab"]
            self.about = dict(json.loads((self.folder / "tokenizer_config.json").read_text(encoding="utf-8")))
            if (template := self.folder / "chat_template.jinja").is_file():  # as transformers 5 saves it
                self.about["chat_template"] = template.read_text(encoding="utf-8")
        except Exception as error:  # the tokenizers library raises bare Exception
            raise UserError(
                f"{path}, or tokenizer_config.json beside it: not a tokenizer file ({error})"
            ) from None
        control_ids = list(range(len(CONTROL_TOKENS)))  # the vocabulary of a Unigram is a list
        if not isinstance(vocabulary, dict) or [*map(vocabulary.get, CONTROL_TOKENS)] != control_ids:
            tokens = " ".join(CONTROL_TOKENS)
            raise UserError(
                f"{path}: expected the control tokens {tokens} as ids 0 to {len(CONTROL_TOKENS) - 1}"
            )
        changing = {"normalizer": stored.get("normalizer"), "dropout": stored["model"].get("dropout")}
        if found := [f"{name} {str(value)[:40]}" for name, value in changing.items() if value]:
            expected = "expected none: a text's ids would not be its own"
            raise UserError(f"{path}: found {' and '.join(found)}, {expected}")
        self.fingerprint = short_hash(bare)  # of how text is split
        self.vocabulary_hash = short_hash(vocabulary)  # of what the ids mean
        self.spelling = {id: token for token, id in vocabulary.items()}  # one character for each byte
        try:
            self.token_bytes = np.array([len(self.bytes_of(id)) for id in range(len(vocabulary))])
        except KeyError:
            last = len(vocabulary) - 1
            raise UserError(f"{path}: expected a byte-level BPE with the ids 0 to {last}") from None

    def __len__(self):
        return len(self.token_bytes)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, none of them a control token."""
        return self.bpe.encode(text, add_special_tokens=False).ids

    def encode_together(self, texts: list[str]) -> list[list[int]]:
        """`encode` of many texts, on all cores."""
        return [encoding.ids for encoding in self.bpe.encode_batch_fast(texts, add_special_tokens=False)]

    def bytes_of(self, id: int) -> bytes:
        """A token's UTF-8 bytes, which may end within a character; of control tokens, only tags have any."""
        if id < len(CONTROL_TOKENS):
            return CONTROL_TOKENS[id].encode() if id > EOS else b""
        return bytes(BYTE_OF_CHARACTER[character] for character in self.spelling[id])

    def decode(self, ids: list[int]) -> str:
        """The text of ids. Invalid UTF-8 becomes U+FFFD."""
        return b"".join(map(self.bytes_of, ids)).decode("utf-8", "replace")

    @property
    def max_length(self) -> int:
        """Tokens that the checkpoint beside the tokenizer was trained to see together."""
        length = self.about.get("model_max_length") or sys.maxsize
        if not isinstance(length, int | float) or not length >= 1:
            where = self.folder / "tokenizer_config.json"
            raise UserError(f"{where}: expected a number of tokens for model_max_length, found {length!r}")
        return int(min(length, sys.maxsize))

    def save(self, folder: Path, max_length: int) -> None:
        """Write the tokenizer's files into a checkpoint's folder, with the length that it is good for."""
        about = {**self.about, "model_max_length": max_length}
        stored = (self.folder / "tokenizer.json").read_bytes()
        write_atomically(folder / "tokenizer.json", lambda path: path.write_bytes(stored))
        write_json(folder / "tokenizer_config.json", about)


def short_hash(value) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def write_tokenizer(tokenizer: Tokenizer, folder: Path, context: int, chat_template: str) -> None:
    """Write tokenizer.json and tokenizer_config.json, which hold all that transformers needs."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "tokenizer.json", lambda path: tokenizer.save(str(path)))
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": CONTROL_TOKENS[BOS],
        "eos_token": CONTROL_TOKENS[EOS],
        "unk_token": CONTROL_TOKENS[PAD],
        "pad_token": CONTROL_TOKENS[PAD],
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        "padding_side": "left",  # replies to a batch of prompts begin where the prompts end
        "chat_template": chat_template,
    }
    write_json(folder / "tokenizer_config.json", about)
