"""Checkpoints as Hugging Face Llama folders, read and written; what is wrong with one that does not fit."""

import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from Config import LLMConfig
from infra.cli import UserError
from infra.config_json import IDS, read_config, read_json, write_config
from infra.files import write_atomically, write_json
from infra.tokenizer import ChatTokenizer

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
WEIGHTS, SHARDS = "model.safetensors", "model.safetensors.index.json"
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SAMPLED = {"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 512}  # a reply, unless told otherwise


def save_model(model, folder: str | Path, tokenizer=None, context=None, is_finished=True) -> None:
    """Write a Llama checkpoint that transformers loads; with a ChatTokenizer, its files too.

    context: tokens in the rows trained on, all that the checkpoint promises (default: the model's);
    is_finished: False while the training run goes on.
    """
    folder, most = Path(folder), model.config.max_position_embeddings
    config = replace(model.config, max_position_embeddings=min(context or most, most))
    folder.mkdir(parents=True, exist_ok=True)
    if not is_finished:  # first, so that a crash cannot leave these weights marked as finished
        write_config(folder, config, tokenizer, is_finished)
    state = model.state_dict()
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in state.items()}
    if config.tie_word_embeddings:
        del tensors[HEAD]
    content = save(tensors, metadata={"format": "pt"})
    write_atomically(folder / WEIGHTS, lambda path: path.write_bytes(content))
    ids = {name: getattr(config, name) for name in IDS}
    room = min(SAMPLED["max_new_tokens"], config.max_position_embeddings // 2)  # half is the prompt's
    write_json(
        folder / "generation_config.json", {**ids, "do_sample": True, **SAMPLED, "max_new_tokens": room}
    )
    if tokenizer is not None:
        tokenizer.save(folder, context)
    if is_finished:
        write_config(folder, config, tokenizer, is_finished)


def load_model(model_class, folder: str | Path, row_length=0):
    """A `model_class(config)` with the weights in a folder, in one file or in shards, of whatever float type.

    row_length: of the rows that it is to be trained on, where they are longer than those it was trained on.
    Raises FileNotFoundError or UserError unless every tensor is there and fits.
    """
    paths = weight_files(folder)
    for needed in (*paths, Path(folder) / "config.json"):
        if not needed.is_file():
            raise FileNotFoundError(f"{needed} not found: {folder} is not a finished checkpoint")
    config, tensors = read_config(folder), {}
    for path in paths:
        try:
            tensors |= load_file(path)
        except SafetensorError as error:
            advice = "copy it again, or let the training run that wrote it do so anew with --resume"
            raise UserError(f"{path}: not a whole safetensors file ({error}): {advice}") from None
    config = replace(config, max_position_embeddings=max(row_length, config.max_position_embeddings))
    check_tensors(paths[0] if len(paths) == 1 else Path(folder), tensors, config, model_class)
    model = model_class(config)
    model.load_state_dict(tensors)
    return model


def weight_files(folder: str | Path) -> list[Path]:
    """model.safetensors or, where transformers saved the weights in shards, these."""
    whole, index = Path(folder) / WEIGHTS, Path(folder) / SHARDS
    if whole.is_file() or not index.is_file():
        return [whole]
    named = read_json(folder, SHARDS).get("weight_map")
    names = list(named.values()) if isinstance(named, dict) else []
    if not names or not all(isinstance(name, str) and name and Path(name).name == name for name in names):
        raise UserError(f"{index}: expected the names of files in its folder under weight_map")
    return [whole.with_name(name) for name in sorted(set(names))]


def check_tensors(path: Path, tensors: dict, config: LLMConfig, model_class) -> None:
    """Raises UserError unless `tensors` are those of the config, to which a tied head is added."""
    layers = len({name.split(".")[2] for name in tensors if name.startswith("model.layers.")})
    if layers != config.num_hidden_layers:
        raise UserError(f"{path}: found {layers} layers, config.json asks for {config.num_hidden_layers}")
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            advice = "quantized weights cannot be read; export them without"
            raise UserError(f"{path}: found {name} of {tensor.dtype}, expected floats: {advice}")
        if not tensor.isfinite().all():
            raise UserError(f"{path}: found NaN or infinity in {name}: the training that wrote it diverged")
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
    return all(path.is_file() for path in (*weight_files(folder), Path(folder) / "config.json"))


def promised_context(config: LLMConfig, tokenizer: ChatTokenizer) -> int:
    """Tokens that a checkpoint was trained to see together, as its two files say."""
    return min(tokenizer.max_length, config.max_position_embeddings)


def find_checkpoint(folders: list[str], advice: str) -> Path:
    """The newest finished checkpoint among the folders or, if none is finished, the newest; tells which.

    Raises FileNotFoundError, with the advice, if there is none.
    """
    found = [Path(folder) for folder in folders if has_checkpoint(folder)]
    if not found:
        what = "has no checkpoint" if Path(folders[0]).is_dir() else "not found"
        raise FileNotFoundError(f"{folders[0]} {what}: {advice}")

    def rank(folder):
        return read_json(folder).get("is_finished", True), weight_files(folder)[0].stat().st_mtime

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
        if name != "max_position_embeddings" and stored[name] != here[name]:  # rows may be longer or shorter
            found = f"{folder} holds another model's checkpoint ({name} {stored[name]}, here {here[name]})"
            raise UserError(f"{found}: {advice}")
    try:
        check_vocabulary(folder, tokenizer)
    except UserError as error:
        raise UserError(f"{error}, or {advice}") from None
