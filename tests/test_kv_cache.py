"""The cache of keys and values: decoding with it equals one forward pass."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_config, tiny_model

from infra.cli import UserError
from infra.kv_cache import KVCache

B, T = 3, 20


def random_ids(shape=(B, T)):
    return torch.randint(3, 400, shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
@pytest.mark.parametrize("cuts", [[20], [7, 13], [1] * 20, [5, 1, 9, 5]])
@pytest.mark.parametrize("room", [T, T + 4])
def test_cached_decoding_equals_one_forward(cuts, room):
    model = tiny_model()
    cache = KVCache(model.config, B, room, "cpu")
    parts = [model(part, cache=cache) for part in random_ids().split(cuts, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(random_ids()), rtol=1e-4, atol=1e-5)
    assert cache.used == T


@torch.no_grad()
@pytest.mark.parametrize("cuts", [[14], [9, 5], [9, 1, 1, 3]])
def test_left_padding_changes_no_logits(cuts):
    model, missing = tiny_model(), [4, 0, 2]
    ids = random_ids((B, 14))
    padded = torch.stack([F.pad(row[: 14 - count], (count, 0)) for row, count in zip(ids, missing)])
    cache = KVCache(model.config, B, 14, "cpu", padding=torch.tensor(missing))
    found = torch.cat([model(part, cache=cache) for part in padded.split(cuts, dim=1)], dim=1)
    assert found.isfinite().all()
    for row, count in enumerate(missing):
        alone = model(ids[row : row + 1, : 14 - count])[0]
        torch.testing.assert_close(found[row, count:], alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("padding", [None, torch.tensor([4, 0, 2])])
def test_kept_sequences_go_on_as_they_would_with_the_others(padding):
    model, ids, chosen = tiny_model(), random_ids(), torch.tensor([2, 0])
    cache = KVCache(model.config, B, T, "cpu", padding=padding)
    model(ids[:, :9], cache=cache)
    expected = model(ids[:, 9:], cache=deepcopy(cache))[chosen]
    memory = [tensor.data_ptr() for tensor in cache.keys + cache.values]
    cache.keep(chosen)
    assert [tensor.data_ptr() for tensor in cache.keys + cache.values] == memory
    torch.testing.assert_close(model(ids[chosen, 9:], cache=cache), expected, rtol=1e-4, atol=1e-5)


def test_mask_of_padding_is_the_one_written_out():
    cache = KVCache(tiny_config(), 2, 9, "cpu", padding=torch.tensor([2, 0]))
    cache.used = 3
    mask = cache.mask(2)
    assert mask.shape == (2, 1, 2, 5)
    assert mask[0, 0].int().tolist() == [[0, 0, 1, 1, 0], [0, 0, 1, 1, 1]]
    assert mask[1, 0].int().tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]


def test_padding_sees_something_since_a_softmax_of_nothing_is_not_a_number():
    mask = KVCache(tiny_config(), 2, 9, "cpu", padding=torch.tensor([3, 0])).mask(5)
    assert mask.any(dim=-1).all() and not mask[0, 0, 3:, :3].any()


def test_cache_is_preallocated_in_the_dtype_asked_for():
    cache = KVCache(tiny_config(), B, 7, "cpu", torch.bfloat16)
    shapes = {tuple(tensor.shape) for tensor in cache.keys + cache.values}
    assert shapes == {(B, 2, 7, 8)} and len(cache.keys) == len(cache.values) == 3
    assert {tensor.dtype for tensor in cache.keys + cache.values} == {torch.bfloat16}


def test_cache_refuses_more_than_the_context():
    with pytest.raises(UserError, match="129 positions do not fit: .*max_position_embeddings is 128"):
        KVCache(tiny_config(), 1, 129, "cpu")
