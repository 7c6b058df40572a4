"""Sampling a token, and replies streamed to many prompts at once."""

import pytest
import torch
from conftest import tiny_model

from generate import Sampling, generate, penalize, sample, stream
from infra.checkpoint import save_model
from infra.cli import UserError

END = 2


def greedy_by_hand(model, prompt, count):
    """The likeliest token of a full forward pass, again and again."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


def model_that_ends():
    """A model whose replies end sooner or later, each after another number of tokens."""
    model = tiny_model(0)
    with torch.no_grad():
        model.lm_head.weight[END] *= 6
    return model


# ---- sampling ----


def shares(logits, sampling):
    """How often each token is drawn."""
    drawn = sample(logits.expand(20_000, -1), sampling, torch.Generator().manual_seed(0))
    return torch.bincount(drawn, minlength=len(logits)) / 20_000


@pytest.mark.parametrize(
    "sampling, kept",
    [
        (Sampling(1.0, top_k=2), [0, 2]),
        (Sampling(1.0, top_p=0.7), [0, 2]),
        (Sampling(1.0, top_p=0.5), [2]),
        (Sampling(1.0, top_p=0.51), [0, 2]),
        (Sampling(1.0, top_p=0.9, top_k=3), [0, 2, 3]),
        (Sampling(1.0, min_p=0.59), [0, 2]),
        (Sampling(1.0, min_p=0.61), [2]),
        (Sampling(1.0, top_p=0.9, min_p=0.2), [0, 2, 3]),
        (Sampling(1.0), [0, 1, 2, 3]),
    ],
)
def test_top_k_and_top_p_keep_the_likeliest_and_leave_their_ratio(sampling, kept):
    probabilities = torch.tensor([0.3, 0.05, 0.5, 0.15])
    expected = torch.zeros(4)
    expected[kept] = probabilities[kept] / probabilities[kept].sum()
    torch.testing.assert_close(shares(probabilities.log(), sampling), expected, atol=0.015, rtol=0)


def test_small_tokens_are_weighed_against_the_likeliest_after_the_temperature():
    logits = torch.tensor([0.8, 0.2]).log()  # at temperature 0.5: 16 to 1
    assert shares(logits, Sampling(0.5, min_p=0.07)).tolist() == [1, 0]
    assert shares(logits, Sampling(1.0, min_p=0.07))[1] > 0.15


def test_penalty_is_that_of_hugging_face_for_negative_logits_too():
    from transformers import RepetitionPenaltyLogitsProcessor

    logits = torch.tensor([[2.0, -1.0, 0.0, 3.0, -4.0], [-2.0, 1.0, 0.5, -3.0, 4.0]])
    text = torch.tensor([[0, 1, 1], [3, 4, 2]])
    expected = RepetitionPenaltyLogitsProcessor(1.7)(text, logits.clone())
    seen = torch.zeros(2, 5, dtype=torch.bool).scatter(1, text, True)
    torch.testing.assert_close(penalize(logits, seen, 1.7), expected)


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_replies_are_those_of_hugging_face_with_a_penalty_and_without(penalty, tmp_path):
    from transformers import AutoModelForCausalLM

    model = tiny_model()
    save_model(model, tmp_path)
    theirs, prompts = AutoModelForCausalLM.from_pretrained(tmp_path).float(), [[5, 6, 7, 8], [9, 10]]
    how = {"max_new_tokens": 20, "do_sample": False, "repetition_penalty": penalty}
    alone = [theirs.generate(torch.tensor([ids]), **how)[0, len(ids) :].tolist() for ids in prompts]
    found = generate(model, prompts, Sampling(max_new_tokens=20, repetition_penalty=penalty))
    assert found == [ids[: ids.index(END)] if END in ids else ids for ids in alone]
    assert (found == generate(model, prompts, Sampling(max_new_tokens=20))) == (penalty == 1)


def test_temperature_sharpens_by_its_formula():
    logits = torch.tensor([1.0, 0.0, -1.0])
    torch.testing.assert_close(shares(logits, Sampling(0.5)), (logits / 0.5).softmax(0), atol=0.015, rtol=0)


def test_temperature_0_takes_the_likeliest():
    logits = torch.tensor([[1.0, 3.0, 2.0], [5.0, 3.0, 2.0]])
    assert sample(logits, Sampling(0.0)).tolist() == [1, 0]


@pytest.mark.parametrize("logits", [[1e4, -1e4, 0.0], [1.0, 0.0, 0.9]])
def test_temperature_near_0_takes_the_likeliest_without_overflow(logits):
    for temperature in (1e-6, 1e-30, 1e-46, 1e-300):
        assert sample(torch.tensor([logits]), Sampling(temperature)).tolist() == [0]


def test_each_row_is_drawn_from_its_own_logits():
    logits = torch.full((3, 5), -50.0)
    logits[0, 4] = logits[1, 0] = logits[2, 3] = 50.0
    assert sample(logits, Sampling(1.0)).tolist() == [4, 0, 3]


@pytest.mark.parametrize("height, expected", [(0.0, 1), (1 - 2**-24, 3)])
def test_the_lowest_and_the_highest_number_draw_the_first_and_last_token_that_can_be(
    height, expected, monkeypatch
):
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.full(shape, height))
    logits = torch.tensor([[-torch.inf, 0.1, 0.3, 0.2, -torch.inf]])
    assert sample(logits, Sampling(1.0)).tolist() == [expected]


@pytest.mark.parametrize(
    "bad", [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.5}, {"top_k": -1}, {"max_new_tokens": 0}]
)
def test_sampling_that_chooses_nothing_is_refused(bad):
    with pytest.raises(UserError, match=f"--{next(iter(bad))}"):
        Sampling(**bad)


def test_same_seed_gives_the_same_reply_and_another_seed_another():
    model = tiny_model()
    first, again, other = (
        generate(model, [[1, 50]], Sampling(temperature=1.0, max_new_tokens=20, seed=seed))
        for seed in (1, 1, 2)
    )
    assert first == again != other


def test_a_batch_does_not_repeat_the_draws_of_the_one_before():
    sampling = Sampling(temperature=1.0, max_new_tokens=20, seed=1)
    replies = generate(tiny_model(), [[1, 50]] * 6, sampling, batch_size=2)
    assert len(set(map(tuple, replies))) == 6


# ---- replies ----


def test_greedy_stream_takes_the_likeliest_token_of_a_full_forward():
    model = tiny_model()
    expected = greedy_by_hand(model, [1, 50, 60, 70], 20)
    streamed = [ids[0] for ids in stream(model, [[1, 50, 60, 70]], Sampling(max_new_tokens=20))]
    assert streamed == (expected[: expected.index(END) + 1] if END in expected else expected)


def test_prompts_answered_together_get_the_replies_they_get_alone():
    model = tiny_model(3)
    prompts = [[1, 50], [1, 60, 70, 80, 90, 100], [1, 7, 9], [1, *range(20, 60)]]
    alone = [greedy_by_hand(model, prompt, 30) for prompt in prompts]
    assert generate(model, prompts, Sampling(max_new_tokens=30)) == alone
    assert len({tuple(reply) for reply in alone}) == 4


def test_small_batches_give_the_same_replies_in_the_order_of_the_prompts():
    model = tiny_model(3)
    prompts = [[1, *range(20, 20 + length)] for length in (9, 2, 30, 4, 17)]
    together = generate(model, prompts, Sampling(max_new_tokens=20))
    assert generate(model, prompts, Sampling(max_new_tokens=20), batch_size=2) == together
    assert together == [greedy_by_hand(model, prompt, 20) for prompt in prompts]


def test_long_prompt_does_not_shorten_the_replies_beside_it():
    model = tiny_model(3)
    prompts = [[1, 50], [1] + [60] * 100, [1, 7, 9], [1] + [70] * 110, [1] + [80] * 110]
    alone = [generate(model, [prompt], Sampling(max_new_tokens=60))[0] for prompt in prompts]
    assert generate(model, prompts, Sampling(max_new_tokens=60)) == alone
    assert list(map(len, alone)) == [60, 27, 60, 17, 17]


def test_replies_that_have_ended_do_not_change_those_beside_them():
    model = model_that_ends()
    prompts = [[1, 50 + number] + [60 + 7 * number, 90 + number] * (5 * number % 8) for number in range(8)]
    alone = [generate(model, [prompt], Sampling(max_new_tokens=60))[0] for prompt in prompts]
    assert generate(model, prompts, Sampling(max_new_tokens=60)) == alone
    assert len(set(map(len, alone))) > 4


def test_stream_shows_a_reply_that_has_ended_as_end_tokens():
    model = model_that_ends()
    prompts = [[1, 50 + number] for number in range(6)]
    steps = list(stream(model, prompts, Sampling(max_new_tokens=60)))
    assert {len(ids) for ids in steps} == {6}
    for reply in zip(*steps):
        if END in reply:
            assert set(reply[reply.index(END) :]) == {END}
    assert len(steps) == 60 or set(steps[-1]) == {END} != set(steps[-2])


def test_generation_stops_after_as_many_tokens_as_asked_for():
    assert len(generate(tiny_model(), [[1, 50]], Sampling(max_new_tokens=5))[0]) == 5


def test_generation_stops_at_the_context():
    assert len(generate(tiny_model(), [[1] + [50] * 120], Sampling(max_new_tokens=500))[0]) == 128 - 121


def test_generation_stops_at_the_end_token_and_leaves_it_out():
    model = model_that_ends()
    by_hand = greedy_by_hand(model, [1, 50, 60], 100)
    assert END in by_hand
    reply = generate(model, [[1, 50, 60]], Sampling(max_new_tokens=100))[0]
    assert reply == by_hand[: by_hand.index(END)]


@pytest.mark.parametrize("prompt, found", [([1] * 128, 128), ([], 0)])
def test_prompt_without_room_or_tokens_is_refused(prompt, found):
    with pytest.raises(UserError, match=f"found a prompt of {found} tokens, expected 1 to 127"):
        next(stream(tiny_model(), [prompt], Sampling()))


def test_no_prompts_give_no_replies():
    assert generate(tiny_model(), [], Sampling()) == []


def test_prompts_are_answered_together_in_any_precision():
    model = tiny_model(3).double()
    prompts = [[1, 50], [1, 60, 70, 80], [1, 7, 9]]
    in_double = generate(model, prompts, Sampling(max_new_tokens=8))
    assert generate(model.float(), prompts, Sampling(max_new_tokens=8)) == in_double
    assert all(map(len, generate(model.half(), prompts, Sampling(max_new_tokens=8))))
