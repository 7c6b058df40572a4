"""The cross-entropy without ever holding all logits, which would take more memory than all else."""

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint as recompute

LOGITS_AT_ONCE = 2**25  # elements: 128 MiB in float32


def chunked_cross_entropy(head, hidden, labels, loss_weights, elements=LOGITS_AT_ONCE) -> torch.Tensor:
    """Sum of loss_weight * -log p(label) over hidden (N, C); `head` makes logits (N, V) of it.

    At most `elements` logits are held at a time. Each chunk's logits are computed again in the backward pass,
    instead of being kept (Chen et al. 2016, arXiv:1604.06174).
    """

    if hidden.device.type == "cpu":  # elsewhere a shape that varies costs a synchronization or a compilation
        counts = loss_weights != 0
        hidden, labels, loss_weights = hidden[counts], labels[counts], loss_weights[counts]

    def loss_of(hidden, labels, loss_weights):
        losses = F.cross_entropy(head(hidden).float(), labels, reduction="none")  # (N)
        return (losses * loss_weights).sum()

    chunk = max(1, elements // head.out_features)
    if len(labels) <= chunk:
        return loss_of(hidden, labels, loss_weights)
    chunks = zip(hidden.split(chunk), labels.split(chunk), loss_weights.split(chunk))
    return sum(recompute(loss_of, *parts, use_reentrant=False) for parts in chunks)
