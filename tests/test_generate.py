"""Sampling, streaming and chat."""

import io
import sys

import pytest
import torch
from conftest import conversation, tiny_model

import eval_model
from eval_model import fit, is_right, is_well_formed
from generate import (
    PADDING, CPUDecoding, Decoding, Linear, MatrixFirst, MatrixFirstTwice, Sampling, as_text, batches_of_like_length, fastest, generate, products_for,
    sample, stream,
)  # fmt: skip
from model import KVCache


def greedy_by_hand(model, prompt, count):
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


def test_greedy_stream_takes_the_likeliest_token_of_a_full_forward():
    model = tiny_model()
    expected = greedy_by_hand(model, [1, 50, 60, 70], 20)
    streamed = [ids[0] for ids in stream(model, [[1, 50, 60, 70]], Sampling(max_new_tokens=20))]
    assert streamed == (expected[: expected.index(2) + 1] if 2 in expected else expected)


def test_prompts_answered_together_get_the_replies_they_get_alone():
    model = tiny_model(3)
    prompts = [[1, 50], [1, 60, 70, 80, 90, 100], [1, 7, 9], [1] + list(range(20, 60))]
    alone = [generate(model, [prompt], Sampling(max_new_tokens=30))[0] for prompt in prompts]
    assert generate(model, prompts, Sampling(max_new_tokens=30)) == alone
    assert len({tuple(reply) for reply in alone}) == 4


def test_long_prompt_does_not_shorten_the_replies_beside_it():
    model = tiny_model(3)
    prompts = [[1, 50], [1] + [60] * 100, [1, 7, 9], [1] + [70] * 110, [1] + [80] * 110]
    alone = [generate(model, [prompt], Sampling(max_new_tokens=60))[0] for prompt in prompts]
    assert generate(model, prompts, Sampling(max_new_tokens=60)) == alone
    assert len(alone[0]) == 60 and list(batches_of_like_length([2, 101, 3, 111, 111], 68, 9)) == [[0, 2], [1], [3, 4]]


def test_replies_that_have_ended_leave_the_batch_and_the_others_stay_what_they_are(monkeypatch):
    model, batches, products = tiny_model(0), [], {}
    with torch.no_grad():
        model.lm_head.weight[2] *= 6  # the end token wins sooner or later
    prompts = [[1, 50 + number] + [60 + 7 * number, 90 + number] * (5 * number % 8) for number in range(8)]
    alone = [generate(model, [prompt], Sampling(max_new_tokens=60))[0] for prompt in prompts]

    class Counting(CPUDecoding):
        def __call__(self, ids):
            batches.append(len(ids))
            logits = super().__call__(ids)
            products[len(ids)] = self.product
            return logits

    monkeypatch.setattr("generate.CPUDecoding", Counting)
    assert generate(model, prompts, Sampling(max_new_tokens=60)) == alone
    *_, half, fifth, three_quarters, but_one, last = sorted(map(len, alone))
    assert 0 < half < fifth < three_quarters < but_one < last == 60
    assert batches == [8] * half + [4] * (three_quarters - half) + [2] * (but_one - three_quarters) + [1] * (59 - but_one)
    assert len(set(products.values())) == 4  # chosen anew for each number of replies


@torch.inference_mode()
@pytest.mark.parametrize("batch, padding, product", [
    *((1, 0, product) for product in products_for(1)), *((3, 0, product) for product in products_for(3)), (3, 4, MatrixFirst()),
])  # fmt: skip
@pytest.mark.parametrize("changes", [{}, {"num_key_value_heads": 6, "tie_word_embeddings": False}])
def test_decoding_on_a_cpu_gives_the_logits_of_the_model(batch, padding, product, changes):
    model = tiny_model(**changes)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.uniform_(0.5, 2)
    ids = torch.randint(7, 400, (batch, 24))
    documents = torch.ones_like(ids)
    documents[0, :padding] = PADDING
    caches = [KVCache(model.config, batch, 24, "cpu") for _ in range(2)]
    for cache in caches:
        model(ids[:, :7], cache.mask(7, documents[:, :7] if padding else None), cache=cache)
    lean, whole = CPUDecoding(model, caches[0], {}), Decoding(model, caches[1], {})
    lean.use(product)
    for position in range(7, 24):
        one = ids[:, position : position + 1]
        torch.testing.assert_close(lean(one), whole(one), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(caches[0].keys, caches[1].keys, rtol=1e-4, atol=1e-5)
    assert caches[0].used == caches[1].used == 24


@pytest.mark.parametrize("product, batch", [(MatrixFirst(), 1), (MatrixFirstTwice(), 1), *((each, 3) for each in products_for(3))])
def test_products_of_decoding_are_those_of_float64(product, batch):
    x, weight = torch.randn(batch, 24), torch.randn(10, 24)
    found = product(x, product.arrange(weight))
    torch.testing.assert_close(found.double(), x.double() @ weight.double().T, rtol=1e-5, atol=1e-5)
    assert found.shape == (batch, 10)


@pytest.mark.parametrize("seconds, taken", [((1.0, 0.5), 1), ((0.5, 1.0), 0), ((1.0, 0.95), 0)])
def test_decoding_takes_another_product_than_the_first_where_it_saves_a_tenth_of_the_time(monkeypatch, seconds, taken):
    clock, read = [0.0], []
    monkeypatch.setattr("generate.time.perf_counter", lambda: clock[0])

    class Lasting(Linear):
        def __init__(self, seconds):
            self.seconds = seconds

        def arrange(self, weight):
            return weight + 1

        def __call__(self, x, weight):
            clock[0] += self.seconds
            read.append(float(weight[0, 0]))

    products = [Lasting(each) for each in seconds]
    weights = [torch.full((2, 4), float(number)) for number in range(3)]
    assert fastest(products, torch.ones(1, 4), weights) is products[taken]
    assert len(read) == 10 and set(read) == {1, 2, 3} and all(one != other for one, other in zip(read, read[1:]))  # none is timed on what was just read


def test_calls_share_weights_joined_once_and_see_changed_ones_without_the_dict(monkeypatch):
    model, joined, shared = tiny_model(3), [], {}
    join_weights = CPUDecoding.join_weights
    monkeypatch.setattr(CPUDecoding, "join_weights", lambda self: joined.append(1) or join_weights(self))
    first, *others = [list(stream(model, [[1, 50]], Sampling(max_new_tokens=20), shared)) for _ in range(3)]
    assert others == [first, first] and len(joined) == 1
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.neg_()
    changed = list(stream(model, [[1, 50]], Sampling(max_new_tokens=20)))
    assert [ids[0] for ids in changed] == greedy_by_hand(model, [1, 50], 20)[: len(changed)] != [ids[0] for ids in first][: len(changed)]


def test_prompts_are_answered_together_in_any_precision():
    model = tiny_model(3).double()
    prompts = [[1, 50], [1, 60, 70, 80], [1, 7, 9]]
    in_double = generate(model, prompts, Sampling(max_new_tokens=8))
    assert generate(model.float(), prompts, Sampling(max_new_tokens=8)) == in_double
    assert all(map(len, generate(model.half(), prompts, Sampling(max_new_tokens=8))))


def test_without_onednn_sequences_go_together_by_the_other_products(monkeypatch):
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: False)
    assert [type(product) for product in products_for(3)] == [Linear, MatrixFirst]


def test_generation_stops_at_the_end_token_the_limit_and_the_context():
    model = tiny_model()
    assert len(generate(model, [[1, 50]], Sampling(max_new_tokens=5))[0]) == 5
    long = [1] + [50] * 120
    assert len(generate(model, [long], Sampling(max_new_tokens=500))[0]) <= 128 - 121
    with torch.no_grad():
        model.model.embed_tokens.weight[2] *= 50  # the end token wins sooner or later
    reply = generate(model, [[1, 50, 60]], Sampling(max_new_tokens=100))[0]
    assert 2 not in reply and len(reply) < 100


def test_prompt_without_room_is_refused():
    with pytest.raises(ValueError, match="found a prompt of 128 tokens, expected 1 to 127"):
        next(stream(tiny_model(), [[1] * 128], Sampling()))


def test_same_seed_gives_the_same_reply_and_another_seed_another():
    model = tiny_model()
    first, again, other = (generate(model, [[1, 50]], Sampling(temperature=1.0, max_new_tokens=20, seed=seed)) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("sampling, kept", [(Sampling(1.0, top_k=2), [0, 1]), (Sampling(1.0, top_p=0.7), [0, 1]), (Sampling(1.0, top_p=0.5), [0])])
def test_top_k_and_top_p_keep_the_likeliest_and_leave_their_ratio(sampling, kept):
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    drawn = sample(probabilities.log().expand(20_000, 4), sampling, torch.Generator().manual_seed(0))
    share = torch.bincount(drawn, minlength=4) / 20_000
    expected = torch.zeros(4)
    expected[kept] = probabilities[kept] / probabilities[kept].sum()
    torch.testing.assert_close(share, expected, atol=0.015, rtol=0)


def test_temperature_sharpens_by_its_formula():
    logits = torch.tensor([1.0, 0.0, -1.0])
    drawn = sample(logits.expand(20_000, 3), Sampling(0.5), torch.Generator().manual_seed(0))
    torch.testing.assert_close(torch.bincount(drawn, minlength=3) / 20_000, (logits / 0.5).softmax(0), atol=0.015, rtol=0)


@pytest.mark.parametrize("bad", [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.5}, {"top_k": -1}, {"max_new_tokens": 0}])
def test_sampling_that_chooses_nothing_is_refused(bad):
    with pytest.raises(ValueError, match=f"--{next(iter(bad))}"):
        Sampling(**bad)


def test_text_is_streamed_in_whole_characters(tokenizer):
    text = "龘😀你好<think>é"
    ids = tokenizer.encode("龘😀你好") + [3] + tokenizer.encode("é")
    pieces = list(as_text(tokenizer, ids))
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces) and len(pieces) > 3


def test_broken_characters_become_one_sign_and_lose_nothing_after(tokenizer):
    half = tokenizer.encode("龘")[:-1]
    assert "".join(as_text(tokenizer, half + tokenizer.encode("a"))) == "\ufffda"
    assert "".join(as_text(tokenizer, half)) == "\ufffd"


# ---- scoring ----


@pytest.mark.parametrize(
    "reply, expected",
    [
        ("<think>3+4=7</think>\n<answer>一共7个。</answer>", True),
        ("<think>3+4=7</think><answer>小红多</answer>", True),
        ("<think>3</think>\n<answer></answer>", False),
        ("<think> </think>\n<answer>\n</answer>", False),
        ("<think>3</think>\n<answer>7", False),
        ("<think>a<think>b</think><answer>7</answer>", False),
        ("好。<think>3</think><answer>7</answer>", False),
        ("一共12.5元。", False),
    ],
)
def test_form_asks_for_each_tag_once_and_nothing_outside(reply, expected):
    assert is_well_formed(reply) is expected


@pytest.mark.parametrize(
    "reply, expected, right",
    [
        ("<think>9</think>\n<answer>列式：3×6=18。\n答案：18</answer>", "<think>9</think>\n<answer>\n答案：18\n</answer>", True),
        ("一共是18个。", "<think>9</think>\n<answer>答案：18</answer>", True),  # a model that does not think may be right, too
        ("18-3", "The answer is 3.", True),
        ("18-3", "The answer is -3.", False),
        ("The answer is 24960.", "The answer is 24,960.", True),
        ("答案：0.5", "答案：1/2", True),
        ("答案：12.50%", "答案：1/8", True),
        ("答案：2/3", "答案：1/3", False),  # the last digits alone would be equal
        ("没有数", "答案：1/3", False),
        ("答案：17或18", "答案：18", False),
        ("A dog.", "A cat.", False),
        ("选B", "答案：B（20；100）", True),
        ("答案：A（20；100）", "答案：B（20；100）", False),
        ("小红多75本。", "小红多75本", True),
        ("小明多75本。", "小红多75本。", False),  # the number alone is not the answer
        ("答案是北京", "北京。", True),
    ],
)
def test_reply_is_right_when_it_comes_to_the_expected_answer(reply, expected, right):
    assert is_right(reply, expected) is right


# ---- chat ----


def test_history_loses_its_oldest_turns_first_and_keeps_the_system_message(tokenizer):
    messages = conversation("第一问", "第一答", "第二问", "第二答", "第三问", system="你是老师。")
    whole = tokenizer.prompt_ids(messages)
    ids, kept = fit(tokenizer, messages, len(whole))
    assert (ids, kept) == (whole, messages)
    ids, kept = fit(tokenizer, messages, len(whole) - 1)
    assert kept == [messages[0], *messages[3:]] and ids == tokenizer.prompt_ids(kept)
    shortest = len(tokenizer.prompt_ids([messages[0], messages[-1]]))
    assert fit(tokenizer, messages, shortest)[1] == [messages[0], messages[-1]]
    with pytest.raises(ValueError, match=f"found a message of {shortest} tokens, expected at most {shortest - 1}"):
        fit(tokenizer, messages, shortest - 1)


@pytest.fixture
def folder(tokenizer, tmp_path):
    tiny_model(max_position_embeddings=512).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path, 512)
    return str(tmp_path)


def test_a_pipe_is_answered_line_by_line_with_the_turns_before(folder, tokenizer, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("你好\n\n再见\n/new\n早\n"))
    seen = []
    monkeypatch.setattr(eval_model, "stream", lambda model, prompts, sampling, shared: seen.append(prompts[0]) or iter([tokenizer.encode("好")[:1], [2]]))
    eval_model.main(["--model_dir", folder, "--device", "cpu"])
    reply = tokenizer.decode(tokenizer.encode("好")[:1])
    assert seen[0] == tokenizer.prompt_ids(conversation("你好"))
    assert seen[1] == tokenizer.prompt_ids(conversation("你好", reply, "再见"))
    assert seen[2] == tokenizer.prompt_ids(conversation("早"))
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_chat_forgets_what_is_longer_than_the_rows_it_was_trained_on(folder, tokenizer, monkeypatch):
    alone = [tokenizer.prompt_ids(conversation(question)) for question in "甲乙丙"]
    tokenizer.save_pretrained(folder, 2 * max(map(len, alone)))  # half of it for the reply; the model itself could hold 512
    monkeypatch.setattr(sys, "stdin", io.StringIO("甲\n乙\n丙\n"))
    seen = []
    monkeypatch.setattr(eval_model, "stream", lambda model, prompts, sampling, shared: seen.append(prompts[0]) or iter([tokenizer.encode("好")[:1], [2]]))
    eval_model.main(["--model_dir", folder, "--device", "cpu"])
    assert seen == alone


def test_ctrl_c_stops_the_reply_and_not_the_program(folder, tokenizer, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("一\n二\n"))
    prompts = []

    def interrupted(model, prompt, sampling, shared):
        prompts.append(prompt[0])
        yield tokenizer.encode("a")
        raise KeyboardInterrupt

    monkeypatch.setattr(eval_model, "stream", interrupted)
    eval_model.main(["--model_dir", folder, "--device", "cpu"])
    assert len(prompts) == 2 and capsys.readouterr().out == "a [stopped]\na [stopped]\n"


def test_prompt_gives_one_answer_and_the_same_seed_the_same(folder, capsys):
    outputs = []
    for _ in range(2):
        eval_model.main(["--model_dir", folder, "--prompt", "你好", "--max_new_tokens", "12", "--seed", "3", "--device", "cpu"])
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] and outputs[0].strip()


def test_pretrained_mode_continues_the_text(folder, tokenizer, monkeypatch):
    seen = []
    monkeypatch.setattr(eval_model, "stream", lambda model, prompts, sampling, shared: seen.append(prompts[0]) or iter([[2]]))
    eval_model.main(["--model_mode", "0", "--model_dir", folder, "--prompt", "小明有", "--device", "cpu"])
    assert seen == [[1, *tokenizer.encode("小明有")]]


def test_missing_model_names_the_script_that_makes_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="out/distill not found: run distill.py first"):
        eval_model.main(["--prompt", "你好"])
