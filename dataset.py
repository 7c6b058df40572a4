"""From JSONL to rows of tokens; run as a script, a look at the loss mask.

    python dataset.py --show sft_512.jsonl

One line of a file is one *document*: {"text": "..."} for pretraining, {"conversations": [{"role", "content"},
...]} for SFT and distillation. A file is tokenized once, into a cache of memory-mapped arrays; documents are
then packed into *rows* of T positions. Each position holds a token, its *label* (the next token of the same
document), the label's *loss weight*, and the number of its document, or of its *segment* of a long text, in
the row (0 for padding): attention keeps these apart.
"""

import re
from collections.abc import Iterable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import default_collate

from Config import SHORTEST_ROW, TrainConfig
from infra.cli import UserError, make_parser, run_script
from infra.jsonl import check_file, detect_field
from infra.lens import show
from infra.packing import cut, hash_arrays, hold_out, pack
from infra.token_cache import TokenCache, open_cache
from infra.tokenizer import BOS, EOS, PAD, TAGS, ChatTokenizer

DEFAULT_SYSTEM = "你是 WeakWater，一个从零训练的中文小语言模型。"
CHAT_TEMPLATE = (  # Jinja, for other programs: the ids of `render`, what counts marked as generation
    "{%- if messages[0]['role'] != 'system' %}{{ '<s>system\\n" + DEFAULT_SYSTEM + "</s>\\n' }}{% endif %}"
    "{%- for message in messages %}{%- set content = message['content'] or '' %}"
    "{%- if content is not string %}{%- set content = content | map(attribute='text') | join %}{% endif %}"
    "{%- set ended = (content | trim) + '</s>' %}{{ '<s>' + message['role'] + '\\n' }}"
    "{%- if message['role'] == 'assistant' %}{% generation %}{{ ended }}{% endgeneration %}"
    "{%- else %}{{ ended }}{% endif %}{{ '\\n' }}"
    "{% endfor %}{%- if add_generation_prompt %}{{ '<s>assistant\\n' }}{% endif %}"
)
TAG_PATTERN = re.compile("(" + "|".join(TAGS) + ")")
IGNORED, COUNTED, TAG = 0, 1, 2  # loss mask: what a token is in the loss; PackedRows makes loss weights of it
# the version in the cache's key: raise it whenever `render` changes its output
ENCODER = f"4 {DEFAULT_SYSTEM}"


def render(document: str | list[dict]) -> list[tuple[str | int, int]]:
    """A text, or a list of messages, as a list of (text or control id, loss mask).

    Each message is `<s>role\\ncontent</s>\\n`, after a default system message if there is none. The loss mask
    arises here, where the role is known; nothing is searched for later. In a reply, the four reasoning tags
    become control ids; any other text that spells a control token stays text.

    "你好" -> [(BOS, 0), ("你好", 1), (EOS, 1)]
    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "<think>Hm</think>"}] ->
        [(BOS, 0), ("system\\n你是…", 0), (EOS, 0), ("\\n", 0), (BOS, 0), ("user\\nHi", 0), (EOS, 0),
         ("\\n", 0), (BOS, 0), ("assistant\\n", 0), (3, 2), ("Hm", 1), (4, 2), (EOS, 1), ("\\n", 0)]
    """
    if isinstance(document, str):
        return [(BOS, IGNORED), (document, COUNTED), (EOS, COUNTED)]
    if not document or document[0]["role"] != "system":
        document = [{"role": "system", "content": DEFAULT_SYSTEM}, *document]
    parts = []
    for message in document:
        role, content = message["role"], message["content"].strip()
        parts.append((BOS, IGNORED))
        if role == "assistant":
            parts.append(("assistant\n", IGNORED))
            for piece in filter(None, TAG_PATTERN.split(content)):
                parts.append((TAGS[piece], TAG) if piece in TAGS else (piece, COUNTED))
        else:
            parts.append((f"{role}\n{content}", IGNORED))
        parts += [(EOS, COUNTED if role == "assistant" else IGNORED), ("\n", IGNORED)]
    return parts


def encode_documents(tokenizer: ChatTokenizer, documents: list) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ids, loss_mask, lengths), integers: documents of 3 and 5 tokens -> ids (8), loss_mask (8), [3, 5].

    Each part is encoded by itself, so that no token reaches from a prompt into a reply; equal ones only once.
    """
    rendered = [render(document) for document in documents]
    parts = [part for document in rendered for part in document]
    texts = list({text for text, _ in parts if isinstance(text, str)})
    ids_of = dict(zip(texts, tokenizer.encode_together(texts)))
    ids_of_parts = [ids_of[text] if isinstance(text, str) else [text] for text, _ in parts]
    sizes = np.fromiter(map(len, ids_of_parts), np.int32, len(parts))  # tokens of each part
    ids = np.fromiter(chain.from_iterable(ids_of_parts), np.int32, sizes.sum())
    loss_mask = np.repeat(np.fromiter((mask for _, mask in parts), np.int32, len(parts)), sizes)
    first_parts = np.cumsum([0, *map(len, rendered[:-1])])  # of each document
    return ids, loss_mask, np.add.reduceat(sizes, first_parts)


def prompt_ids(tokenizer: ChatTokenizer, messages: list[dict]) -> list[int]:
    """Ids of a conversation that the assistant is to continue, ending in `<s>assistant\\n`."""
    return encode_documents(tokenizer, [messages])[0].tolist() + [BOS, *tokenizer.encode("assistant\n")]


class Batch(NamedTuple):
    """A row, each field (T), or a micro-batch, each field (B, T)."""

    input_ids: torch.Tensor
    labels: torch.Tensor
    loss_weights: torch.Tensor
    document_ids: torch.Tensor  # 1, 2, ... within a row; 0 is padding

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(tensor.to(device, non_blocking=device.type == "cuda") for tensor in self))


class PackedRows(torch.utils.data.Dataset):
    """Documents packed into rows of `row_length` (T) positions: lengths 6, 5, 3, 2 -> rows of 8: 6 2, 5 3.

    A text longer than a row is cut into *segments* that together have each of its labels once. A conversation
    longer than a row is truncated or left out (`truncated`). Memory: 20 bytes a document, 16 a segment.
    """

    def __init__(self, cache: TokenCache, documents: np.ndarray, row_length: int, seed=0, tag_weight=1.0):
        self.cache, self.documents, self.row_length = cache, documents, row_length
        self.weight_of_mask = np.array([0.0, 1.0, tag_weight], dtype=np.float32)
        self.truncated = 0
        # 2**20 documents at a time: the 64-bit numbers on the way would take several times the memory
        parts = [self.segments(documents[begin : begin + 2**20]) for begin in range(0, len(documents), 2**20)]
        self.starts, self.lengths = (np.concatenate(arrays) for arrays in zip(*parts))
        if not len(self.starts):
            found = f"none of {len(documents)} documents has a token of the loss within --max_seq_len"
            raise UserError(f"{cache.about['file']}: {found} ({row_length})")
        self.order, self.first_segment = pack(self.lengths, row_length, seed)
        self.useful = int(self.lengths.sum())  # positions that are not padding
        self.fingerprint = hash_arrays(self.starts, self.lengths, self.order, self.first_segment)

    def segments(self, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(starts, lengths) in the cache of the segments of some documents."""
        starts, ends = self.cache.spans(documents)
        lengths = ends - starts - 1  # positions: the last token is only a label
        if self.cache.about["source"]["field"] == "text":
            return cut(starts, lengths, self.row_length)
        self.truncated += int(np.count_nonzero(lengths > self.row_length))
        lengths = np.minimum(lengths, self.row_length).astype(np.int32)
        teaches = self.cache.first_counted[documents] <= lengths  # the labels are tokens 1 to length
        return starts[teaches], lengths[teaches]

    def __len__(self):
        return len(self.first_segment) - 1

    def __getitem__(self, row: int) -> Batch:
        segments = self.order[self.first_segment[row] : self.first_segment[row + 1]]
        return make_row(map(self.segment, segments), self.row_length)

    def segment(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids, loss weights), both one longer than the segment: its last token is only a label."""
        start = int(self.starts[number])
        end = start + int(self.lengths[number]) + 1
        return self.cache.ids[start:end], self.weight_of_mask[self.cache.loss_mask[start:end]]

    @property
    def padding_share(self) -> float:
        return 1 - self.useful / (len(self) * self.row_length)


def make_row(segments: Iterable[tuple[np.ndarray, np.ndarray]], row_length: int) -> Batch:
    """A row of segments, each (ids (N + 1), loss weights (N + 1)): N tokens and N labels."""
    row, position = empty_row(row_length), 0
    for number, (ids, loss_weights) in enumerate(segments, 1):
        end = position + len(ids) - 1
        for tensor, value in zip(row, (ids[:-1], ids[1:], loss_weights[1:], number)):
            tensor.numpy()[position:end] = value  # numpy() shares the tensor's memory
        position = end
    return row


def empty_row(row_length: int) -> Batch:
    """A row of padding."""
    ids, labels, document_ids = (torch.full((row_length,), PAD) for _ in range(3))
    return Batch(ids, labels, torch.zeros(row_length), document_ids)


def collate_rows(batch: list[Batch], rows: int, row_length: int) -> Batch:
    """Rows -> a micro-batch of exactly `rows` rows: rows of padding take the place of missing ones."""
    return default_collate(batch + [empty_row(row_length)] * (rows - len(batch)))


open_tokens = partial(open_cache, encode=encode_documents, encoder=ENCODER)


def load_rows(config: TrainConfig, tokenizer: ChatTokenizer, field: str) -> tuple[PackedRows, PackedRows]:
    """(rows to learn from, rows to validate on); without a val_path, a slice of the data is held out.

    In validation rows each token of the loss weighs 1, as perplexity and bits per byte ask for.
    """
    how = {"skip_bad_lines": config.skip_bad_lines, "cache_dir": config.cache_dir, "keep": not config.dry_run}
    cache = open_tokens(config.data_path, tokenizer, field, **how)
    if config.val_path:
        val_cache = open_tokens(config.val_path, tokenizer, field, **how)
        documents, val_documents = np.arange(len(cache), dtype=np.int32), np.arange(len(val_cache))
    else:
        if len(cache) < 2:
            found = "found 1 document, expected at least 2 (one is held out): or pass --val_path"
            raise UserError(f"{config.data_path}: {found}")
        val_cache, (documents, val_documents) = cache, hold_out(cache.ends, config.seed)
    rows = PackedRows(cache, documents, config.max_seq_len, config.seed, config.tag_weight)
    return rows, PackedRows(val_cache, val_documents, config.max_seq_len, config.seed)


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("--show", metavar="FILE", required=True, help="the JSONL file to look at")
    parser.add_argument("--tokenizer", default="WeakWater_tokenizer", help="the tokenizer's folder")
    parser.add_argument("--max_seq_len", type=int, default=512, help="tokens in one row (default: 512)")
    parser.add_argument("--count", type=int, default=3, help="documents to print (default: 3)")
    args = parser.parse_args(argv)
    if args.max_seq_len < SHORTEST_ROW:
        raise UserError(f"--max_seq_len ({args.max_seq_len}) must be at least {SHORTEST_ROW}")
    tokenizer, path = ChatTokenizer(args.tokenizer), check_file(Path(args.show))
    field = detect_field(path)
    cache = open_tokens(path, tokenizer, field, skip_bad_lines=True, keep=False)
    # only conversations are cut off: the segments of a text lose nothing
    cut_at = args.max_seq_len if field == "conversations" else len(cache.ids)
    show(PackedRows(cache, np.arange(len(cache)), args.max_seq_len), args.count, cut_at)


if __name__ == "__main__":
    run_script(main)
