"""Attention on a CPU that goes through a batch document by document and computes nothing between two of them.

Under a mask a row costs the square of its length, whatever the mask hides: of five documents of 200 tokens
four fifths. It is an operator of its own, which torch.compile leaves whole, and has a derivative of its own,
since autograd would fill a tensor of the whole batch for each document. bfloat16 is calculated in float32: on
an AMD EPYC (Zen 4) the kernel's backward pass over 70 positions then takes 0.16 ms instead of 0.88 ms.

Shapes: q, k, v and the output (B, H, T, D), document_ids (B, T), the softmaxes' log_sums (B, H, T).
"""

from collections.abc import Iterator

import torch
from torch import Tensor

ATTEND = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # of F.scaled_dot_product_attention
BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def document_attention(q, k, v, document_ids) -> Tensor:
    """softmax(q k^T / sqrt(D)) v over the keys up to a query in its document, which lies in one piece."""
    return attend(q, k, v, document_ids)[0]


def documents(document_ids: Tensor) -> Iterator[tuple[slice, slice, slice]]:
    """Where each lies in tensors of (B, H, T, ...): of [[1, 1, 2]] in row 0, all heads, 0:2, then 2:3."""
    for row, changes in enumerate(document_ids[:, 1:] != document_ids[:, :-1]):
        starts = [0, *(changes.nonzero().flatten() + 1).tolist()]
        for start, end in zip(starts, [*starts[1:], document_ids.shape[1]]):
            yield slice(row, row + 1), slice(None), slice(start, end)


def empty(q: Tensor) -> tuple[Tensor, Tensor]:
    """An output and its log_sums; the output laid out as (B, T, H, D), as projections read and write."""
    B, H, T, D = q.shape
    log_sums = q.new_empty(B, H, T, dtype=torch.promote_types(q.dtype, torch.float32))
    return q.new_empty(B, T, H, D).transpose(1, 2), log_sums


@torch.library.custom_op("weakwater::document_attention", mutates_args=())
def attend(q: Tensor, k: Tensor, v: Tensor, document_ids: Tensor) -> tuple[Tensor, Tensor]:
    output, log_sums = empty(q)
    q, k, v = (tensor.to(log_sums.dtype) for tensor in (q, k, v))
    for document in documents(document_ids):
        output[document], log_sums[document] = ATTEND(q[document], k[document], v[document], is_causal=True)
    return output, log_sums


@torch.library.custom_op("weakwater::document_attention_backward", mutates_args=())
def attend_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, output: Tensor, log_sums: Tensor, document_ids: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    gradients = tuple(empty(tensor)[0] for tensor in (q, k, v))
    tensors = [tensor.to(log_sums.dtype) for tensor in (gradient, q, k, v, output, log_sums)]
    for document in documents(document_ids):
        parts = (tensor[document] for tensor in tensors)
        for whole, part in zip(gradients, BACKWARD(*parts, dropout_p=0.0, is_causal=True)):
            whole[document] = part
    return gradients


def keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:3], *output, inputs[3])


def backward(ctx, gradient, _):
    return *attend_backward(gradient, *ctx.saved_tensors), None


attend.register_fake(lambda q, k, v, document_ids: empty(q))
attend_backward.register_fake(lambda gradient, *tensors: tuple(empty(tensor)[0] for tensor in tensors[:3]))
attend.register_autograd(backward, setup_context=keep)
