"""Sample tokens from a model, many prompts at once, and turn them into text as characters complete.

Prompts of different lengths are padded on the left. The padding is a document of its own, which the prompt cannot see, so
that each reply is what it would be alone.
"""

import codecs
import math
import platform
import statistics
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tqdm import tqdm

from model import KVCache, attention, rotate

PADDING, PROMPT = 0, 1  # document numbers


@dataclass(frozen=True)
class Sampling:
    """How to choose tokens. Raises ValueError for values that choose none."""

    temperature: float = 0.0  # 0 takes the likeliest token
    top_p: float = 1.0        # 1 keeps all tokens
    top_k: int = 0            # 0 keeps all tokens
    max_new_tokens: int = 512
    seed: int = 0

    def __post_init__(self):
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"--temperature ({self.temperature}) must not be negative or infinite")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"--top_p ({self.top_p}) must be above 0 and at most 1")
        if self.top_k < 0:
            raise ValueError(f"--top_k ({self.top_k}) must not be negative")
        if self.max_new_tokens < 1:
            raise ValueError(f"--max_new_tokens ({self.max_new_tokens}) must be at least 1")


def sample(logits, sampling, generator=None):
    """One token id for each row of logits (B, V) -> (B).

    Top-k keeps the k likeliest tokens, top-p the fewest whose probabilities reach p (Holtzman et al. 2020, arXiv:1904.09751).
    """
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    logits, ids = logits.float().sort(dim=-1, descending=True)
    logits = (logits - logits[:, :1]) / sampling.temperature  # the largest is 0: a low temperature cannot overflow
    if sampling.top_k:
        logits[:, sampling.top_k :] = -torch.inf
    probabilities = logits.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities  # the sum of all likelier tokens
    probabilities[before >= sampling.top_p] = 0.0
    chosen = torch.multinomial(probabilities, 1, generator=generator)  # (B, 1), scaled to sum to 1 by itself
    return ids.gather(1, chosen)[:, 0]


@torch.inference_mode()
def stream(model, prompts, sampling, shared=None):
    """Yield one list of B token ids per step, until each reply has ended, is `max_new_tokens` long or fills the context.

    prompts: B lists of ids. shared: a dict that calls with the same weights share, so that what decoding makes of them is made
    once. A reply that has ended goes on with end tokens, but whenever half of those that are computed have ended, the others
    go on without them. Raises ValueError for a prompt that leaves no room.
    """
    config, device = model.config, model.lm_head.weight.device
    longest, context = max(map(len, prompts)), config.max_position_embeddings
    if not min(map(len, prompts)) or longest >= context:
        raise ValueError(f"found a prompt of {longest} tokens, expected 1 to {context - 1}: the model's context is {context}")
    length = min(longest + sampling.max_new_tokens, context)
    cache = KVCache(config, len(prompts), length, device, model.lm_head.weight.dtype)
    padded = [[config.pad_token_id] * (longest - len(prompt)) + prompt for prompt in prompts]
    documents = [[PADDING] * (longest - len(prompt)) + [PROMPT] * len(prompt) for prompt in prompts]
    has_padding = min(map(len, prompts)) < longest
    mask = cache.mask(longest, torch.tensor(documents, device=device) if has_padding else None)
    logits = model(torch.tensor(padded, device=device), mask, cache=cache, last_only=True)[:, -1]  # (B, V)
    generator = torch.Generator(device).manual_seed(sampling.seed)
    decode = decoding_of(model)(model, cache, {} if shared is None else shared)
    rows, end = list(range(len(prompts))), config.eos_token_id  # rows: the replies that are computed
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    for position in range(longest, length):
        next_ids = sample(logits, sampling, generator).masked_fill(ended, end)
        ended |= next_ids == end
        ids = [end] * len(prompts)
        for row, id in zip(rows, next_ids.tolist()):
            ids[row] = id
        yield ids
        unfinished = sum(id != end for id in ids)
        if position + 1 == length or not unfinished:
            return
        if decode.can_drop_rows and unfinished <= len(rows) / 2:
            kept = (~ended).nonzero()[:, 0]
            next_ids, ended, rows = next_ids[kept], ended[kept], [rows[place] for place in kept.tolist()]
            decode.keep(kept)
        logits = decode(next_ids[:, None])


def decoding_of(model):
    weight = model.lm_head.weight
    if weight.device.type == "cpu" and weight.dtype == torch.float32:
        return CPUDecoding
    return CapturedDecoding if weight.device.type == "cuda" else Decoding


class Decoding:
    """One more token for each sequence in a cache: ids (B, 1) -> logits (B, V)."""

    can_drop_rows = True

    def __init__(self, model, cache, shared):
        self.model, self.cache, self.shared = model, cache, shared

    def keep(self, rows):
        """Go on with these sequences alone."""
        self.cache = self.cache.selected(rows)

    def __call__(self, ids):
        return self.model(ids, cache=self.cache, last_only=True)[:, -1]


class CPUDecoding(Decoding):
    """The same on a CPU in float32, where small products and the calls between them cost as much as reading the weights: fewer of both."""

    def __init__(self, *args):
        super().__init__(*args)
        self.product = self.arranged = None  # the fastest one for this number of sequences, and the weights as it takes them

    def keep(self, rows):
        super().keep(rows)
        self.product = self.arranged = None

    @property
    def weights(self):
        """[qkv, o, gate_up, down of the first layer, ..., lm_head]; made by the first call, so that the first token does not wait for it.

        Those that follow an RMSNorm contain its weight and the sqrt(C) of its mean, C being the hidden size: what is left of
        it is `normalize`. Some 0.7 times the model's memory, and once more the model's where the product rearranges them.
        """
        if "weights" not in self.shared:
            self.shared["weights"] = self.join_weights()
        return self.shared["weights"]

    def join_weights(self):
        decoder, found = self.model.model, []

        def after(norm, *linears):
            return torch.cat([linear.weight for linear in linears]) * (norm.weight * math.sqrt(self.model.config.hidden_size))

        for layer in decoder.layers:
            attn, mlp = layer.self_attn, layer.mlp
            found += [after(layer.input_layernorm, attn.q_proj, attn.k_proj, attn.v_proj), attn.o_proj.weight]
            found += [after(layer.post_attention_layernorm, mlp.gate_proj, mlp.up_proj), mlp.down_proj.weight]
        return [*found, after(decoder.norm, self.model.lm_head)]

    def use(self, product):
        self.product, self.arranged = product, [product.arrange(weight) for weight in self.weights]

    def normalize(self, x):
        """x / sqrt(|x|^2 + C eps): an RMSNorm but for what the weight after it contains, in fewer calls than F.rms_norm makes on a CPU."""
        config = self.model.config
        squares = x.square().sum(dim=-1, keepdim=True)  # (B, 1)
        return x * (squares + config.hidden_size * config.rms_norm_eps).rsqrt()

    def __call__(self, ids):
        decoder, cache, config = self.model.model, self.cache, self.model.config
        B, H, K, D = len(ids), config.num_attention_heads, config.num_key_value_heads, config.head_dim
        if self.product is None:
            gate_ups = self.weights[2::4]  # the layers' largest
            self.use(fastest(products_for(B), gate_ups[0].new_ones(B, config.hidden_size), gate_ups))
        product, weights = self.product, self.arranged
        mask, where = cache.mask(1), cache.next(1)
        cos, sin = decoder.cos[where], decoder.sin[where]
        x = decoder.embed_tokens(ids[:, 0])  # (B, C)
        for number in range(config.num_hidden_layers):
            qkv, o, gate_up, down = weights[4 * number : 4 * number + 4]
            heads = product(self.normalize(x), qkv).reshape(B, H + 2 * K, 1, D)
            turned = rotate(heads[:, : H + K], cos, sin)
            k, v = cache.append(number, turned[:, H:], heads[:, H + K :])
            y = attention(turned[:, :H], k, v, mask)  # (B, H, 1, D)
            x = x + product(y.reshape(B, -1), o)
            gate, up = product(self.normalize(x), gate_up).chunk(2, dim=-1)
            x = x + product(F.silu(gate) * up, down)
        cache.advance(1)
        return product(self.normalize(x), weights[-1])


class Linear:
    """x (B, inputs), weight (outputs, inputs) -> (B, outputs), as F.linear does it."""

    def arrange(self, weight):
        """The weight as `__call__` takes it."""
        return weight

    def __call__(self, x, weight):
        return F.linear(x, weight)


class MatrixFirst(Linear):
    """By the product of the other order, whose kernel has other numbers of vectors at which it is good."""

    def __call__(self, x, weight):
        return (weight @ x.T).T.contiguous()


class MatrixFirstTwice(Linear):
    """The same for one vector, given twice: some processors' kernel for one vector uses one core, that for two uses all."""

    def __call__(self, x, weight):
        return (weight @ torch.cat([x, x]).T)[:, :1].T


class Packed(Linear):
    """By oneDNN, with the weight in the order in which its kernel reads it. The operators are private ones of torch, of 2.5 to 2.14 at least."""

    @staticmethod
    def is_available():
        has_operators = all(hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise"))
        return torch.backends.mkldnn.is_available() and has_operators and platform.machine().lower() in ("x86_64", "amd64")  # not tried on others

    def __init__(self, B):
        self.B = B

    def arrange(self, weight):
        return torch.ops.mkldnn._reorder_linear_weight(weight, self.B)

    def __call__(self, x, weight):
        return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def products_for(B):
    """Those that may be the fastest for B sequences. One alone is bound by reading the weights, in whatever order they are."""
    if B == 1:
        return [Linear(), MatrixFirstTwice()]
    return [Linear(), MatrixFirst(), *([Packed(B)] if Packed.is_available() else [])]


def fastest(products, x, weights):
    """The product that takes the least time with x (B, inputs) and `weights`, each (outputs, inputs): it depends on the processor and on B.

    Products round differently, so a chance that decides between two of them can change a reply from one run to the next. The
    first is therefore taken unless another saves a tenth of the time.
    """
    seconds, arranged = [[] for _ in products], [[product.arrange(weight) for weight in weights] for product in products]
    for turn in range(max(len(weights), 5)):
        for number, product in enumerate(products):
            weight = arranged[number][(turn * len(products) + number) % len(weights)]  # not the one just read, which the processor may still hold
            start = time.perf_counter()
            product(x, weight)
            seconds[number].append(time.perf_counter() - start)
    medians = [statistics.median(of_one) for of_one in seconds]
    best = min(medians)
    return products[0] if best > 0.9 * medians[0] else products[medians.index(best)]


class CapturedDecoding(Decoding):
    """The same, recorded at the first call as a CUDA graph and replayed: one launch, where some 300 kernels keep the card waiting."""

    can_drop_rows = False  # fewer rows would be another graph, to be recorded anew
    graph = None

    def capture(self, ids):
        self.cache.fix()
        self.ids = ids.clone()
        before = torch.cuda.Stream()
        before.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(before):  # libraries set themselves up in the first calls, which cannot be recorded
            for _ in range(2):
                super().__call__(self.ids)
                self.cache.at -= 1  # as if it had not been: the next call writes the same position anew
        torch.cuda.current_stream().wait_stream(before)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=before, capture_error_mode="thread_local"):  # another thread may be pinning batches
            self.logits = super().__call__(self.ids)

    def __call__(self, ids):
        if self.graph is None:
            self.capture(ids)
        self.ids.copy_(ids)
        self.graph.replay()
        return self.logits


def batches_of_like_length(lengths, room, batch_size):
    """Numbers of the prompts to answer together. One longer than `room` would cut the replies to shorter ones short."""
    batch = []
    for number in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) == batch_size or lengths[number] > max(room, lengths[batch[0]])):
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def generate(model, prompts, sampling, batch_size=128, shows_progress=False):
    """The reply to each prompt (lists of ids), without its end token. Prompts of like length are answered together."""
    replies, end, shared = [[] for _ in prompts], model.config.eos_token_id, {}
    room = model.config.max_position_embeddings - sampling.max_new_tokens
    with tqdm(total=len(prompts), unit="reply", disable=None if shows_progress else True, leave=False) as bar:
        for chosen in batches_of_like_length([len(prompt) for prompt in prompts], room, batch_size):
            steps, before = [], bar.n
            for ids in stream(model, [prompts[number] for number in chosen], sampling, shared):
                steps.append(ids)
                bar.update(before + ids.count(end) - bar.n)
            bar.update(before + len(chosen) - bar.n)
            for number, reply in zip(chosen, zip(*steps)):
                replies[number] = list(reply[: reply.index(end)] if end in reply else reply)
    return replies


def as_text(tokenizer, ids):
    """Yield the text of a stream of token ids, whole characters only: a token may end within one."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for id in ids:
        if text := decoder.decode(tokenizer.bytes_of(id)):
            yield text
    if text := decoder.decode(b"", final=True):
        yield text
