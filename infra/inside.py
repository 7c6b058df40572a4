"""A reply seen from inside: how likely the model found each of its tokens, and which others."""

import torch

from infra.lens import readable

RIVALS = 5
LEVELS = ((0.9, 32), (0.5, 36), (0.2, 33), (0.0, 31))  # at least so likely: green, cyan, yellow, red


@torch.inference_mode()
def token_probabilities(model, prompt: list[int], reply: list[int]) -> list[tuple[float, list]]:
    """(its probability, [(id, probability) of the RIVALS likeliest others]) of each id of a reply.

    They are the model's own, before temperature and all that narrows the choice.
    """
    logits = model(torch.tensor([prompt + reply], device=model.lm_head.weight.device))[0]  # (T, V)
    probabilities = logits[len(prompt) - 1 : -1].float().softmax(-1)
    largest, ids = probabilities.topk(RIVALS + 1)
    found = []
    for own, id, row, row_ids in zip(probabilities, reply, largest.tolist(), ids.tolist()):
        rivals = [(other, value) for other, value in zip(row_ids, row) if other != id]
        found.append((own[id].item(), rivals[:RIVALS]))
    return found


def describe_probabilities(model, tokenizer, prompt: list[int], reply: list[int], has_colours: bool) -> str:
    """A line for each token of a reply, such as ` 87.1%  个    只 5.0%  件 3.1%  ...`."""
    lines = []
    for id, (own, rivals) in zip(reply, token_probabilities(model, prompt, reply)):
        token = readable(tokenizer, id)
        if has_colours:
            colour = next(colour for least, colour in LEVELS if own >= least)
            token = f"\033[{colour}m{token}\033[0m"
        others = "  ".join(f"{readable(tokenizer, other)} {value:.1%}" for other, value in rivals)
        lines.append(f"{own:6.1%}  {token}    {others}")
    return "\n".join(lines)


def describe_tokens(tokenizer, ids: list[int]) -> str:
    """Ids as text, a bar between two tokens."""
    return "|".join(readable(tokenizer, id) for id in ids)
