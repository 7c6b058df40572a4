"""Checkpoints as Hugging Face Llama folders, read and written; what is wrong with one that does not fit."""

import json
import sys
from dataclasses import asdict, fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from Config import LLMConfig
from infra.cli import UserError
from infra.files import write_atomically, write_json
from infra.tokenizer import ChatTokenizer

FIXED = {  # what model.py is; a config.json that says otherwise describes another decoder
    "model_type": "llama",
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "rope_scaling": None,
    "rope_type": "default",
}
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def read_json(folder: Path) -> dict:
    """`folder/config.json`. Raises UserError unless it is a JSON object."""
    path = Path(folder) / "config.json"
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
    return config


def save_model(model, folder: str | Path, tokenizer=None, context=None, is_finished=True) -> None:
    """Write a Llama checkpoint that transformers loads; with a ChatTokenizer, its files too.

    context: tokens in the rows trained on; is_finished: False while the training run goes on.
    """
    folder, config = Path(folder), model.config
    folder.mkdir(parents=True, exist_ok=True)
    if not is_finished:  # first, so that a crash cannot leave these weights marked as finished
        write_config(folder, config, tokenizer, is_finished)
    state = model.state_dict()
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in state.items()}
    if config.tie_word_embeddings:
        del tensors[HEAD]
    content = save(tensors, metadata={"format": "pt"})
    write_atomically(folder / "model.safetensors", lambda path: path.write_bytes(content))
    ids = {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_json(folder / "generation_config.json", ids)
    if tokenizer is not None:
        tokenizer.save(folder, context)
    if is_finished:
        write_config(folder, config, tokenizer, is_finished)


def write_config(folder: Path, config: LLMConfig, tokenizer, is_finished: bool) -> None:
    constant = {"architectures": ["LlamaForCausalLM"], "attention_dropout": 0.0, "use_cache": True}
    constant |= {"torch_dtype": "float32"} | {name: FIXED[name] for name in FIXED if name != "rope_type"}
    ours = {"vocabulary": tokenizer.vocabulary_hash if tokenizer else "", "is_finished": is_finished}
    write_json(folder / "config.json", {**constant, **asdict(config), "head_dim": config.head_dim, **ours})


def load_model(model_class, folder: str | Path):
    """A `model_class(config)` with the weights in a folder, of whatever float type.

    Raises FileNotFoundError or UserError unless every tensor is there and fits.
    """
    path = Path(folder) / "model.safetensors"
    for needed in (path, path.with_name("config.json")):
        if not needed.is_file():
            raise FileNotFoundError(f"{needed} not found: {folder} is not a finished checkpoint")
    config = read_config(folder)
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        advice = "copy it again, or let the training run that wrote it do so anew with --resume"
        raise UserError(f"{path}: not a whole safetensors file ({error}): {advice}") from None
    check_tensors(path, tensors, config, model_class)
    model = model_class(config)
    model.load_state_dict(tensors)
    return model


def check_tensors(path: Path, tensors: dict, config: LLMConfig, model_class) -> None:
    """Raises UserError unless `tensors` are those of the config, to which a tied head is added."""
    layers = len({name.split(".")[2] for name in tensors if name.startswith("model.layers.")})
    if layers != config.num_hidden_layers:
        raise UserError(f"{path}: found {layers} layers, config.json asks for {config.num_hidden_layers}")
    embedding = tensors.get(EMBEDDING)
    if config.tie_word_embeddings and embedding is not None:
        tensors.setdefault(HEAD, embedding)
        if not torch.equal(tensors[HEAD], embedding):
            expected = f"the same as {EMBEDDING}, since config.json says tie_word_embeddings"
            raise UserError(f"{path}: found a {HEAD} of its own, expected {expected}")
    with torch.device("meta"):  # shapes alone: what a wrong config.json asks for may not fit the memory
        expected = model_class(config).state_dict()
    for name in sorted(expected.keys() | tensors.keys()):
        found, wanted = (tuple(some[name].shape) if name in some else None for some in (tensors, expected))
        if found != wanted:
            raise UserError(f"{path}: found {name} {found}, config.json asks for {wanted}")


def has_checkpoint(folder: str | Path) -> bool:
    return all((Path(folder) / name).is_file() for name in ("model.safetensors", "config.json"))


def find_checkpoint(folders: list[str], advice: str) -> Path:
    """The newest finished checkpoint among the folders or, if none is finished, the newest; tells which.

    Raises FileNotFoundError, with the advice, if there is none.
    """
    found = [Path(folder) for folder in folders if has_checkpoint(folder)]
    if not found:
        what = "has no checkpoint" if Path(folders[0]).is_dir() else "not found"
        raise FileNotFoundError(f"{folders[0]} {what}: {advice}")

    def rank(folder):
        return read_json(folder).get("is_finished", True), (folder / "model.safetensors").stat().st_mtime

    chosen = max(found, key=rank)
    if len(folders) > 1:
        print(f"the model in {chosen}", file=sys.stderr)
    return chosen


def check_vocabulary(folder: str | Path, tokenizer: ChatTokenizer) -> None:
    """Raises UserError where a checkpoint was trained with another tokenizer: its ids mean other tokens."""
    folder, size = Path(folder), read_config(folder).vocab_size
    if len(tokenizer) != size:
        found = f"found {len(tokenizer)} tokens, the vocab_size of {folder} is {size}"
        raise UserError(f"{tokenizer.folder}: {found}: use the tokenizer that it was trained with")
    trained_with = read_json(folder).get("vocabulary")
    if not trained_with and (folder / "tokenizer.json").is_file():  # a checkpoint from elsewhere does not say
        trained_with = ChatTokenizer(folder).vocabulary_hash
    if trained_with and trained_with != tokenizer.vocabulary_hash:
        found = f"found another vocabulary than the one that {folder} was trained with"
        raise UserError(f"{tokenizer.folder}: {found}: use that one")


def check_out_dir(folder: str | Path, model_config: LLMConfig, tokenizer: ChatTokenizer) -> None:
    """Raises UserError rather than let a checkpoint of another model be overwritten file by file."""
    if not has_checkpoint(folder):
        return
    advice = "pass another --out_dir, or delete it"
    stored, here = asdict(read_config(folder)), asdict(model_config)
    for name in here:
        if stored[name] != here[name]:
            found = f"{folder} holds another model's checkpoint ({name} {stored[name]}, here {here[name]})"
            raise UserError(f"{found}: {advice}")
    try:
        check_vocabulary(folder, tokenizer)
    except UserError as error:
        raise UserError(f"{error}, or {advice}") from None
