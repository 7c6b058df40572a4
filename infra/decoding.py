"""One more token for each of several sequences: plainly, or with fewer and larger products on a CPU.

A decoding step multiplies few vectors by all weights, so on a CPU it is bound by reading the weights and by
the calls around them. `CPUDecoding` joins the matrices that read the same input, takes the gains of the
RMSNorms into the matrices behind them, and keeps all in the order in which oneDNN's kernel reads them.

Shapes: B sequences, C hidden size, H query heads, K key/value heads, D head size, V vocabulary.
"""

import math
import platform
from collections.abc import Iterator
from itertools import groupby

import torch
import torch.nn.functional as F

TOGETHER, MOST_ON_A_CARD = 128, 1024  # beyond that, a step takes as much longer as it does more
PACKED_FOR = 16  # vectors at a time: oneDNN's order for so many is as good for any other number


def decoding_of(model, cache, shared: dict):
    """The decoding step for a model and the KVCache of its sequences: ids (B, 1) -> logits (B, V).

    shared: a dict that calls with the same weights share, so that these are joined once.
    """
    weight = model.lm_head.weight
    if weight.device.type == "cpu" and weight.dtype == torch.float32:
        return CPUDecoding(model, cache, shared)
    return Decoding(model, cache)


def sequences_together(model, are_sampled: bool) -> int:
    """How many sequences to decode at a time. On a card they share a third of its free memory, filled to the
    model's context. Sampled ones are as many anywhere: they share one generator, and what a seed draws must
    not depend on the memory that is free."""
    config, weight = model.config, model.lm_head.weight
    if are_sampled or weight.device.type != "cuda":
        return TOGETHER
    positions = config.num_hidden_layers * 2 * config.num_key_value_heads * config.max_position_embeddings
    sequence_bytes = positions * config.head_dim * weight.element_size()
    return max(1, min(MOST_ON_A_CARD, torch.cuda.mem_get_info(weight.device)[0] // 3 // sequence_bytes))


class Decoding:
    """The model's own forward, one position further."""

    def __init__(self, model, cache):
        self.model, self.cache = model, cache

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model(ids, cache=self.cache, last_only=True)[:, -1]


class CPUDecoding(Decoding):
    """The same in float32 on a CPU, to rounding. Its weights take as much memory as the model's."""

    def __init__(self, model, cache, shared: dict):
        super().__init__(model, cache)
        self.shared = shared

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        decoder, cache, config = self.model.model, self.cache, self.model.config
        H, K, D = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        if "weights" not in self.shared:
            self.shared["weights"] = arrange(join_weights(self.model))
        product, weights = self.shared["weights"][0], iter(self.shared["weights"][1])
        mask, rope = cache.mask(1), decoder.rope(cache.used, 1)
        x = decoder.embed_tokens(ids[:, 0])  # (B, C)
        for layer in decoder.layers:
            heads = product(self.normalize(x), next(weights)).view(len(ids), H + 2 * K, 1, D)
            q, k, v = heads.split([H, K, K], dim=1)
            x = x + product(layer.self_attn.attend(q, k, v, rope, mask, cache)[:, 0], next(weights))
            gate, up = product(self.normalize(x), next(weights)).chunk(2, dim=-1)
            x = x + product(F.silu(gate) * up, next(weights))
        cache.used += 1
        return product(self.normalize(x), next(weights))

    def normalize(self, x: torch.Tensor) -> torch.Tensor:
        """x / sqrt(|x|^2 + C eps): RMSNorm but for the factors that the next matrix contains."""
        config = self.model.config
        squares = x.square().sum(dim=-1, keepdim=True)  # (B, 1)
        return x * (squares + config.hidden_size * config.rms_norm_eps).rsqrt()


def join_weights(model) -> list[torch.Tensor]:
    """[qkv, o, gate_up, down of the first layer, ..., lm_head], each (outputs, inputs).

    Those behind an RMSNorm contain its gain and the sqrt(C) of its mean.
    """

    def behind(norm, *linears):
        joined = torch.cat([linear.weight for linear in linears])
        return joined * (norm.weight * math.sqrt(model.config.hidden_size))

    found = []
    for layer in model.model.layers:
        attn, mlp = layer.self_attn, layer.mlp
        found += [behind(layer.input_layernorm, attn.q_proj, attn.k_proj, attn.v_proj), attn.o_proj.weight]
        found += [behind(layer.post_attention_layernorm, mlp.gate_proj, mlp.up_proj), mlp.down_proj.weight]
    return [*found, behind(model.model.norm, model.lm_head)]


def arrange(weights: list[torch.Tensor]):
    """(a function x (B, inputs), weight -> x weight^T, the weights in the order in which it reads them).

    It depends on the machine alone: the same model, prompt and seed give the same reply each time.
    """
    if not can_pack():
        return F.linear, weights
    return packed_linear, [torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_FOR) for weight in weights]


def packed_linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def can_pack() -> bool:
    """True where torch has oneDNN's operators on packed weights, which are private: 2.5 to 2.14 have them."""
    names = ("_reorder_linear_weight", "_linear_pointwise")
    has_operators = all(hasattr(torch.ops.mkldnn, name) for name in names)
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")  # not tried on others
    return torch.backends.mkldnn.is_available() and has_operators and is_x86


def batches_of_like_length(
    prompts: list, replies: list, unfinished: set[int], batch_size: int
) -> Iterator[list[int]]:
    """Numbers of the prompts that share a batch; then of those still `unfinished`, which a longer prompt
    beside them cut short, by the lengths of prompt and reply."""

    def lengths(number: int) -> tuple[int, int]:
        return len(prompts[number]), len(replies[number])

    yield from cut(sorted(unfinished, key=lengths), batch_size)
    for _, alike in groupby(sorted(unfinished, key=lengths), lengths):
        yield from cut(list(alike), batch_size)


def cut(numbers: list[int], size: int) -> list[list[int]]:
    return [numbers[start : start + size] for start in range(0, len(numbers), size)]
