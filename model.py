"""The decoder: a LLaMA (Touvron et al. 2023, arXiv:2302.13971) written out, with Hugging Face's names.

Letters in the shape comments: B batch, T query positions, S key positions, C hidden size, H query heads, K
key/value heads, D head size, V vocabulary.

Several documents can share a row. They cannot see each other, because attention is masked by `document_ids`:
a query sees the keys at or before it that carry its own document's number. Positions need no restart in each
document, since RoPE depends on differences of positions only.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from Config import LLMConfig
from infra.checkpoint import load_model
from infra.document_attention import document_attention
from infra.loss import chunked_cross_entropy


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        # in float32: the square of a half-precision number overflows beyond 255
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).type_as(x)


def rope_tables(length: int, head_dim: int, theta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of position * theta^(-2i/D), each (length, D) (Su et al. 2021, arXiv:2104.09864).

    The sign of sin is folded into its first half, as `rotate` needs it.
    """
    frequencies = theta ** (-torch.arange(0, head_dim, 2).float() / head_dim)  # (D/2)
    angles = torch.outer(torch.arange(length).float(), frequencies)  # (length, D/2)
    return torch.cat([angles.cos(), angles.cos()], dim=-1), torch.cat([-angles.sin(), angles.sin()], dim=-1)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x[i] cos - x[i + D/2] sin and x[i + D/2] cos + x[i] sin for i < D/2: pairs are half a head apart.

    x (B, heads, T, D); cos and sin (T, D). A product q k then depends on the difference of positions only.
    """
    swapped = x.float().roll(x.shape[-1] // 2, dims=-1)
    return (x.float() * cos + swapped * sin).type_as(x)


def document_mask(document_ids: torch.Tensor, in_blocks: bool = False):
    """Which keys each query may see: those at or before it that have its document's number.

    document_ids (B, T) -> a mask for `attention` in the form that its kernel takes. `in_blocks`: a BlockMask,
    with which FlexAttention skips whatever is empty (CUDA under torch.compile; Dong et al. 2024,
    arXiv:2412.05496). Else on a CPU the ids as they are, and anywhere else `dense_mask`.
    """
    B, T = document_ids.shape
    if in_blocks:
        may_see = lambda b, h, q, k: (q >= k) & (document_ids[b, q] == document_ids[b, k])
        return create_block_mask(may_see, B, None, T, T, device=document_ids.device)
    return document_ids if document_ids.device.type == "cpu" else dense_mask(document_ids)


def dense_mask(document_ids: torch.Tensor) -> torch.Tensor:
    """The same, true where a query sees a key: (B, T) -> (B, 1, T, T)."""
    same = document_ids[:, :, None] == document_ids[:, None, :]  # (B, T, T); padding sees padding
    return same.tril()[:, None]  # (B, 1, T, T)


def attention(q, k, v, mask=None) -> torch.Tensor:
    """softmax(q k^T / sqrt(D)) v, by the fastest kernel for the kind of mask.

    q (B, H, T, D), k and v (B, K, S, D) -> (B, H, T, D). mask: document ids (B, T), a BlockMask, true where a
    query sees a key (B, 1, T, S), or None: one query sees all keys, several are causal, with S = T.
    """
    if isinstance(mask, BlockMask):
        return flex_attention(q, k, v, block_mask=mask, enable_gqa=k.shape[1] < q.shape[1])
    if k.shape[1] < q.shape[1]:
        groups = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)  # (B, H, S, D)
    if mask is not None and mask.dim() == 2:
        return document_attention(q, k, v, mask)
    is_causal = mask is None and q.shape[2] > 1
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal)


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245); multi-head attention where K = H."""

    def __init__(self, config: LLMConfig, layer: int):
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        C, D = config.hidden_size, config.head_dim
        self.q_proj = nn.Linear(C, config.num_attention_heads * D, bias=False)
        self.k_proj = nn.Linear(C, config.num_key_value_heads * D, bias=False)
        self.v_proj = nn.Linear(C, config.num_key_value_heads * D, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * D, C, bias=False)

    def forward(self, x, rope, mask, cache):
        B, T, _ = x.shape
        q = self.q_proj(x).view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, H, T, D)
        k = self.k_proj(x).view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, K, T, D)
        v = self.v_proj(x).view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, K, T, D)
        return self.o_proj(self.attend(q, k, v, rope, mask, cache))  # (B, T, C)

    def attend(self, q, k, v, rope, mask, cache):
        """Rotate, append to the cache, attend: q (B, H, T, D), k and v (B, K, T, D) -> (B, T, H D).

        Apart from `forward`, since infra/decoding.py makes q, k and v by a product of its own.
        """
        q, k = rotate(q, *rope), rotate(k, *rope)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)  # (B, K, S, D)
        return attention(q, k, v, mask).transpose(1, 2).flatten(2)  # (B, T, H D)


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)) (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: LLMConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Attention, then the MLP, each added to what came in (pre-norm residuals)."""

    def __init__(self, config: LLMConfig, layer: int):
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x, rope, mask, cache):
        x = x + self.self_attn(self.input_layernorm(x), rope, mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Token ids in, hidden states out: `model.` in the names of the parameters."""

    def __init__(self, config: LLMConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        cos, sin = rope_tables(config.max_position_embeddings, config.head_dim, config.rope_theta)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def rope(self, start: int, T: int):
        """cos and sin of T positions, each (T, D)."""
        return self.cos[start : start + T], self.sin[start : start + T]

    def forward(self, input_ids, mask, cache):
        T = input_ids.shape[1]
        rope = self.rope(0 if cache is None else cache.used, T)
        x = self.embed_tokens(input_ids)  # (B, T, C)
        for layer in self.layers:
            x = layer(x, rope, mask, cache)
        if cache is not None:
            cache.used += T
        return self.norm(x)


class WeakWater(nn.Module):
    """The language model: `model(input_ids, mask)` gives logits; with labels and loss weights, a loss."""

    def __init__(self, config: LLMConfig):
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                # each layer adds two outputs to the residual stream, whose variance must not grow with depth
                # (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners")
                is_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                scale = math.sqrt(2 * config.num_hidden_layers) if is_residual else 1
                nn.init.normal_(parameter, std=config.initializer_range / scale)

    from_pretrained = classmethod(load_model)  # WeakWater.from_pretrained("out/SFT")

    def forward(self, input_ids, mask=None, labels=None, loss_weights=None, cache=None, last_only=False):
        """input_ids (B, T) -> logits (B, T, V); with labels and loss_weights (B, T), a sum of losses in nats.

        mask: the result of `document_mask`, or None (causal); with a KVCache, the cache's own is taken.
        last_only: logits of the last position alone (B, 1, V), all that generation needs.
        A sum, not a mean: its divisor is the loss weight of the whole step, which no batch knows.
        """
        if cache is not None:
            mask = cache.mask(input_ids.shape[1])
        hidden = self.model(input_ids, mask, cache)  # (B, T, C)
        if labels is None:
            return self.lm_head(hidden[:, -1:] if last_only else hidden)  # (B, T or 1, V)
        hidden, labels, loss_weights = hidden.flatten(0, 1), labels.flatten(), loss_weights.flatten()
        # (loss_weights * F.cross_entropy(self.lm_head(hidden), labels, reduction="none")).sum(), in chunks
        return chunked_cross_entropy(self.lm_head, hidden, labels, loss_weights)

    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())
