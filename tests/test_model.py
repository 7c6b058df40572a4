"""The decoder against transformers' Llama, written-out formulas and itself computed another way."""

import json

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_config, tiny_model

import model as model_module
from Config import LLMConfig
from generate import PADDING, PROMPT
from model import KVCache, RMSNorm, WeakWater, attention, document_mask, rope_tables, rotate

B, T = 3, 20


def random_ids(seed=0, shape=(B, T)):
    return torch.randint(3, 400, shape, generator=torch.Generator().manual_seed(seed))


def test_default_model_has_28975616_parameters():
    assert WeakWater(LLMConfig.preset("30m")).num_parameters() == 28_975_616


@pytest.mark.parametrize("key_value_heads", [6, 2, 1])
@pytest.mark.parametrize("tied", [True, False])
def test_logits_match_hugging_face_llama(key_value_heads, tied, tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM

    ours = tiny_model(num_key_value_heads=key_value_heads, tie_word_embeddings=tied)
    ours.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path, 128)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).float().eval()
    assert type(theirs).__name__ == "LlamaForCausalLM"
    with torch.no_grad():
        torch.testing.assert_close(ours(random_ids()), theirs(random_ids()).logits, rtol=1e-4, atol=1e-4)


def test_gradients_match_hugging_face_llama(tmp_path):
    from transformers import AutoModelForCausalLM

    ours = tiny_model()
    ours.save_pretrained(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).float().train()
    ids, weights = random_ids(), torch.ones(B, T - 1)
    (ours(ids[:, :-1], None, ids[:, 1:], weights) / weights.sum()).backward()
    theirs(ids, labels=ids).loss.backward()
    gradients = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=1e-3, atol=1e-5)


def test_attention_is_the_softmax_formula():
    q, k, v = (torch.randn(B, heads, T, 8) for heads in (6, 2, 2))
    ids = torch.randint(0, 3, (B, T)).sort(dim=1).values
    expected = torch.zeros(B, 6, T, 8)
    for b in range(B):
        for head in range(6):
            for query in range(T):
                seen = [key for key in range(query + 1) if ids[b, key] == ids[b, query]]
                scores = torch.stack([q[b, head, query] @ k[b, head // 3, key] / 8**0.5 for key in seen])
                expected[b, head, query] = scores.softmax(0) @ v[b, head // 3, seen]
    torch.testing.assert_close(attention(q, k, v, document_mask(ids)), expected, rtol=1e-4, atol=1e-5)


def test_flex_attention_equals_attention_with_a_boolean_mask():
    ids = torch.randint(0, 3, (B, 256)).sort(dim=1).values
    blocks = document_mask(ids, in_blocks=True)
    q, k, v = (torch.randn(B, heads, 256, 16) for heads in (6, 2, 2))
    torch.testing.assert_close(attention(q, k, v, blocks), attention(q, k, v, document_mask(ids)), rtol=1e-4, atol=1e-5)


def test_rope_turns_each_pair_by_position_times_frequency():
    cos, sin = rope_tables(T, 8, 1e4)
    x = torch.randn(1, 1, T, 8)
    turned = rotate(x, cos, sin)
    pairs = torch.complex(x[..., :4], x[..., 4:])
    angles = torch.arange(T)[:, None] * torch.tensor([1e4 ** (-2 * i / 8) for i in range(4)])
    expected = pairs * torch.polar(torch.ones_like(angles), angles)
    torch.testing.assert_close(turned, torch.cat([expected.real, expected.imag], dim=-1), rtol=1e-4, atol=1e-5)


def test_rms_norm_survives_half_precision_numbers_whose_square_overflows():
    x = torch.full((1, 8), 1000.0, dtype=torch.float16)
    torch.testing.assert_close(RMSNorm(8, 1e-5)(x), torch.ones(1, 8, dtype=torch.float16))


@torch.no_grad()
@pytest.mark.parametrize("cuts", [[20], [7, 13], [1] * 20, [5, 1, 9, 5]])
def test_cached_decoding_equals_one_forward(cuts):
    model = tiny_model()
    expected = model(random_ids())
    cache = KVCache(model.config, B, T, "cpu")
    parts = [model(part, cache=cache) for part in random_ids().split(cuts, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("padding", [0, 4])
def test_a_fixed_cache_gives_the_same_logits_by_the_same_operations(padding):
    model, ids = tiny_model(), random_ids()
    documents = torch.ones_like(ids)
    documents[0, :padding] = PADDING
    caches = [KVCache(model.config, B, T + 3, "cpu") for _ in range(2)]
    for cache in caches:
        model(ids[:, :7], cache.mask(7, documents[:, :7] if padding else None), cache=cache)
    caches[1].fix()
    for position in range(7, T):
        one = ids[:, position : position + 1]
        grown, fixed = (model(one, cache=cache) for cache in caches)
        torch.testing.assert_close(fixed, grown, rtol=1e-4, atol=1e-5)
        assert caches[1].end(1) == T + 3 and int(caches[1].at) == caches[1].used == position + 1


@torch.no_grad()
def test_left_padding_changes_no_logits():
    model = tiny_model()
    ids = random_ids(shape=(1, 9))
    padded = F.pad(ids, (4, 0))
    cache = KVCache(model.config, 1, 13, "cpu")
    documents = torch.tensor([[PADDING] * 4 + [PROMPT] * 9])
    torch.testing.assert_close(model(padded, cache.mask(13, documents), cache=cache)[:, 4:], model(ids), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_packed_documents_do_not_see_each_other():
    model = tiny_model()
    first, second = random_ids(1, (1, 8)), random_ids(2, (1, 12))
    packed = model(torch.cat([first, second], dim=1), document_mask(torch.tensor([[1] * 8 + [2] * 12])))
    torch.testing.assert_close(packed[:, :8], model(first), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(packed[:, 8:], model(second), rtol=1e-4, atol=1e-5)


def test_loss_in_pieces_equals_loss_at_once(monkeypatch):
    ids, labels, weights = random_ids(0), random_ids(1), torch.rand(B, T)
    losses, gradients = [], []
    for at_once in (2**25, 400 * 7):
        monkeypatch.setattr(model_module, "LOGITS_AT_ONCE", at_once)
        model = tiny_model()
        loss = model(ids, None, labels, weights)
        loss.backward()
        losses.append(loss.detach())
        gradients.append(model.model.layers[0].mlp.up_proj.weight.grad)
    expected = -(tiny_model()(ids).log_softmax(-1).gather(2, labels[..., None])[..., 0] * weights).sum()
    torch.testing.assert_close(torch.stack(losses), expected.detach().expand(2), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_cache_refuses_more_than_the_context():
    with pytest.raises(ValueError, match="max_position_embeddings is 128"):
        KVCache(tiny_config(), 1, 129, "cpu")


def test_shapes_that_cannot_be_built_are_refused_by_name():
    with pytest.raises(ValueError, match=r"hidden_size \(500\) must be a multiple of num_attention_heads \(8\)"):
        LLMConfig(hidden_size=500)
    with pytest.raises(ValueError, match=r"num_attention_heads \(8\) must be a multiple of num_key_value_heads \(3\)"):
        LLMConfig(num_key_value_heads=3)


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"num_hidden_layers": 2}, "found 3 layers, config.json asks for 2"),
        ({"num_hidden_layers": 2**20}, "found 3 layers, config.json asks for 1048576"),
        ({"intermediate_size": 73}, r"found model.layers.0.mlp.down_proj.weight \(48, 72\), config.json asks for \(48, 73\)"),
        ({"hidden_size": 2**20, "num_attention_heads": 2**10, "num_key_value_heads": 2, "head_dim": 2**10}, r"config.json asks for \(400, 1048576\)"),
        ({"vocab_size": 10**12}, r"vocab_size \(1000000000000\) must be at least 1 and at most"),
        ({"vocab_size": 400.0}, "expected int for vocab_size, found 400.0"),
        ({"rope_theta": float("nan")}, r"rope_theta \(nan\) must be greater than 0"),
        ({"rope_theta": 10**400}, r"rope_theta \(10+\) must be greater than 0 and less than 1e\+12"),
        ({"rope_parameters": [1]}, "expected an object for rope_parameters"),
        ({"tie_word_embeddings": False}, r"found lm_head.weight None, config.json asks for \(400, 48\)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_checkpoint_that_does_not_fit_its_config_is_refused(change, reason, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ValueError, match=reason):
        WeakWater.from_pretrained(tmp_path)


def test_truncated_weights_are_refused(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        WeakWater.from_pretrained(tmp_path)


def test_other_architectures_are_refused(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change in ({"model_type": "qwen2"}, {"rope_scaling": {"type": "linear"}}, {"attention_bias": True}, {"head_dim": 16}):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ValueError, match=f"found {next(iter(change))}"):
            WeakWater.from_pretrained(tmp_path)
