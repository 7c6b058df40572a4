"""Attention document by document gives the numbers of attention under a mask."""

import pytest
import torch

from infra.document_attention import document_attention, documents
from model import attention, dense_mask

IDS = torch.tensor([[1] * 7 + [2] * 20 + [3], [1] * 28, [1] * 3 + [0] * 25])  # 0 is padding


def output_and_gradients(attend, dtype, mask):
    generator = torch.Generator().manual_seed(0)
    draw = lambda: torch.randn(3, 28, 4, 16, generator=generator).to(dtype).transpose(1, 2)
    q, k, v = (draw().requires_grad_() for _ in range(3))
    output = attend(q, k, v, mask)
    return output, *torch.autograd.grad(output, (q, k, v), draw())


@pytest.mark.parametrize(
    "dtype, error", [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.05)]
)
def test_numbers_are_those_of_attention_under_a_mask(dtype, error):
    found = output_and_gradients(document_attention, dtype, IDS)
    exact = output_and_gradients(attention, torch.float64, dense_mask(IDS))
    masked = output_and_gradients(attention, dtype, dense_mask(IDS))
    for ours, same_dtype, reference in zip(found, masked, exact):
        assert ours.dtype == dtype and ours.shape == reference.shape
        assert (ours - reference).abs().max() <= max(error, 2 * (same_dtype - reference).abs().max())


def test_operator_keeps_the_rules_that_torch_compile_relies_on():
    q, k, v = (torch.randn(3, 4, 28, 16, requires_grad=True) for _ in range(3))
    torch.library.opcheck(torch.ops.weakwater.document_attention.default, (q, k, v, IDS))


def test_documents_are_found_where_numbers_change():
    everything = slice(None)
    found = list(documents(torch.tensor([[1, 1, 2, 0], [5, 5, 5, 5]])))
    spans = [(0, 0, 2), (0, 2, 3), (0, 3, 4), (1, 0, 4)]
    assert found == [(slice(row, row + 1), everything, slice(start, end)) for row, start, end in spans]
