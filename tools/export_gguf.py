"""python tools/export_gguf.py out/distill

Write a checkpoint as model.gguf, which llama.cpp, Ollama and their relatives read: weights, tokenizer and
chat template.

Needs `pip install gguf`. The attention's queries and keys are reordered on the way: llama.cpp rotates
neighbouring pairs, Hugging Face's layout and ours the two halves of a head. Their products, and so the model,
are the same.
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np

from dataset import CHAT_TEMPLATE
from infra.checkpoint import HEAD, check_vocabulary
from infra.cli import UserError, make_parser, run_script
from infra.files import write_atomically
from infra.tokenizer import BOS, EOS, PAD, TAGS, ChatTokenizer
from model import WeakWater

MARKERS = re.compile(r"{%-?\s*(end)?generation\s*-?%}")  # of what is trained on, which few engines know


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """Each head's rows in the order 0, D/2, 1, D/2 + 1, ...: the two rows of a pair become neighbours."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def export_gguf(folder: str | Path, path: str | Path, half: bool = False) -> Path:
    """Write the checkpoint in `folder` to `path`, in float32 or, with `half`, its matrices in float16."""
    try:
        import gguf
    except ImportError:
        raise UserError("the package gguf is not installed: pip install gguf") from None
    model, tokenizer = WeakWater.from_pretrained(folder), ChatTokenizer(folder)
    check_vocabulary(folder, tokenizer)

    def write(temporary):
        writer = gguf.GGUFWriter(temporary, "llama")
        add_shape(writer, model.config, tokenizer.max_length)
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if half else gguf.LlamaFileType.ALL_F32)
        add_tokenizer(writer, tokenizer, gguf.TokenType)
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.config.num_hidden_layers)
        add_weights(writer, model, names, half)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    write_atomically(Path(path), write)
    return Path(path)


def add_shape(writer, config, trained_length: int) -> None:
    writer.add_name("WeakWater")
    writer.add_context_length(min(trained_length, config.max_position_embeddings))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)


def add_tokenizer(writer, tokenizer: ChatTokenizer, types) -> None:
    """The vocabulary with its merges; text is split as in Qwen2, which llama.cpp knows by that name."""
    stored = json.loads((tokenizer.folder / "tokenizer.json").read_text(encoding="utf-8"))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in stored["model"]["merges"]]
    special = [types.CONTROL] * (EOS + 1) + [types.USER_DEFINED] * len(TAGS)  # <think> is text, <s> is not
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([tokenizer.spelling[id] for id in range(len(tokenizer))])
    writer.add_token_types(special + [types.NORMAL] * (len(tokenizer) - len(special)))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_pad_token_id(PAD)
    writer.add_add_bos_token(False)  # the chat template writes it
    template = tokenizer.about.get("chat_template")  # or a list of named ones, of which none is ours
    writer.add_chat_template(MARKERS.sub("", template if isinstance(template, str) else CHAT_TEMPLATE))


def add_weights(writer, model: WeakWater, names, half: bool) -> None:
    """names: the package's table from Hugging Face's names to llama.cpp's."""
    config = model.config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        if name == HEAD and config.tie_word_embeddings:
            continue
        array, layer = tensor.numpy(), name.split(".")[-2]
        array = interleave(array, heads[layer]) if layer in heads else array
        array = array.astype(np.float16) if half and array.ndim == 2 else array
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), array)


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("folder", help="the checkpoint's folder")
    parser.add_argument("--out", default="", help="the file to write (default: model.gguf in that folder)")
    parser.add_argument("--half", action="store_true", help="matrices in float16, half the size")
    args = parser.parse_args(argv)
    path = export_gguf(args.folder, args.out or Path(args.folder) / "model.gguf", args.half)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    run_script(main)
