"""The decoder: a LLaMA (Touvron et al. 2023, arXiv:2302.13971) written out, with Hugging Face's names for everything.

Letters in the shape comments: B batch, T query positions, S key positions, C hidden size, H query heads, K key/value
heads, D head size, V vocabulary.

Several documents can share a row. They cannot see each other, because attention is masked by `document_ids`: a query sees
the keys before it that carry its own document's number. Positions need no restart in each document, since RoPE depends on
differences of positions only.
"""

import math
from copy import copy
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.utils.checkpoint import checkpoint

from Config import LLMConfig, write_atomically

LOGITS_AT_ONCE = 2**25  # elements: 128 MiB in fp32; larger batches are graded piece by piece


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        # in float32: the square of a half-precision number overflows beyond 255
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).type_as(x)


def rope_tables(length, head_dim, theta):
    """cos and sin of position * theta^(-2i/D), each (length, D) (Su et al. 2021, arXiv:2104.09864), as `rotate` wants them.

    The halves of cos are equal; those of sin are opposite, since the first half of a turned pair subtracts.
    """
    frequencies = theta ** (-torch.arange(0, head_dim, 2).float() / head_dim)  # (D/2)
    angles = torch.outer(torch.arange(length).float(), frequencies)            # (length, D/2)
    return torch.cat([angles.cos(), angles.cos()], dim=-1), torch.cat([-angles.sin(), angles.sin()], dim=-1)


def rotate(x, cos, sin):
    """Turn each pair (x[i], x[i + D/2]) by its position's angle. x (B, heads, T, D); cos and sin (T, D)."""
    swapped = x.float().roll(x.shape[-1] // 2, dims=-1)
    return (x.float() * cos + swapped * sin).type_as(x)


def document_mask(document_ids, in_blocks=False):
    """Which keys each query may see: those at or before it that have its document's number.

    document_ids (B, T) -> a boolean mask (B, 1, T, T) or, `in_blocks`, the BlockMask with which FlexAttention skips
    whatever is empty (CUDA under torch.compile; Dong et al. 2024, arXiv:2412.05496).
    """
    B, T = document_ids.shape
    if in_blocks:
        def visible(b, h, query, key):
            return (query >= key) & (document_ids[b, query] == document_ids[b, key])

        return create_block_mask(visible, B, None, T, T, device=document_ids.device)
    same = document_ids[:, :, None] == document_ids[:, None, :]  # (B, T, T)
    return same.tril()[:, None]                                  # (B, 1, T, T)


def attention(q, k, v, mask=None):
    """softmax(q k^T / sqrt(D)) v with the fastest kernel for the mask's kind.

    q (B, H, T, D), k and v (B, K, S, D); mask None (causal, T = S, or one query that sees all), a boolean mask
    (B or 1, 1, T, S) or a BlockMask. Returns (B, H, T, D).
    """
    if isinstance(mask, BlockMask):
        return flex_attention(q, k, v, block_mask=mask, enable_gqa=k.shape[1] < q.shape[1])
    if k.shape[1] < q.shape[1]:
        groups = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)  # (B, H, S, D)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None and q.shape[2] > 1)


class KVCache:
    """Keys and values of the positions seen so far, in memory that is taken once: per layer (B, K, length, D).

    After `fix()` it takes one position at a time, and what is done with it is the same operations on the same memory each
    time, its length and place being data: only so can a step be recorded as a CUDA graph.
    """

    def __init__(self, config, batch, length, device, dtype=torch.float32):
        if length > config.max_position_embeddings:
            raise ValueError(f"{length} positions do not fit: the model's max_position_embeddings is {config.max_position_embeddings}")
        shape = (batch, config.num_key_value_heads, length, config.head_dim)
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.num_hidden_layers)]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.num_hidden_layers)]
        self.document_ids = torch.ones(batch, length, dtype=torch.long, device=device)
        self.has_documents = False
        self.length = length
        self.used = 0
        self.at = None  # once fixed, the next position (1)

    def fix(self):
        self.at = torch.tensor([self.used], device=self.document_ids.device)

    def selected(self, rows):
        """A cache of some of the sequences alone, by their numbers (B'). Not once fixed."""
        chosen = copy(self)
        chosen.keys, chosen.values = ([tensor[rows] for tensor in tensors] for tensors in (self.keys, self.values))
        chosen.document_ids = self.document_ids[rows]
        return chosen

    def next(self, T):
        """Where the next T positions are: an index for a dimension of size `length`."""
        return slice(self.used, self.used + T) if self.at is None else self.at

    def end(self, T):
        return self.used + T if self.at is None else self.length

    def advance(self, T):
        self.used += T
        if self.at is not None:
            self.at += T

    def append(self, layer, k, v):
        """Store k and v (B, K, T, D) after the positions used; returns all keys and values so far (B, K, S, D)."""
        keys, values, where, end = self.keys[layer], self.values[layer], self.next(k.shape[2]), self.end(k.shape[2])
        keys[:, :, where], values[:, :, where] = k, v
        return keys[:, :, :end], values[:, :, :end]

    def mask(self, T, document_ids=None):
        """What the next T positions, of the documents (B, T) or all of document 1, may see.

        A boolean mask (B, 1, T, S), or None where that says the same.
        """
        if document_ids is not None:
            self.has_documents = True
            self.document_ids[:, self.next(T)] = document_ids
        if not self.has_documents and self.at is None and (T == 1 or self.used == 0):
            return None
        positions = torch.arange(self.length, device=self.document_ids.device)
        query, key = positions[self.next(T)], positions[: self.end(T)]
        document = self.document_ids[:, self.next(T)]
        same = document[:, :, None] == self.document_ids[:, None, : self.end(T)]  # (B, T, S)
        return (same & (query[:, None] >= key))[:, None]                          # (B, 1, T, S)


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245); plain multi-head attention where K = H."""

    def __init__(self, config, layer):
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        C, D = config.hidden_size, config.head_dim
        self.q_proj = nn.Linear(C, config.num_attention_heads * D, bias=False)
        self.k_proj = nn.Linear(C, config.num_key_value_heads * D, bias=False)
        self.v_proj = nn.Linear(C, config.num_key_value_heads * D, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * D, C, bias=False)

    def forward(self, x, cos, sin, mask, cache):
        B, T, _ = x.shape
        q = self.q_proj(x).view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, H, T, D)
        k = self.k_proj(x).view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, K, T, D)
        v = self.v_proj(x).view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, K, T, D)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)                         # (B, K, S, D)
        y = attention(q, k, v, mask)                                      # (B, H, T, D)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, -1))           # (B, T, C)


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)) (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x, cos, sin, mask, cache):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Token ids in, hidden states out: `model.` in the names of the parameters."""

    def __init__(self, config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        cos, sin = rope_tables(config.max_position_embeddings, config.head_dim, config.rope_theta)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, input_ids, mask, cache):
        T = input_ids.shape[1]
        where = slice(0, T) if cache is None else cache.next(T)
        cos, sin = self.cos[where], self.sin[where]  # (T, D)
        x = self.embed_tokens(input_ids)             # (B, T, C)
        for layer in self.layers:
            x = layer(x, cos, sin, mask, cache)
        if cache is not None:
            cache.advance(T)
        return self.norm(x)


class WeakWater(nn.Module):
    """The language model. `model(input_ids, mask)` gives logits; with labels and weights, a loss."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                continue
            # each layer adds two outputs to the residual stream; scaled so that its variance does not grow with depth
            # (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners")
            residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            std = config.initializer_range / (math.sqrt(2 * config.num_hidden_layers) if residual else 1)
            nn.init.normal_(parameter, std=std)

    def forward(self, input_ids, mask=None, labels=None, weights=None, cache=None, last_only=False):
        """input_ids (B, T) -> logits (B, T, V); with labels and weights (B, T), the weighted sum of the losses in nats.

        mask: what `document_mask` or `KVCache.mask` returns; None lets every position see all before it, also in the cache.
        last_only: logits of the last position alone (B, 1, V), all that generation needs.
        The sum, not the mean: what it is to be divided by is the weight of the whole step, which one batch cannot know.
        """
        if cache is not None and mask is None:
            mask = cache.mask(input_ids.shape[1])
        hidden = self.model(input_ids, mask, cache)  # (B, T, C)
        if labels is None:
            return self.lm_head(hidden[:, -1:] if last_only else hidden)  # (B, T or 1, V)
        hidden, labels, weights = hidden.flatten(0, 1), labels.flatten(), weights.flatten()
        if hidden.device.type == "cpu":  # elsewhere their varying number costs more than the logits that nobody weighs
            weighs = weights > 0
            hidden, labels, weights = hidden[weighs], labels[weighs], weights[weighs]
        return self.loss_sum(hidden, labels, weights)

    def loss_sum(self, hidden, labels, weights):
        """Sum of weight * -log p(label) over hidden (N, C), without ever holding all N x V logits and their gradients."""
        positions = max(1, LOGITS_AT_ONCE // self.config.vocab_size)
        if len(labels) <= positions:
            return self.piece_loss(hidden, labels, weights)
        pieces = zip(hidden.split(positions), labels.split(positions), weights.split(positions))
        return sum(checkpoint(self.piece_loss, *piece, use_reentrant=False) for piece in pieces)

    def piece_loss(self, hidden, labels, weights):
        losses = F.cross_entropy(self.lm_head(hidden).float(), labels, reduction="none")  # (N)
        return (losses * weights).sum()

    def num_parameters(self):
        return sum(parameter.numel() for parameter in self.parameters())

    def save_pretrained(self, folder, vocabulary=""):
        """Write config.json, generation_config.json and model.safetensors: a Llama checkpoint that transformers loads.

        vocabulary: the ChatTokenizer's `vocabulary_hash`, kept in config.json so that dataset.check_vocabulary can tell.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "config.json", lambda path: path.write_text(self.config.to_json(vocabulary), encoding="utf-8"))
        ids = f'"bos_token_id": {self.config.bos_token_id}, "eos_token_id": {self.config.eos_token_id}, "pad_token_id": {self.config.pad_token_id}'
        write_atomically(folder / "generation_config.json", lambda path: path.write_text("{" + ids + "}\n", encoding="utf-8"))
        tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in self.state_dict().items()}
        if self.config.tie_word_embeddings:
            del tensors["lm_head.weight"]
        write_atomically(folder / "model.safetensors", lambda path: path.write_bytes(save(tensors, metadata={"format": "pt"})))

    @classmethod
    def from_pretrained(cls, folder):
        """The model stored in a folder. Raises FileNotFoundError or ValueError unless every tensor is there and fits."""
        path = Path(folder) / "model.safetensors"
        for needed in (path, path.with_name("config.json")):
            if not needed.is_file():
                raise FileNotFoundError(f"{needed} not found: {folder} is not a finished checkpoint")
        config = LLMConfig.load(folder)
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path}: not a whole safetensors file ({error}): copy it again, or let the training run that wrote it do so anew with --resume") from None
        layers = len({name.split(".")[2] for name in tensors if name.startswith("model.layers.")})
        if layers != config.num_hidden_layers:
            raise ValueError(f"{path}: found {layers} layers, config.json asks for {config.num_hidden_layers}")
        with torch.device("meta"):  # shapes alone: what a wrong config.json asks for may not fit the memory
            expected = cls(config).state_dict()
        if config.tie_word_embeddings:
            tensors.setdefault("lm_head.weight", tensors.get("model.embed_tokens.weight"))
        for name in sorted(expected.keys() | tensors.keys()):
            found = tuple(tensors[name].shape) if tensors.get(name) is not None else None
            wanted = tuple(expected[name].shape) if name in expected else None
            if found != wanted:
                raise ValueError(f"{path}: found {name} {found}, config.json asks for {wanted}")
        model = cls(config)
        model.load_state_dict(tensors)
        return model


def find_checkpoint(folder, made_by):
    """The folder, if it is there. Raises FileNotFoundError: which script makes it."""
    if not (Path(folder) / "model.safetensors").is_file():
        raise FileNotFoundError(f"{folder} not found: run {made_by} first, or pass --init_from")
    return folder


def pick_device(name=""):
    """The device of that name or, without one, the best there is. Raises ValueError where it cannot be used."""
    if not name:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
        if device.index is not None and device.type == "cuda":
            torch.cuda.set_device(device)  # streams, graphs and pinned memory belong to the current card
    except (RuntimeError, AssertionError):
        raise ValueError(f"device {name!r} cannot be used here, expected {'cuda or cpu' if torch.cuda.is_available() else 'cpu'}") from None
    return device


def has_fast_bf16(device):
    """True where matrix products in bfloat16 are done by the hardware, and not by way of float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # which of them exists depends on the release
    return device.type == "cpu" and any(getattr(torch.cpu, name, bool)() for name in names)
