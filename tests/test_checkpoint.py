"""Llama folders: written for transformers, read from it, and refused by name where they do not fit."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import VOCAB_SIZE, tiny_config, tiny_model
from safetensors.torch import load_file, save_file

from eval_model import RECIPE
from infra.checkpoint import (
    check_out_dir,
    check_vocabulary,
    find_checkpoint,
    has_checkpoint,
    save_model,
)
from infra.cli import UserError
from infra.config_json import read_config
from infra.tokenizer import ChatTokenizer
from model import WeakWater
from train_tokenizer import save_tokenizer, train_tokenizer

IDS = torch.randint(3, VOCAB_SIZE, (3, 20), generator=torch.Generator().manual_seed(0))
FILES = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
]


def change_config(folder, **changes):
    path = Path(folder) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def drop_from_config(folder, name):
    path = Path(folder) / "config.json"
    stored = json.loads(path.read_text())
    del stored[name]
    path.write_text(json.dumps(stored))


def transformers_llama(**changes):
    """A model that transformers made, of the tests' shape."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = tiny_config()
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    names += ("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "pad_token_id")
    shape = {name: getattr(config, name) for name in names}
    torch.manual_seed(3)
    config = LlamaConfig(**{**shape, "rope_theta": 1e4, "tie_word_embeddings": True, **changes})
    return LlamaForCausalLM(config).eval()


# ---- written ----


def test_checkpoint_is_a_folder_that_transformers_loads_with_its_tokenizer(tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = tiny_model()
    save_model(model, tmp_path / "some" / "where", tokenizer, 64)
    folder = tmp_path / "some" / "where"
    assert sorted(path.name for path in folder.iterdir()) == FILES
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert (theirs.generation_config.bos_token_id, theirs.generation_config.eos_token_id) == (1, 2)
    assert AutoTokenizer.from_pretrained(folder).model_max_length == 64
    with torch.no_grad():
        torch.testing.assert_close(model(IDS), theirs(IDS).logits, rtol=1e-4, atol=1e-4)


def test_transformers_samples_a_whole_reply_as_our_chat_does(tmp_path):
    from transformers import GenerationConfig

    save_model(tiny_model(), tmp_path)
    theirs = GenerationConfig.from_pretrained(tmp_path)
    assert theirs.do_sample and (theirs.temperature, theirs.top_p) == (RECIPE.temperature, RECIPE.top_p)
    assert theirs.max_new_tokens == 128 // 2  # of the context, the other half is the prompt's
    save_model(tiny_model(max_position_embeddings=4096), tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path).max_new_tokens == RECIPE.max_new_tokens


def test_checkpoint_promises_the_rows_it_was_trained_on_and_can_be_trained_on_longer_ones(tmp_path):
    model = tiny_model()
    save_model(model, tmp_path, context=64)
    assert read_config(tmp_path) == replace(model.config, max_position_embeddings=64)
    assert WeakWater.from_pretrained(tmp_path, 32).config.max_position_embeddings == 64
    longer = WeakWater.from_pretrained(tmp_path, 200)
    assert longer.config.max_position_embeddings == 200
    with torch.no_grad():
        torch.testing.assert_close(longer(IDS), model(IDS))


@pytest.mark.parametrize("tied", [True, False])
def test_model_that_was_saved_and_loaded_has_the_same_weights(tied, tmp_path):
    model = tiny_model(tie_word_embeddings=tied)
    save_model(model, tmp_path)
    loaded = WeakWater.from_pretrained(tmp_path)
    assert loaded.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_tied_head_is_stored_once_and_shares_its_memory_when_loaded(tmp_path):
    save_model(tiny_model(), tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    loaded = WeakWater.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_parameters_have_the_names_of_hugging_face_llama():
    ours = {name: tuple(tensor.shape) for name, tensor in tiny_model().state_dict().items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in transformers_llama().state_dict().items()}
    assert ours == theirs


def test_half_precision_weights_are_stored_as_float32(tmp_path):
    save_model(tiny_model().bfloat16(), tmp_path)
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.float32}


# ---- read ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_folder_that_transformers_saved_gives_the_same_logits(dtype, tied, tmp_path):
    theirs = transformers_llama(tie_word_embeddings=tied).to(dtype)
    theirs.save_pretrained(tmp_path)
    ours = WeakWater.from_pretrained(tmp_path)
    assert ours.lm_head.weight.dtype == torch.float32
    torch.testing.assert_close(ours(IDS), theirs.float()(IDS).logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_folder_that_transformers_saved_in_shards_gives_the_same_logits(tmp_path):
    theirs = transformers_llama()
    theirs.save_pretrained(tmp_path, max_shard_size="50KB")
    assert not (tmp_path / "model.safetensors").exists() and has_checkpoint(tmp_path)
    torch.testing.assert_close(WeakWater.from_pretrained(tmp_path)(IDS), theirs(IDS).logits)


def test_missing_shard_is_named(tmp_path):
    transformers_llama().save_pretrained(tmp_path, max_shard_size="50KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    assert not has_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"{shard.name} not found"):
        WeakWater.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "stored",
    [
        {},
        *(
            {"weight_map": named}
            for named in ([], {"a": 3}, {"a": [1]}, {"a": ""}, {"a": "../a.safetensors"})
        ),
    ],
)
def test_index_that_names_no_files_of_its_folder_is_refused(stored, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match="expected the names of files in its folder under weight_map"):
        WeakWater.from_pretrained(tmp_path)


def test_rope_theta_is_read_from_where_either_release_of_transformers_writes_it(tmp_path):
    save_model(tiny_model(), tmp_path)
    drop_from_config(tmp_path, "rope_theta")
    change_config(tmp_path, rope_parameters={"rope_theta": 5e4, "rope_type": "default"})
    assert read_config(tmp_path).rope_theta == 5e4
    change_config(tmp_path, rope_theta=6e4, rope_parameters=None)
    assert read_config(tmp_path).rope_theta == 6e4


@torch.no_grad()
def test_tied_config_accepts_a_head_that_is_the_embedding(tmp_path):
    model = tiny_model()
    save_model(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    torch.testing.assert_close(WeakWater.from_pretrained(tmp_path)(IDS), model(IDS))


def test_tied_config_beside_a_head_of_its_own_is_refused(tmp_path):
    save_model(tiny_model(tie_word_embeddings=False), tmp_path)
    change_config(tmp_path, tie_word_embeddings=True)
    with pytest.raises(UserError, match="found a lm_head.weight of its own, .*says tie_word_embeddings"):
        WeakWater.from_pretrained(tmp_path)


LARGE = {"hidden_size": 2**20, "num_attention_heads": 2**10, "num_key_value_heads": 2, "head_dim": 2**10}
HOSTILE = [
    ({"num_hidden_layers": 2}, "found 3 layers, config.json asks for 2"),
    ({"num_hidden_layers": 2**20}, "found 3 layers, config.json asks for 1048576"),
    (
        {"intermediate_size": 73},
        r"found model.layers.0.mlp.down_proj.weight \(48, 72\), config.json asks for \(48, 73\)",
    ),
    (LARGE, r"config.json asks for \(400, 1048576\)"),
    ({"vocab_size": 10**12}, r"vocab_size \(1000000000000\) must be at least 1 and at most"),
    ({"vocab_size": 400.0}, "expected int for vocab_size, found 400.0"),
    ({"vocab_size": True}, "expected int for vocab_size, found True"),
    ({"tie_word_embeddings": 1}, "expected bool for tie_word_embeddings, found 1"),
    ({"hidden_size": "48"}, "expected int for hidden_size, found 48"),
    ({"num_attention_heads": 0}, r"num_attention_heads \(0\) must be at least 1"),
    ({"rope_theta": float("nan")}, r"rope_theta \(nan\) must be above 0"),
    ({"rope_theta": 10**400}, r"rope_theta \(10+\) must be above 0 and below 1e\+12"),
    ({"rope_parameters": [1]}, "expected an object for rope_parameters"),
    ({"tie_word_embeddings": False}, r"found lm_head.weight None, config.json asks for \(400, 48\)"),
    ({"model_type": "qwen2"}, "found model_type 'qwen2', this model is 'llama'"),
    ({"rope_scaling": {"type": "linear"}}, "found rope_scaling"),
    ({"rope_parameters": {"rope_type": "yarn"}}, "found rope_type 'yarn'"),
    ({"attention_bias": True}, "found attention_bias True"),
    ({"mlp_bias": True}, "found mlp_bias True"),
    ({"hidden_act": "gelu"}, "found hidden_act 'gelu'"),
    ({"eos_token_id": -1}, "found eos_token_id -1, expected an id of the vocabulary, 0 to 399"),
    ({"pad_token_id": 10**9}, "found pad_token_id 1000000000, expected an id"),
    ({"head_dim": 16}, "found head_dim 16, expected hidden_size / num_attention_heads = 8"),
]


@pytest.mark.parametrize("changes, reason", HOSTILE, ids=[next(iter(changes)) for changes, _ in HOSTILE])
def test_config_that_the_weights_do_not_fit_is_refused(changes, reason, tmp_path):
    save_model(tiny_model(), tmp_path)
    change_config(tmp_path, **changes)
    with pytest.raises(UserError, match=reason):
        WeakWater.from_pretrained(tmp_path)


def test_missing_field_of_a_config_is_named(tmp_path):
    save_model(tiny_model(), tmp_path)
    drop_from_config(tmp_path, "hidden_size")
    with pytest.raises(UserError, match="config.json: hidden_size is missing"):
        WeakWater.from_pretrained(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[1]", "3", "[" * 10**5, "\xff"])
def test_config_that_is_no_json_object_is_refused(content, tmp_path):
    save_model(tiny_model(), tmp_path)
    (tmp_path / "config.json").write_text(content, encoding="latin1")
    with pytest.raises(UserError, match="config.json: (not a JSON file|expected a JSON object)"):
        WeakWater.from_pretrained(tmp_path)


def test_tensor_too_many_is_refused_by_name(tmp_path):
    save_model(tiny_model(), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(
        tensors | {"model.layers.0.self_attn.q_norm.weight": torch.ones(8)}, tmp_path / "model.safetensors"
    )
    with pytest.raises(UserError, match=r"found model.layers.0.self_attn.q_norm.weight \(8,\), .* None"):
        WeakWater.from_pretrained(tmp_path)


BAD_WEIGHTS = [
    (lambda tensor: tensor.to(torch.int8), "of torch.int8, expected floats"),
    (lambda tensor: tensor > 0, "of torch.bool, expected floats"),
    (lambda tensor: tensor * torch.nan, "found NaN or infinity in model"),
    (lambda tensor: tensor / 0, "found NaN or infinity"),
]


@pytest.mark.parametrize("spoil, reason", BAD_WEIGHTS, ids=["int8", "bool", "nan", "infinity"])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"])
def test_weights_that_are_no_numbers_are_refused(name, spoil, reason, tmp_path):
    save_model(tiny_model(), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {name: spoil(tensors[name])}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=reason):
        WeakWater.from_pretrained(tmp_path)


def test_compiled_names_are_refused(tmp_path):
    save_model(tiny_model(), tmp_path)
    tensors = {
        f"_orig_mod.{name}": tensor for name, tensor in load_file(tmp_path / "model.safetensors").items()
    }
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="found 0 layers"):
        WeakWater.from_pretrained(tmp_path)


@pytest.mark.parametrize("kept", [0, 4, 100, -100])
def test_truncated_weights_are_refused(kept, tmp_path):
    save_model(tiny_model(), tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match="not a whole safetensors file .* --resume"):
        WeakWater.from_pretrained(tmp_path)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_folder_without_one_of_its_files_is_not_a_checkpoint(missing, tmp_path):
    save_model(tiny_model(), tmp_path)
    assert has_checkpoint(tmp_path)
    (tmp_path / missing).unlink()
    assert not has_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"{missing} not found: .* is not a finished checkpoint"):
        WeakWater.from_pretrained(tmp_path)


# ---- which folder ----


def saved(folder, seconds, is_finished=True):
    """A checkpoint saved so many seconds after another."""
    save_model(tiny_model(), folder, is_finished=is_finished)
    os.utime(folder / "model.safetensors", (seconds, seconds))
    return folder


@pytest.mark.parametrize(
    "first, second, chosen",
    [
        ((1, True), (2, True), "b"),
        ((2, True), (1, True), "a"),
        ((1, True), (2, False), "a"),
        ((1, False), (2, True), "b"),
        ((1, False), (2, False), "b"),
        ((2, False), (1, False), "a"),
    ],
)
def test_newest_finished_checkpoint_is_chosen_or_else_the_newest(first, second, chosen, tmp_path, capsys):
    folders = [str(saved(tmp_path / "a", *first)), str(saved(tmp_path / "b", *second))]
    assert find_checkpoint(folders, "") == tmp_path / chosen
    assert capsys.readouterr().err == f"the model in {tmp_path / chosen}\n"


def test_checkpoint_from_elsewhere_counts_as_finished(tmp_path):
    theirs, ours = saved(tmp_path / "a", 1), saved(tmp_path / "b", 2, is_finished=False)
    drop_from_config(theirs, "is_finished")
    assert find_checkpoint([str(theirs), str(ours)], "") == theirs


def test_folder_without_a_checkpoint_is_passed_over(tmp_path):
    (tmp_path / "a").mkdir()
    assert find_checkpoint([str(tmp_path / "a"), str(saved(tmp_path / "b", 1))], "") == tmp_path / "b"


def test_single_folder_is_chosen_in_silence(tmp_path, capsys):
    assert find_checkpoint([str(saved(tmp_path / "a", 1))], "") == tmp_path / "a"
    assert capsys.readouterr().err == ""


def test_no_checkpoint_at_all_gives_the_advice(tmp_path):
    with pytest.raises(FileNotFoundError, match="a not found: run it first"):
        find_checkpoint([str(tmp_path / "a"), str(tmp_path / "b")], "run it first")


# ---- whose vocabulary, whose folder ----


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A tokenizer as long as the tests' own, from other texts."""
    folder = tmp_path_factory.mktemp("other")
    words = ["".join(chr(0x4E00 + (7 * i + 13 * j) % 500) for j in range(9)) for i in range(300)]
    save_tokenizer(train_tokenizer(words, VOCAB_SIZE), folder, 128)
    return ChatTokenizer(folder)


def test_vocabulary_that_a_checkpoint_was_trained_with_is_accepted(tokenizer, tmp_path):
    save_model(tiny_model(), tmp_path, tokenizer, 64)
    check_vocabulary(tmp_path, tokenizer)


def test_another_vocabulary_of_the_same_size_is_refused(tokenizer, other, tmp_path):
    save_model(tiny_model(), tmp_path, tokenizer, 64)
    with pytest.raises(UserError, match=f"found another vocabulary than the one that {tmp_path} was trained"):
        check_vocabulary(tmp_path, other)


def test_tokenizer_put_in_the_place_of_a_checkpoints_own_is_refused(tokenizer, other, tmp_path):
    save_model(tiny_model(), tmp_path, tokenizer, 64)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(other.folder / name, tmp_path)
    with pytest.raises(UserError, match="found another vocabulary"):
        check_vocabulary(tmp_path, ChatTokenizer(tmp_path))


def test_checkpoint_that_does_not_tell_its_vocabulary_is_known_by_its_tokenizer(tokenizer, other, tmp_path):
    save_model(tiny_model(), tmp_path, tokenizer, 64)
    drop_from_config(tmp_path, "vocabulary")
    check_vocabulary(tmp_path, tokenizer)
    with pytest.raises(UserError, match="found another vocabulary"):
        check_vocabulary(tmp_path, other)


def test_vocabulary_of_another_size_is_refused(tokenizer, tmp_path):
    save_model(tiny_model(vocab_size=401), tmp_path)
    with pytest.raises(UserError, match=f"found 400 tokens, the vocab_size of {tmp_path} is 401"):
        check_vocabulary(tmp_path, tokenizer)


def test_folder_with_a_checkpoint_of_another_shape_is_not_written_to(tokenizer, tmp_path):
    save_model(tiny_model(), tmp_path, tokenizer, 64)
    other_shape = replace(tiny_config(), intermediate_size=73)
    with pytest.raises(
        UserError, match=r"another model's checkpoint \(intermediate_size 72, here 73\): pass"
    ):
        check_out_dir(tmp_path, other_shape, tokenizer)


def test_folder_with_a_checkpoint_of_another_vocabulary_is_not_written_to(tokenizer, other, tmp_path):
    config = tiny_model().config
    save_model(tiny_model(), tmp_path, tokenizer, 64)
    with pytest.raises(
        UserError, match="found another vocabulary .*, or pass another --out_dir, or delete it"
    ):
        check_out_dir(tmp_path, config, other)


def test_folder_that_is_empty_or_holds_the_same_model_may_be_written_to(tokenizer, tmp_path):
    config = tiny_model().config
    check_out_dir(tmp_path, config, tokenizer)
    save_model(tiny_model(), tmp_path, tokenizer, 64)
    check_out_dir(tmp_path, config, tokenizer)
