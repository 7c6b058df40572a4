"""Sample tokens from a model, for many prompts at once.

Prompts of different lengths are padded on the left, which the prompt cannot see and RoPE does not notice. At
temperature 0 each reply is, to rounding, what it would be alone; sampled replies share one random generator.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from tqdm import tqdm

from infra.cli import Flags, UserError, flag
from infra.decoding import batches_of_like_length, decoding_of, sequences_together
from infra.kv_cache import KVCache
from infra.questions import first_prompts, judge
from infra.scoring import shares


@dataclass(frozen=True)
class Sampling(Flags):
    """How to choose tokens. Raises UserError for values that choose none."""

    temperature: float = flag(0.0, "0 takes the likeliest token", least=0)
    top_p: float = flag(1.0, "keep the likeliest tokens that add up to so much", above=0, most=1)
    top_k: int = flag(0, "keep so many of the likeliest tokens (0: all)", least=0)
    min_p: float = flag(0.0, "keep tokens at least so many times as likely as the likeliest", least=0, most=1)
    repetition_penalty: float = flag(1.0, "above 1, what was in the text becomes less likely", above=0)
    max_new_tokens: int = flag(512, "tokens in a reply, at most", least=1)
    seed: int = flag(0, "random seed of the sampling", least=0, most=2**62)


def sample(logits: torch.Tensor, sampling: Sampling, generator=None) -> torch.Tensor:
    """One token id for each row of logits (B, V) -> (B): of the k likeliest for top-k; of the fewest whose
    probabilities reach p for top-p (Holtzman et al. 2020, arXiv:1904.09751); of those with at least p times
    the largest probability for min-p (Nguyen et al. 2024, arXiv:2407.01082)."""
    if sampling.temperature < 1e-6:  # nothing but the likeliest is left; divided by it, float32 overflows
        return logits.argmax(dim=-1)
    logits, ids = logits.float() / sampling.temperature, None
    if sampling.top_k or sampling.top_p < 1:  # only then: to sort takes longer than a small model's forward
        logits, ids = logits.sort(dim=-1, descending=True)
        logits[:, sampling.top_k or logits.shape[1] :] = -torch.inf
        sums = logits.softmax(dim=-1).cumsum(dim=-1)  # of the likeliest token, of the two likeliest, ...
        logits[:, 1:][sums[:, :-1] >= sampling.top_p] = -torch.inf
    probabilities = logits.softmax(dim=-1)
    probabilities *= probabilities >= sampling.min_p * probabilities.amax(dim=-1, keepdim=True)
    sums = probabilities.cumsum(dim=-1)  # of each row, up to 1 but for what min-p left out and rounding
    height = sums[:, -1:] * torch.rand(len(sums), 1, generator=generator, device=sums.device)
    chosen = torch.searchsorted(sums, height, right=True)  # (B, 1): the first token whose sum is above it
    return (chosen if ids is None else ids.gather(1, chosen))[:, 0]


def penalize(logits: torch.Tensor, seen: torch.Tensor, penalty: float) -> torch.Tensor:
    """Make the tokens in `seen` (B, V) less likely: their logits (B, V) divided by the penalty or, where they
    are negative, multiplied by it (Keskar et al. 2019, arXiv:1909.05858)."""
    return logits.where(~seen, torch.where(logits < 0, logits * penalty, logits / penalty))


@torch.inference_mode()
def stream(
    model, prompts: list[list[int]], sampling: Sampling, shared: dict | None = None, generator=None
) -> Iterator[list[int]]:
    """Yield one id for each of B prompts per step, until every reply has ended or has `max_new_tokens`, or
    the longest prompt and its reply fill the context.

    prompts: B lists of ids; shared: a dict that calls with the same weights share, for `decoding_of`;
    generator: of the draws (default: one that begins at the seed). A reply that has ended goes on with end
    tokens; once a quarter of those in the batch have ended, they leave it. Raises UserError for a prompt
    that leaves no room.
    """
    config, device = model.config, model.lm_head.weight.device
    longest, context = max(map(len, prompts)), config.max_position_embeddings
    if not min(map(len, prompts)) or longest >= context:
        expected = f"expected 1 to {context - 1}: the model's context is {context}"
        raise UserError(f"found a prompt of {longest} tokens, {expected}")
    length = min(longest + sampling.max_new_tokens, context)
    missing = [longest - len(prompt) for prompt in prompts]
    padding = torch.tensor(missing, device=device) if any(missing) else None
    cache = KVCache(config, len(prompts), length, device, model.lm_head.weight.dtype, padding)
    padded = [[config.pad_token_id] * count + prompt for count, prompt in zip(missing, prompts)]
    logits = model(torch.tensor(padded, device=device), cache=cache, last_only=True)[:, -1]  # (B, V)
    generator = generator or torch.Generator(device).manual_seed(sampling.seed)
    decode = decoding_of(model, cache, {} if shared is None else shared)  # the model's forward, or faster
    active, end = list(range(len(prompts))), config.eos_token_id  # the replies that are in the batch
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    seen, penalty = torch.zeros_like(logits, dtype=torch.bool), sampling.repetition_penalty
    for row, prompt in enumerate(prompts if penalty != 1 else []):
        seen[row, prompt] = True
    for position in range(longest, length):
        if penalty != 1:
            logits = penalize(logits, seen, penalty)
        next_ids = sample(logits, sampling, generator).masked_fill(ended, end)
        seen.scatter_(1, next_ids[:, None], True)
        ended |= next_ids == end
        ids = [end] * len(prompts)
        for reply, id in zip(active, next_ids.tolist()):
            ids[reply] = id
        yield ids
        unfinished = sum(id != end for id in ids)
        if position + 1 == length or not unfinished:
            return
        if unfinished <= 3 / 4 * len(active):
            kept = (~ended).nonzero()[:, 0]
            next_ids, ended, seen = next_ids[kept], ended[kept], seen[kept]
            active = [active[place] for place in kept.tolist()]
            cache.keep(kept)
        logits = decode(next_ids[:, None])


def generate(model, prompts, sampling: Sampling, batch_size=0, shows_progress=False) -> list[list[int]]:
    """The reply to each prompt, without its end token. Prompts of like length share a batch.

    batch_size: 0 for as many as the device does well together.
    """
    batch_size = batch_size or sequences_together(model, sampling.temperature > 0)
    replies, unfinished, shared = [[] for _ in prompts], set(range(len(prompts))), {}
    end = model.config.eos_token_id
    generator = torch.Generator(model.lm_head.weight.device).manual_seed(sampling.seed)
    with tqdm(total=len(prompts), unit="reply", disable=None if shows_progress else True, leave=False) as bar:
        for chosen in batches_of_like_length(prompts, replies, unfinished, batch_size):
            left = sampling.max_new_tokens - len(replies[chosen[0]])  # some were cut short by a longer prompt
            asked, steps, before = [prompts[number] + replies[number] for number in chosen], [], bar.n
            for ids in stream(model, asked, replace(sampling, max_new_tokens=left), shared, generator):
                steps.append(ids)
                bar.update(before + ids.count(end) - bar.n)
            for number, more in zip(chosen, zip(*steps)):
                replies[number] += more[: more.index(end)] if end in more else more
                room = model.config.max_position_embeddings - len(prompts[number])
                if end in more or len(replies[number]) == min(sampling.max_new_tokens, room):
                    unfinished.discard(number)
            bar.update(before + len(set(chosen) - unfinished) - bar.n)
    return replies


def judged_replies(model, tokenizer, questions, max_new_tokens=512, shows_progress=False) -> list[dict]:
    """Greedy replies to questions, a list of (prompt ids, expected reply), with their verdicts."""
    prompts, sampling = [prompt for prompt, _ in questions], Sampling(max_new_tokens=max_new_tokens)
    replies = generate(model, prompts, sampling, shows_progress=shows_progress)
    return judge(map(tokenizer.decode, replies), questions)


def score(model, tokenizer, questions, max_new_tokens=512, shows_progress=False) -> dict:
    """{"reasoning_accuracy", "well_formed"}: shares of the greedy replies to questions."""
    return shares(judged_replies(model, tokenizer, questions, max_new_tokens, shows_progress))


def example_replies(model, rows, max_new_tokens=48) -> dict[str, str]:
    """{"prompt_1", "reply_1", "prompt_2", ...}: greedy replies to the first of PackedRows, for the log."""
    prompts, decode = first_prompts(rows), rows.cache.tokenizer.decode
    replies = generate(model, prompts, Sampling(max_new_tokens=max_new_tokens))
    pairs = enumerate(zip(prompts, replies), 1)
    return {f"{name}_{n}": decode(ids) for n, pair in pairs for name, ids in zip(("prompt", "reply"), pair)}
