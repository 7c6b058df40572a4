"""Keys and values of the positions that a model has seen, so that each token is computed once."""

import torch

from Config import LLMConfig
from infra.cli import UserError


class KVCache:
    """Preallocated keys and values of the positions seen so far: for each layer (B, K, length, D)."""

    def __init__(self, config: LLMConfig, batch: int, length: int, device, dtype=torch.float32, padding=None):
        """padding: (B), how many positions each sequence begins with that are padding, unseen by the rest."""
        if length > config.max_position_embeddings:
            most = f"the model's max_position_embeddings is {config.max_position_embeddings}"
            raise UserError(f"{length} positions do not fit: {most}")
        shape = (batch, config.num_key_value_heads, length, config.head_dim)
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.num_hidden_layers)]
        self.values = [torch.zeros_like(keys) for keys in self.keys]
        self.padding, self.used = padding, 0

    def append(self, layer: int, k, v):
        """Store k and v (B, K, T, D) behind the positions used; returns all so far (B, K, S, D)."""
        end = self.used + k.shape[2]
        self.keys[layer][:, :, self.used : end], self.values[layer][:, :, self.used : end] = k, v
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def mask(self, T: int):
        """What the next T positions may see: a mask (B or 1, 1, T, S), or None where that says the same."""
        if self.padding is None and (T == 1 or self.used == 0):
            return None
        positions = torch.arange(self.used + T, device=self.keys[0].device)
        causal = positions[self.used :, None] >= positions  # (T, S)
        if self.padding is None:
            return causal[None, None]
        is_real = positions >= self.padding[:, None]  # (B, S)
        # padding sees padding: a softmax of nothing is NaN
        same = is_real[:, self.used :, None] == is_real[:, None, :]  # (B, T, S)
        return (same & causal)[:, None]

    def keep(self, rows) -> None:
        """Go on with some of the sequences alone, by their numbers (B'), in the memory that there is."""
        for tensors in (self.keys, self.values):
            for layer, tensor in enumerate(tensors):
                kept = tensor[rows, :, : self.used]
                tensors[layer] = tensor[: len(rows)]
                tensors[layer][:, :, : self.used] = kept
        self.padding = None if self.padding is None else self.padding[rows]
