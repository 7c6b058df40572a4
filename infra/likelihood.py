"""How likely a model finds what is written: log-probabilities of continuations, the loss of texts."""

import math

import torch
from tqdm import tqdm

from infra.tokenizer import BOS, EOS

POSITIONS_TOGETHER = 4096  # in a batch: their logits take 4 bytes for each token of the vocabulary


@torch.inference_mode()
def log_likelihoods(model, pairs: list[tuple[list[int], list[int]]], shows_progress=False) -> list[float]:
    """log P(continuation | prompt) in nats of each pair of ids.

    What is longer than the model's context loses its beginning. Pairs that differ in their last id alone,
    such as the letters after a question, share a row.
    """
    context, device = model.config.max_position_embeddings, model.lm_head.weight.device
    of_row, found = {}, [0.0] * len(pairs)
    for number, (prompt, continuation) in enumerate(pairs):
        of_row.setdefault(tuple((prompt + continuation)[:-1][-context:]), []).append(number)
    rows = sorted(of_row, key=len, reverse=True)
    with tqdm(total=len(rows), unit="row", disable=None if shows_progress else True, leave=False) as bar:
        while rows:
            count = max(1, POSITIONS_TOGETHER // len(rows[0]))
            batch, rows = rows[:count], rows[count:]
            padded = [list(row) + [0] * (len(batch[0]) - len(row)) for row in batch]
            logits = model(torch.tensor(padded, device=device))  # (B, T, V)
            for row, of_positions in zip(batch, logits):
                for number in of_row[row]:
                    labels = torch.tensor(pairs[number][1][-len(row) :], device=device)
                    last = of_positions[len(row) - len(labels) : len(row)].float().log_softmax(-1)
                    found[number] = float(last.gather(1, labels[:, None]).sum())
            bar.update(len(batch))
    return found


def text_loss(model, tokenizer, texts: list[str], shows_progress=False) -> tuple[dict, list[dict]]:
    """({"tokens", "loss": nats per token, "perplexity", "bits_per_byte"}, tokens and loss of each text).

    As in training: each text has its end, one longer than the context is cut, and no segment sees the one
    before it.
    """
    context, pairs, of_text = model.config.max_position_embeddings, [], []
    for number, text in enumerate(texts):
        ids = [BOS, *tokenizer.encode(text), EOS]
        starts = range(0, len(ids) - 1, context)
        pairs += [(ids[start : start + 1], ids[start + 1 : start + 1 + context]) for start in starts]
        of_text += [number] * len(starts)
    nats, tokens = [0.0] * len(texts), [0] * len(texts)
    for number, (_, labels), found in zip(of_text, pairs, log_likelihoods(model, pairs, shows_progress)):
        nats[number] -= found
        tokens[number] += len(labels)
    loss, bits = sum(nats) / sum(tokens), sum(nats) / math.log(2)
    perplexity, bits_per_byte = math.exp(min(loss, 700)), bits / sum(len(text.encode()) for text in texts)
    total = {"tokens": sum(tokens), "loss": loss, "perplexity": perplexity, "bits_per_byte": bits_per_byte}
    return total, [{"tokens": count, "loss": one / count} for one, count in zip(nats, tokens)]
