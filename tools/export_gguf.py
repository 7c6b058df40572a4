"""python tools/export_gguf.py out/distill --type q8_0

Write a checkpoint as model.gguf, which llama.cpp, Ollama and their relatives read: weights, tokenizer and
chat template. Beside it goes model.Modelfile, for Ollama. Where llama-cpp-python is installed, its ids,
logits and greedy replies are then compared with the checkpoint's.

Needs `pip install gguf`. The attention's queries and keys are reordered on the way: llama.cpp rotates
neighbouring pairs, Hugging Face's layout and ours the two halves of a head. Their products, and so the model,
are the same.
"""

import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np

from dataset import CHAT_TEMPLATE
from infra.checkpoint import EMBEDDING, HEAD, check_vocabulary, find_checkpoint, promised_context
from infra.cli import UserError, make_parser, run_script
from infra.files import write_atomically
from infra.tokenizer import BOS, EOS, PAD, TAGS, ChatTokenizer
from model import WeakWater
from tools.gguf_proof import prove
from tools.modelfile import write_modelfile

MARKERS = re.compile(r"{%-?\s*(end)?generation\s*-?%}")  # of what is trained on, which few engines know
TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")  # those that the package gguf writes
BLOCK = 32  # neighbours in a row of a matrix, which share a scale in the types that begin with q


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """Each head's rows in the order 0, D/2, 1, D/2 + 1, ...: the two rows of a pair become neighbours."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def export_gguf(folder: str | Path, path: str | Path, matrix_type: str = "f32") -> Path:
    """Write the checkpoint in `folder` to `path`, its matrices in one of TYPES. Raises FileNotFoundError if
    there is none."""
    folder = find_checkpoint([folder], "expected the folder of a checkpoint, such as out/SFT")
    try:
        import gguf
    except ImportError:
        raise UserError("the package gguf is not installed: pip install gguf") from None
    model, tokenizer = WeakWater.from_pretrained(folder), ChatTokenizer(folder)
    check_vocabulary(folder, tokenizer)

    def write(temporary):
        writer = gguf.GGUFWriter(temporary, "llama")
        add_shape(writer, model.config, promised_context(model.config, tokenizer))
        prefix = "ALL" if matrix_type == "f32" else "MOSTLY"
        writer.add_file_type(gguf.LlamaFileType[f"{prefix}_{matrix_type.upper()}"])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        add_tokenizer(writer, tokenizer, gguf.TokenType)
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.config.num_hidden_layers)
        for name, array in named_arrays(model):
            kept_as = gguf.GGMLQuantizationType[tensor_type(name, array, matrix_type).upper()]
            data = gguf.quants.quantize(array, kept_as)
            writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), data, raw_dtype=kept_as)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    write_atomically(Path(path), write)
    return Path(path)


def add_shape(writer, config, context: int) -> None:
    writer.add_name("WeakWater")
    writer.add_context_length(context)
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


def named_arrays(model: WeakWater):
    """Yields (Hugging Face's name, array) of each tensor, a tied head left out."""
    config = model.config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        if name == HEAD and config.tie_word_embeddings:
            continue
        layer = name.split(".")[-2]
        yield name, interleave(tensor.numpy(), heads[layer]) if layer in heads else tensor.numpy()


def tensor_type(name: str, array: np.ndarray, matrix_type: str) -> str:
    """What a tensor is kept as: gains stay f32, the embedding and the head are q8_0 at least, and rows that
    are no whole blocks are f16."""
    if array.ndim < 2:
        return "f32"
    if not matrix_type.startswith("q"):
        return matrix_type
    if array.shape[1] % BLOCK:
        return "f16"
    return "q8_0" if name in (EMBEDDING, HEAD) else matrix_type


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("folder", help="the checkpoint's folder")
    parser.add_argument("--out", default="", help="the file to write (default: model.gguf in that folder)")
    parser.add_argument("--type", default="f32", choices=TYPES, help="of the matrices (default: f32)")
    args = parser.parse_args(argv)
    path = export_gguf(args.folder, args.out or Path(args.folder) / "model.gguf", args.type)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    if find_spec("llama_cpp"):
        print(prove(args.folder, path, keeps_weights=args.type == "f32"))
    else:
        print("not compared with the checkpoint in llama.cpp: pip install llama-cpp-python")
    print(f"for Ollama: ollama create NAME -f {write_modelfile(args.folder, path)}")


if __name__ == "__main__":
    run_script(main)
