"""config.json of a Llama folder: read and checked, or written for transformers."""

import json
from dataclasses import asdict, fields
from pathlib import Path

from Config import LLMConfig
from infra.cli import UserError
from infra.files import write_json

FIXED = {  # what model.py is; a config.json that says otherwise describes another decoder
    "model_type": "llama",
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "rope_scaling": None,
    "rope_type": "default",
}
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def read_json(folder: Path, name="config.json") -> dict:
    """A file in the folder. Raises UserError unless it is a JSON object."""
    path = Path(folder) / name
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON file ({error})") from None
    if not isinstance(stored, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(stored).__name__}")
    return stored


def read_config(folder: str | Path) -> LLMConfig:
    """The shape in `folder/config.json`. Raises UserError if it describes another decoder than model.py's."""
    path, stored = Path(folder) / "config.json", read_json(folder)
    # transformers 5 writes rope_theta into rope_parameters, earlier releases beside the other fields
    rope = stored.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise UserError(f"{path}: expected an object for rope_parameters, found {str(rope)[:40]!r}")
    stored = {**rope, **stored}
    for name, expected in FIXED.items():
        if stored.get(name, expected) != expected:
            raise UserError(f"{path}: found {name} {stored[name]!r}, this model is {expected!r}")
    for f in fields(LLMConfig):
        if f.name not in stored:
            raise UserError(f"{path}: {f.name} is missing")
        if type(stored[f.name]) not in ((int, float) if f.type is float else (f.type,)):
            raise UserError(
                f"{path}: expected {f.type.__name__} for {f.name}, found {str(stored[f.name])[:40]}"
            )
    config = LLMConfig(**{f.name: stored[f.name] for f in fields(LLMConfig)})
    if stored.get("head_dim") not in (None, config.head_dim):
        expected = f"hidden_size / num_attention_heads = {config.head_dim}"
        raise UserError(f"{path}: found head_dim {stored['head_dim']}, expected {expected}")
    for name in IDS:
        if not 0 <= getattr(config, name) < config.vocab_size:
            expected = f"an id of the vocabulary, 0 to {config.vocab_size - 1}"
            raise UserError(f"{path}: found {name} {stored[name]}, expected {expected}")
    return config


def write_config(folder: Path, config: LLMConfig, tokenizer, is_finished: bool) -> None:
    constant = {"architectures": ["LlamaForCausalLM"], "attention_dropout": 0.0, "use_cache": True}
    constant |= {"torch_dtype": "float32"} | {name: FIXED[name] for name in FIXED if name != "rope_type"}
    ours = {"vocabulary": tokenizer.vocabulary_hash if tokenizer else "", "is_finished": is_finished}
    write_json(folder / "config.json", {**constant, **asdict(config), "head_dim": config.head_dim, **ours})
