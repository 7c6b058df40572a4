"""Decoding steps on a CPU: the logits of the model itself, by a product that is chosen without a clock."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_config, tiny_model

from generate import Sampling, generate, stream
from infra.decoding import (
    CPUDecoding,
    Decoding,
    arrange,
    batches_of_like_length,
    can_pack,
    decoding_of,
    join_weights,
    packed_linear,
    sequences_together,
)
from infra.kv_cache import KVCache

needs_packing = pytest.mark.skipif(not can_pack(), reason="needs oneDNN's operators on packed weights")
T, PROMPT = 24, 7


def model_with_gains(**changes):
    """A tiny model whose RMSNorms have gains, which a decoding step folds into the matrices."""
    model = tiny_model(**changes)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 2)
    return model


def started(model, ids, padding):
    """A cache that has seen the prompt."""
    cache = KVCache(model.config, len(ids), T, "cpu", padding=padding)
    model(ids[:, :PROMPT], cache=cache)
    return cache


@torch.inference_mode()
@pytest.mark.parametrize("batch, padding", [(1, None), (3, None), (3, [4, 0, 2])])
@pytest.mark.parametrize(
    "changes", [{}, {"num_key_value_heads": 6, "tie_word_embeddings": False}, {"num_key_value_heads": 1}]
)
def test_decoding_on_a_cpu_gives_the_logits_of_the_model(batch, padding, changes):
    model, padding = model_with_gains(**changes), padding and torch.tensor(padding)
    ids = torch.randint(7, 400, (batch, T), generator=torch.Generator().manual_seed(0))
    lean_cache, whole_cache = (started(model, ids, padding) for _ in range(2))
    lean = CPUDecoding(model, lean_cache, {})
    for position in range(PROMPT, T):
        one = ids[:, position : position + 1]
        expected = model(one, cache=whole_cache)[:, -1]
        torch.testing.assert_close(lean(one), expected, rtol=1e-4, atol=1e-4)
    assert lean_cache.used == whole_cache.used == T
    for ours, theirs in zip(lean_cache.keys + lean_cache.values, whole_cache.keys + whole_cache.values):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_sampled_sequences_are_as_many_on_a_card_whatever_memory_is_free(monkeypatch):
    card = SimpleNamespace(device=torch.device("cuda"), element_size=lambda: 2)
    model = SimpleNamespace(config=tiny_config(), lm_head=SimpleNamespace(weight=card))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3 * 10**7, 10**8))
    assert sequences_together(model, are_sampled=True) == sequences_together(tiny_model(), False) == 128
    assert 1 < sequences_together(model, are_sampled=False) != 128


def test_sequences_that_stay_get_the_logits_that_they_got_among_the_others():
    model, chosen = model_with_gains(), torch.tensor([2, 0])
    ids = torch.randint(7, 400, (3, T), generator=torch.Generator().manual_seed(0))
    padding = torch.tensor([4, 0, 2])
    decode, whole = CPUDecoding(model, started(model, ids, padding), {}), started(model, ids, padding)
    decode(ids[:, PROMPT : PROMPT + 1])
    decode.cache.keep(chosen)
    expected = model(ids[:, PROMPT:], cache=whole)[chosen]
    for position in range(PROMPT + 1, T):
        logits = decode(ids[chosen, position : position + 1])
        torch.testing.assert_close(logits, expected[:, position - PROMPT], rtol=1e-4, atol=1e-4)


# ---- the choice of product ----


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_products_are_those_of_float64(batch):
    x, weight = torch.randn(batch, 24), torch.randn(10, 24)
    product, (arranged,) = arrange([weight])
    expected = x.double() @ weight.double().T
    torch.testing.assert_close(product(x, arranged).double(), expected, rtol=1e-5, atol=1e-5)


@needs_packing
def test_where_onednn_packs_weights_they_are_packed():
    assert arrange([torch.randn(10, 24)])[0] is packed_linear


def test_without_onednn_the_product_is_the_plain_one(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    weights = [torch.randn(10, 24)]
    assert arrange(weights) == (F.linear, weights)


def test_on_another_processor_the_product_is_the_plain_one(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    weights = [torch.randn(10, 24)]
    assert arrange(weights) == (F.linear, weights)


@pytest.mark.parametrize("dtype, expected", [(torch.float32, CPUDecoding), (torch.bfloat16, Decoding)])
def test_only_float32_on_a_cpu_is_decoded_by_joined_weights(dtype, expected):
    model = tiny_model().to(dtype)
    assert type(decoding_of(model, KVCache(model.config, 1, T, "cpu", dtype), {})) is expected


# ---- shared weights ----


def test_weights_are_joined_once_for_calls_that_share_them():
    model, shared = tiny_model(3), {}
    first = list(stream(model, [[1, 50]], Sampling(max_new_tokens=20), shared))
    weights = shared["weights"]
    assert list(stream(model, [[1, 50]], Sampling(max_new_tokens=20), shared)) == first
    assert shared["weights"] is weights


def test_calls_that_share_nothing_see_changed_weights():
    model = tiny_model(3)
    first = generate(model, [[1, 50]], Sampling(max_new_tokens=20))
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.neg_()
    changed = generate(model, [[1, 50]], Sampling(max_new_tokens=20))
    assert changed != first
    assert changed == generate(model.double(), [[1, 50]], Sampling(max_new_tokens=20))


def test_joined_weights_take_no_memory_for_matrices_that_are_read_as_they_are():
    model = tiny_model()
    attn, mlp = model.model.layers[0].self_attn, model.model.layers[0].mlp
    _, o, _, down, *_ = join_weights(model)
    assert o is attn.o_proj.weight and down is mlp.down_proj.weight


# ---- batches ----


def batch_sizes(model, prompts, limit):
    """The number of sequences in each decoding step, seen at the embedding."""
    sizes = []
    hook = model.model.embed_tokens.register_forward_hook(lambda module, ids, out: sizes.append(len(ids[0])))
    with hook:
        replies = generate(model, prompts, Sampling(max_new_tokens=limit))
    return replies, sizes[1:]  # the first call reads the prompts


def test_replies_that_have_ended_leave_the_batch_once_they_are_a_quarter_of_it():
    model = tiny_model(0)
    with torch.no_grad():
        model.lm_head.weight[2] *= 6  # the end token wins sooner or later
    prompts = [[1, 50 + number] + [60 + 7 * number, 90 + number] * (5 * number % 8) for number in range(8)]
    replies, sizes = batch_sizes(model, prompts, 60)
    expected, active = [], 8
    for step in range(1, 60):
        unfinished = sum(len(reply) >= step for reply in replies)
        active = unfinished if unfinished <= 0.75 * active else active
        expected.append(active)
    assert sizes == expected and len(set(sizes)) == 4


@pytest.mark.parametrize(
    "lengths, cut_short, size, expected",
    [
        ([2, 101, 3, 111, 111], {0: 7, 2: 8}, 9, [[0, 2, 1, 3, 4], [0], [2]]),
        ([4, 70, 4, 4], {0: 5, 2: 5, 3: 5}, 2, [[0, 2], [3, 1], [0, 2], [3]]),
        ([4, 70, 4], {0: 5, 2: 6}, 9, [[0, 2, 1], [0], [2]]),
        ([5, 1, 3], {}, 2, [[1, 2], [0]]),
        ([], {}, 9, []),
    ],
)
def test_prompts_of_like_length_share_a_batch_and_what_a_longer_one_cut_short_goes_on(
    lengths, cut_short, size, expected
):
    prompts, replies, unfinished = [[1] * n for n in lengths], [[] for _ in lengths], set(range(len(lengths)))
    found = []
    for batch in batches_of_like_length(prompts, replies, unfinished, size):
        for number in batch:
            replies[number] = [9] * cut_short.get(number, 0)
        unfinished -= set(batch).difference(cut_short)
        found.append(batch)
    assert found == expected
