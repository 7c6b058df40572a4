"""python tools/export_gguf.py out/distill

Write a checkpoint as model.gguf, which llama.cpp, Ollama and their relatives read: weights, tokenizer and chat template.

Needs `pip install gguf`. The attention's queries and keys are reordered on the way: llama.cpp rotates neighbouring pairs,
Hugging Face's layout and ours the two halves of a head. Their products, and so the model, are the same.
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np

from Config import run_script, write_atomically
from dataset import BOS, CONTROL_TOKENS, EOS, PAD, ChatTokenizer, check_vocabulary
from model import WeakWater

NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def gguf_name(name):
    """"model.layers.3.mlp.up_proj.weight" -> "blk.3.ffn_up.weight"."""
    if name in NAMES:
        return NAMES[name]
    _, _, layer, *part, kind = name.split(".")
    return f"blk.{layer}.{NAMES['.'.join(part)]}.{kind}"


def interleave(weight, heads):
    """Rows of each head in the order 0, D/2, 1, D/2 + 1, ...: the two halves of a pair become neighbours."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def export_gguf(folder, path, half=False):
    """Write the checkpoint in `folder` to `path`, in float32 or, `half`, its matrices in float16; returns the path."""
    try:
        import gguf
    except ImportError:
        raise ValueError("the package gguf is not installed: pip install gguf") from None
    model, tokenizer = WeakWater.from_pretrained(folder), ChatTokenizer(folder)
    check_vocabulary(folder, tokenizer)
    config = model.config

    def write(temporary):
        writer = gguf.GGUFWriter(temporary, "llama")
        writer.add_name("WeakWater")
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(config.rope_theta)
        writer.add_rope_dimension_count(config.head_dim)
        writer.add_vocab_size(config.vocab_size)
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if half else gguf.LlamaFileType.ALL_F32)
        add_tokenizer(writer, tokenizer, gguf.TokenType)
        for name, tensor in model.state_dict().items():
            if name == "lm_head.weight" and config.tie_word_embeddings:
                continue
            array = tensor.numpy()
            if ".q_proj." in name or ".k_proj." in name:
                array = interleave(array, config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads)
            writer.add_tensor(gguf_name(name), array.astype(np.float16) if half and array.ndim == 2 else array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    write_atomically(Path(path), write)
    return Path(path)


def add_tokenizer(writer, tokenizer, kinds):
    """The vocabulary with its merges; text is split as in Qwen2, which llama.cpp knows by that name."""
    stored = json.loads((tokenizer.folder / "tokenizer.json").read_text(encoding="utf-8"))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in stored["model"]["merges"]]
    tokens = [tokenizer.spelling[id] for id in range(len(tokenizer))]
    kind_of = {id: kinds.CONTROL if id <= EOS else kinds.USER_DEFINED for id in range(len(CONTROL_TOKENS))}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([kind_of.get(id, kinds.NORMAL) for id in range(len(tokens))])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_pad_token_id(PAD)
    writer.add_add_bos_token(False)  # the chat template writes it
    writer.add_chat_template(tokenizer.about["chat_template"])


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="the checkpoint's folder")
    parser.add_argument("--out", default="", help="the file to write (default: model.gguf in that folder)")
    parser.add_argument("--half", action="store_true", help="matrices in float16, half the size")
    args = parser.parse_args(argv)
    path = export_gguf(args.folder, args.out or Path(args.folder) / "model.gguf", args.half)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    run_script(main)
