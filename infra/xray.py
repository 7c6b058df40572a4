"""What a model computed where it chose a token: its choice layer by layer, and what each head looked at."""

import torch

from infra.inside import RIVALS, token_probabilities
from infra.lens import readable
from infra.source_shapes import shape_lines


def describe_reply(model, tokenizer, prompt: list[int], reply: list[int]) -> dict:
    """{"prompt": the texts of its tokens, "reply": [{"text", "probability", "rivals"}, ...]}; rivals are the
    likeliest other tokens, [text, probability]."""
    described = []
    for id, (own, rivals) in zip(reply, token_probabilities(model, prompt, reply)):
        others = [[readable(tokenizer, other), value] for other, value in rivals]
        described.append({"text": readable(tokenizer, id), "probability": own, "rivals": others})
    return {"prompt": [readable(tokenizer, id) for id in prompt], "reply": described}


@torch.inference_mode()
def describe_step(model, tokenizer, ids: list[int], chosen: int) -> dict:
    """What was computed at the last of `ids` (T), where `chosen` was taken to follow them.

    "candidates": the texts of the chosen token and its rivals; "lens": for the embedding and each layer, the
    likeliest token there, {"text", "probability"}, and "of", the probabilities of the candidates;
    "attention": the weights of that position (L, H, T); "shapes": those of `shape_lines`.
    """
    hidden, attention = trace(model, ids)
    probabilities = lens(model, hidden)  # (L + 1, V)
    rivals = [id for id in probabilities[-1].topk(RIVALS + 1).indices.tolist() if id != chosen]
    candidates = [chosen, *rivals[:RIVALS]]
    largest, likeliest = (values.tolist() for values in probabilities.max(-1))
    rows = zip(likeliest, largest, probabilities[:, candidates].tolist())
    return {
        "candidates": [readable(tokenizer, id) for id in candidates],
        "lens": [{"text": readable(tokenizer, id), "probability": value, "of": of} for id, value, of in rows],
        "attention": attention.tolist(),
        "shapes": shape_lines(model, len(ids)),
    }


def trace(model, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """(hidden states of the last position, after the embedding and after each layer (L + 1, C); the attention
    weights of its heads (L, H, T))."""
    decoder, T = model.model, len(ids)
    rope = decoder.rope(0, T)
    x = decoder.embed_tokens(torch.tensor([ids], device=model.lm_head.weight.device))  # (1, T, C)
    hidden, weights = [x[0, -1]], []
    for layer in decoder.layers:
        weights.append(
            attention_weights(layer.self_attn, layer.input_layernorm(x), rope)[:, -1].clone()
        )  # a view would keep all of it
        x = layer(x, rope, None, None)
        hidden.append(x[0, -1])
    return torch.stack(hidden), torch.stack(weights)


def attention_weights(attention, x: torch.Tensor, rope) -> torch.Tensor:
    """softmax(q k^T / sqrt(D)) of a layer's heads: x (1, T, C) -> (H, T, T).

    With the identity in place of the values, what attention gives is its weights.
    """
    T, D = x.shape[1], attention.head_dim
    q = attention.q_proj(x).view(1, T, -1, D).transpose(1, 2)  # (1, H, T, D)
    k = attention.k_proj(x).view(1, T, -1, D).transpose(1, 2)  # (1, K, T, D)
    identity = torch.eye(T, device=x.device, dtype=x.dtype).expand(1, k.shape[1], T, T)
    return attention.attend(q, k, identity, rope, None, None).view(T, -1, T).transpose(0, 1)


def lens(model, hidden: torch.Tensor) -> torch.Tensor:
    """The logit lens (nostalgebraist 2020): what the final norm and head would make of the hidden states of
    each layer (L + 1, C) -> probabilities (L + 1, V)."""
    return model.lm_head(model.model.norm(hidden)).float().softmax(-1)
