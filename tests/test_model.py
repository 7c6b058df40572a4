"""The decoder against transformers' Llama, written-out formulas and itself computed another way."""

import pytest
import torch
from conftest import tiny_model

from Config import PRESETS, LLMConfig
from infra.checkpoint import save_model
from infra.loss import chunked_cross_entropy
from model import RMSNorm, WeakWater, attention, dense_mask, document_mask, rope_tables, rotate

B, T = 3, 20


def random_ids(seed=0, shape=(B, T)):
    return torch.randint(3, 400, shape, generator=torch.Generator().manual_seed(seed))


def hugging_face_llama(model, folder):
    """transformers' model of the same weights."""
    from transformers import AutoModelForCausalLM

    save_model(model, folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder).float()
    assert type(theirs).__name__ == "LlamaForCausalLM"
    return theirs


@pytest.mark.parametrize(
    "name, hidden, key_value, mlp, layers, expected",
    [
        ("30m", 512, 512, 1408, 8, 28_975_616),
        ("60m", 640, 320, 1792, 12, 60_145_280),
        ("100m", 768, 256, 1920, 16, 100_885_248),
    ],
)
def test_models_have_the_parameters_that_their_shapes_say(name, hidden, key_value, mlp, layers, expected):
    with torch.device("meta"):
        found = WeakWater(LLMConfig.preset(name)).num_parameters()
    layer = 2 * hidden * hidden + 2 * hidden * key_value + 3 * hidden * mlp + 2 * hidden  # q, o; k, v; norms
    assert found == layers * layer + 6400 * hidden + hidden == expected


@pytest.mark.parametrize("key_value_heads", [6, 2, 1])
@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_logits_match_hugging_face_llama(key_value_heads, tied, tmp_path):
    ours = tiny_model(num_key_value_heads=key_value_heads, tie_word_embeddings=tied)
    theirs = hugging_face_llama(ours, tmp_path).eval()
    torch.testing.assert_close(ours(random_ids()), theirs(random_ids()).logits, rtol=1e-4, atol=1e-4)


def test_gradients_match_hugging_face_llama(tmp_path):
    ours, ids, weights = tiny_model(), random_ids(), torch.ones(B, T - 1)
    theirs = hugging_face_llama(ours, tmp_path).train()
    (ours(ids[:, :-1], None, ids[:, 1:], weights) / weights.sum()).backward()
    theirs(ids, labels=ids).loss.backward()
    gradients = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("mask", [dense_mask, document_mask])
def test_attention_is_the_softmax_formula(mask):
    q, k, v = (torch.randn(B, heads, T, 8) for heads in (6, 2, 2))
    ids = torch.randint(0, 3, (B, T)).sort(dim=1).values
    expected = torch.zeros(B, 6, T, 8)
    for b in range(B):
        for head in range(6):
            for query in range(T):
                seen = [key for key in range(query + 1) if ids[b, key] == ids[b, query]]
                scores = torch.stack([q[b, head, query] @ k[b, head // 3, key] / 8**0.5 for key in seen])
                expected[b, head, query] = scores.softmax(0) @ v[b, head // 3, seen]
    torch.testing.assert_close(attention(q, k, v, mask(ids)), expected, rtol=1e-4, atol=1e-5)


def test_attention_without_a_mask_is_causal():
    q, k, v = (torch.randn(B, heads, T, 8) for heads in (6, 2, 2))
    one_document = dense_mask(torch.ones(B, T))
    torch.testing.assert_close(attention(q, k, v), attention(q, k, v, one_document), rtol=1e-4, atol=1e-5)


def test_a_single_query_without_a_mask_sees_all_keys():
    q, k, v = torch.randn(B, 6, 1, 8), torch.randn(B, 6, T, 8), torch.randn(B, 6, T, 8)
    expected = (q @ k.transpose(2, 3) / 8**0.5).softmax(-1) @ v
    torch.testing.assert_close(attention(q, k, v), expected, rtol=1e-4, atol=1e-5)


def test_flex_attention_equals_attention_with_a_boolean_mask():
    ids = torch.randint(0, 3, (B, 256)).sort(dim=1).values
    blocks = document_mask(ids, in_blocks=True)
    q, k, v = (torch.randn(B, heads, 256, 16) for heads in (6, 2, 2))
    plain = attention(q, k, v, dense_mask(ids))
    torch.testing.assert_close(attention(q, k, v, blocks), plain, rtol=1e-4, atol=1e-5)


def test_rope_turns_each_pair_by_position_times_frequency():
    cos, sin = rope_tables(T, 8, 1e4)
    x = torch.randn(1, 1, T, 8)
    turned = rotate(x, cos, sin)
    pairs = torch.complex(x[..., :4], x[..., 4:])
    angles = torch.arange(T)[:, None] * torch.tensor([1e4 ** (-2 * i / 8) for i in range(4)])
    expected = pairs * torch.polar(torch.ones_like(angles), angles)
    expected = torch.cat([expected.real, expected.imag], dim=-1)
    torch.testing.assert_close(turned, expected, rtol=1e-4, atol=1e-5)


def test_rms_norm_is_its_formula():
    norm, x = RMSNorm(8, 0.1), torch.randn(B, 8)
    norm.weight.data.uniform_(0.5, 2)
    expected = x / (x.square().mean(dim=-1, keepdim=True) + 0.1).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), expected)


def test_rms_norm_survives_half_precision_numbers_whose_square_overflows():
    x = torch.full((1, 8), 1000.0, dtype=torch.float16)
    torch.testing.assert_close(RMSNorm(8, 1e-5)(x), torch.ones(1, 8, dtype=torch.float16))


@torch.no_grad()
def test_packed_documents_do_not_see_each_other():
    model = tiny_model()
    first, second = random_ids(1, (1, 8)), random_ids(2, (1, 12))
    packed = model(torch.cat([first, second], dim=1), document_mask(torch.tensor([[1] * 8 + [2] * 12])))
    torch.testing.assert_close(packed[:, :8], model(first), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(packed[:, 8:], model(second), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_last_only_gives_the_logits_of_the_last_position():
    model = tiny_model()
    torch.testing.assert_close(model(random_ids(), last_only=True), model(random_ids())[:, -1:])


# ---- the loss ----


def test_loss_is_the_weighted_sum_of_cross_entropies():
    ids, labels, weights = random_ids(0), random_ids(1), torch.rand(B, T)
    weights[0, :7] = 0
    model = tiny_model()
    of_labels = model(ids).log_softmax(-1).gather(2, labels[..., None])[..., 0]
    torch.testing.assert_close(model(ids, None, labels, weights), -(of_labels * weights).sum())


@pytest.mark.parametrize("elements", [1, 400, 400 * 7, 400 * 60])
def test_loss_in_chunks_equals_loss_at_once(elements):
    found = []
    for chunk in (elements, 2**25):
        head = torch.nn.Linear(16, 400, bias=False)
        torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(0))
        generator = torch.Generator().manual_seed(1)
        hidden = torch.randn(B * T, 16, generator=generator, requires_grad=True)
        weights = torch.rand(B * T, generator=generator)
        loss = chunked_cross_entropy(head, hidden, random_ids().flatten(), weights, chunk)
        loss.backward()
        found.append((loss.detach(), head.weight.grad, hidden.grad))
    for in_chunks, at_once in zip(*found):
        torch.testing.assert_close(in_chunks, at_once, rtol=1e-4, atol=1e-4)


def test_a_chunk_holds_no_more_logits_than_it_may():
    sizes = []

    class Head(torch.nn.Linear):
        def forward(self, hidden):
            logits = super().forward(hidden)
            sizes.append(logits.numel())
            return logits

    chunked_cross_entropy(Head(16, 400), torch.randn(60, 16), torch.zeros(60).long(), torch.ones(60), 400 * 7)
    assert max(sizes) == 400 * 7 and sum(sizes) == 400 * 60


def test_batch_without_weight_has_the_loss_0_and_no_gradient():
    model = tiny_model()
    loss = model(random_ids(), None, random_ids(1), torch.zeros(B, T))
    loss.backward()
    assert loss == 0
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())


def test_residual_matrices_start_smaller_the_deeper_the_model():
    torch.manual_seed(0)
    layer = WeakWater(LLMConfig(num_hidden_layers=2, initializer_range=0.02)).model.layers[0]
    assert float(layer.self_attn.q_proj.weight.detach().std()) == pytest.approx(0.02, rel=0.02)
    assert float(layer.self_attn.o_proj.weight.detach().std()) == pytest.approx(0.02 / 2, rel=0.02)
    assert float(layer.mlp.down_proj.weight.detach().std()) == pytest.approx(0.02 / 2, rel=0.02)


# ---- shapes ----


@pytest.mark.parametrize(
    "shape, message",
    [
        ({"hidden_size": 500}, r"hidden_size \(500\) must be a multiple of num_attention_heads \(8\)"),
        (
            {"num_key_value_heads": 3},
            r"num_attention_heads \(8\) must be a multiple of num_key_value_heads \(3\)",
        ),
        ({"hidden_size": 24}, r"head_dim \(3\) must be even"),
        ({"vocab_size": 0}, r"vocab_size \(0\) must be at least 1"),
        ({"rope_theta": 0.0}, r"rope_theta \(0.0\) must be above 0"),
    ],
)
def test_shapes_that_cannot_be_built_are_refused_by_name(shape, message):
    with pytest.raises(ValueError, match=message):
        LLMConfig(**shape)


def test_preset_that_is_unknown_is_refused_with_those_that_are_known():
    with pytest.raises(
        ValueError, match="preset 'huge' is unknown, expected one of tiny, 5m, 30m, 60m, 100m"
    ):
        LLMConfig.preset("huge")


@pytest.mark.parametrize("name, millions", [("5m", 5), ("tiny", 3)])
def test_presets_have_the_size_of_their_names(name, millions):
    with torch.device("meta"):
        model = WeakWater(PRESETS[name])
    assert model.num_parameters() / 1e6 == pytest.approx(millions, rel=0.04)
