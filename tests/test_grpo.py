"""Reward: advantages as loss weights, rows of sampled replies, and what a run of GRPO.py shows."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import conversation, small_run, tiny_model, weights_of, write_jsonl

import GRPO
from dataset import make_row
from GRPO import GRPOConfig, SampledRows, pack_groups, pack_segments, reward_of, segment
from infra.checkpoint import save_model
from infra.cli import UserError
from infra.divergence import Diverged
from infra.files import write_text
from infra.metrics import read_metrics
from infra.resume import STATE
from infra.rewards import Rewards, teaches
from infra.tokenizer import EOS
from trainer import step_totals, train


def grpo_run(out_dir, **changes):
    run = vars(small_run(out_dir, accumulation_steps=1, batch_size=4, max_steps=3, tag_weight=1.0))
    return GRPOConfig(**{**run, "group_size": 4, "max_new_tokens": 12, **changes})


def odd_length(verdict):
    return float(len(verdict["reply"]) % 2)


def has_digit(verdict):
    return float(any(map(str.isdigit, verdict["reply"])))


@pytest.fixture
def sampled(rows, tmp_path):
    return SampledRows(tiny_model(), rows, grpo_run(tmp_path / "run"), reward=odd_length)


# ---- rewards and weights ----


@pytest.mark.parametrize(
    ("is_right", "is_well_formed", "reward"),
    [(True, True, 1.0), (False, True, 0.1), (True, False, 0.0), (False, False, 0.0)],
)
def test_right_and_well_formed_is_rewarded_and_form_alone_a_little(is_right, is_well_formed, reward):
    assert reward_of({"is_right": is_right, "is_well_formed": is_well_formed}) == reward


def test_the_reply_carries_the_advantage_and_the_prompt_nothing():
    ids, weights = segment([1, 9, 8], [5, 6], -0.25, most=4, end=EOS)
    assert ids.tolist() == [1, 9, 8, 5, 6, EOS]
    assert weights.tolist() == [0, 0, 0, -0.25, -0.25, -0.25]


def test_a_reply_that_was_cut_off_is_not_taught_to_end():
    ids, weights = segment([1, 9], [5, 6, 7], 0.5, most=3, end=EOS)
    assert ids.tolist() == [1, 9, 5, 6, 7] and weights.tolist() == [0, 0, 0.5, 0.5, 0.5]


def test_each_segment_is_packed_once():
    segments = [(np.arange(size + 1), np.full(size + 1, size / 10, np.float32)) for size in (5, 9, 3, 16, 7)]
    rows = pack_segments(segments, row_length=16)
    found = []
    for row in rows:
        for number in range(1, int(row.document_ids.max()) + 1):
            here = row.document_ids == number
            assert torch.equal(row.labels[here], row.input_ids[here] + 1)
            found.append(round(float(row.loss_weights[here][0]) * 10))
    assert sorted(found) == [3, 5, 7, 9, 16] and len(rows) == 3
    assert pack_segments([], 16) == []


def test_groups_that_do_not_fit_are_left_out_whole():
    groups = [[(np.arange(9), np.full(9, weight, np.float32)) for weight in (0.5, -0.5)] for _ in range(3)]
    rows = pack_groups(groups, row_length=16, most=2)  # each row holds a group
    assert len(rows) == 2 and sum(float(row.loss_weights.sum()) for row in rows) == 0
    assert len(pack_groups(groups, row_length=16, most=9)) == 3 and pack_groups([], 16, 2) == []


def test_equal_rewards_teach_nothing_though_their_mean_is_rounded():
    rewards = np.full((2, 3), 0.1)
    assert (rewards - rewards.mean(axis=1, keepdims=True)).any()  # 1e-17
    rewards[1, 0] = 1.0
    assert teaches(rewards).ravel().tolist() == [False, True]


def test_a_step_divides_by_the_sum_of_absolute_weights():
    weights = [np.array([0, w, w], np.float32) for w in (0.75, -0.25)]
    row = make_row([(np.array([1, 7, 8]), w) for w in weights], 8)
    batch = type(row)(*(tensor[None] for tensor in row))
    assert step_totals([batch, batch]) == (4.0, 8)
    nothing = type(row)(*(tensor[None] for tensor in make_row([], 8)))
    assert step_totals([nothing])[0] == 1.0


# ---- sampled rows ----


def test_groups_of_a_micro_batch_have_advantages_that_sum_to_zero(sampled):
    numbers = [0, 3, 5, 7]
    rows = sampled.__getitems__(numbers)
    assert 1 <= len(rows) <= len(numbers)
    by_prompt = {}
    for row in rows:
        for number in range(1, int(row.document_ids.max()) + 1):
            here = row.document_ids == number
            weights = row.loss_weights[here]
            start = int((weights != 0).nonzero()[0])
            assert torch.all(weights[start:] == weights[-1]) and torch.all(weights[:start] == 0)
            prompt = tuple(row.input_ids[here][: start + 1].tolist())
            by_prompt.setdefault(prompt, []).append(float(weights[-1]))
    prompts = [tuple(sampled.questions[number][0]) for number in numbers]
    assert by_prompt.keys() <= set(prompts)
    for advantages in by_prompt.values():  # of 4 replies; an odd length earns 1, an even one 0
        assert len(advantages) == 4
        assert sum(advantages) == pytest.approx(0)
        assert max(advantages) - min(advantages) == pytest.approx(1)


def test_groups_that_agree_are_left_out(rows, tmp_path):
    same = SampledRows(tiny_model(), rows, grpo_run(tmp_path / "run"), reward=lambda verdict: 0.7)
    [row] = same.__getitems__([0, 1])
    assert not row.document_ids.any() and same.rewards.means()["teaching"] == 0


def test_rows_are_the_same_for_the_same_seed_weights_and_questions(rows, sampled, tmp_path):
    again = SampledRows(tiny_model(), rows, grpo_run(tmp_path / "run"), reward=odd_length)
    other = SampledRows(tiny_model(), rows, grpo_run(tmp_path / "run", seed=6), reward=odd_length)
    found = [
        torch.stack([row.input_ids for row in it.__getitems__([2, 4])]) for it in (sampled, again, other)
    ]
    assert torch.equal(found[0], found[1])
    assert found[0].shape != found[2].shape or not torch.equal(found[0], found[2])


def test_each_micro_batch_draws_with_a_seed_of_its_own(sampled, monkeypatch):
    seeds = []

    def generate(model, prompts, sampling, **settings):
        seeds.append(sampling.seed)
        return [[7]] * len(prompts)

    monkeypatch.setattr(GRPO, "generate", generate)
    for numbers in ([2], [4], [2, 4], [2]):
        sampled.__getitems__(numbers)
    assert seeds[0] == seeds[3] and len(set(seeds)) == 3


def test_only_questions_with_a_number_as_answer_are_asked(rows, sampled):
    assert 10 < len(sampled) < len(rows.documents)
    assert all(reply.isdigit() for _, reply in sampled.questions)


def test_entropy_is_the_mean_cost_of_the_sampled_tokens(sampled):
    rows = sampled.__getitems__([1, 2, 3])
    total, count = 0.0, 0
    for row in rows:
        for number in range(1, int(row.document_ids.max()) + 1):
            here = row.document_ids == number
            with torch.no_grad():
                log_p = sampled.model(row.input_ids[here][None]).log_softmax(-1)[0]
            teaches = row.loss_weights[here] != 0
            total -= float(log_p.gather(1, row.labels[here][:, None])[:, 0][teaches].sum())
            count += int(teaches.sum())
    assert sampled.entropy(rows) == pytest.approx(total / count, rel=1e-4)


# ---- training ----


def test_the_gradient_is_that_of_policy_gradient(rows, tmp_path):
    """Of sum(advantage * log p) / sum |advantage|, over the tokens of the replies, each reply alone."""
    config = grpo_run(tmp_path / "run", max_steps=1, grad_clip=1e9, warmup_steps=0)
    model, seen = tiny_model(), []

    class Kept(SampledRows):
        def __getitems__(self, numbers):
            seen.extend(found := super().__getitems__(numbers))
            return found

    last = train(model, Kept(model, rows, config, reward=odd_length), config, validation=rows)
    alone, total, weight = tiny_model(), 0.0, 0.0
    for row in seen:
        for number in range(1, int(row.document_ids.max()) + 1):
            here = row.document_ids == number
            log_p = alone(row.input_ids[here][None]).log_softmax(-1)[0].gather(1, row.labels[here][:, None])
            total = total - (log_p[:, 0] * row.loss_weights[here]).sum()
            weight += float(row.loss_weights[here].abs().sum())
    (total / weight).backward()
    norm = torch.cat([p.grad.flatten() for p in alone.parameters()]).norm()
    assert last["grad_norm"] == pytest.approx(float(norm), rel=1e-3)
    assert last["loss"] == pytest.approx(float(total.detach()) / weight, rel=1e-3)


def test_what_is_rewarded_becomes_likelier(rows, tmp_path):
    """Here a reply is rewarded for a digit in it."""
    rates = {"epochs": 30, "max_steps": 30, "learning_rate": 1e-2, "min_lr_ratio": 1.0}
    config = grpo_run(tmp_path / "run", batch_size=8, eval_every=10, **rates)
    model = tiny_model()
    sampled = SampledRows(model, rows, config, reward=has_digit)
    train(model, sampled, config, validation=rows, probe=lambda model: sampled.rewards.means())
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "reward" in line]
    assert len(lines) == 3 and lines[2]["reward"] > lines[0]["reward"] + 0.2


def test_a_resumed_run_is_bit_identical(rows, tmp_path):
    def run(name, **changes):
        config = grpo_run(tmp_path / name, max_steps=6, save_every=3, **changes)
        model = tiny_model()
        train(model, SampledRows(model, rows, config, reward=odd_length), config, validation=rows)
        return weights_of(model)

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        stop_after(4, run)
    assert torch.equal(run("stopped", resume=True), whole)


def stop_after(calls, run):
    """Call run("stopped") with sampling that is interrupted at the fifth micro-batch, after a save."""
    counted, sample = [], SampledRows.__getitems__

    def interrupted(self, numbers):
        counted.append(numbers)
        if len(counted) > calls:
            raise KeyboardInterrupt
        return sample(self, numbers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SampledRows, "__getitems__", interrupted)
        run("stopped")


def test_a_run_whose_replies_fall_apart_is_stopped(tmp_path):
    rewards = Rewards(grpo_run(tmp_path / "run"))

    def verdicts(count, replies=128):
        return [{"is_right": False, "is_well_formed": number < count} for number in range(replies)]

    rewards.add(np.zeros((2, 4)), verdicts(128), [5] * 8, entropy=1.5)
    assert rewards.means() == {
        "reward": 0.0, "teaching": 0.0, "sampled_right": 0.0, "sampled_well_formed": 1.0, "reply_tokens": 5.0,
        "entropy": 1.5,
    }  # fmt: skip
    rewards.add(np.zeros((2, 4)), verdicts(64), [5] * 8, entropy=None)
    rewards.means()
    with pytest.raises(Diverged, match="49% of the last 128 sampled replies are well formed, 100% were at"):
        rewards.add(np.zeros((2, 4)), verdicts(0, replies=1), [5] * 8, entropy=None)


def test_a_resumed_run_compares_with_the_first_replies_of_all(tmp_path):
    (tmp_path / "run").mkdir()
    write_text(tmp_path / "run/metrics.jsonl", '{"loss": 1}\n{"sampled_well_formed": 0.9}\n')
    few = [{"is_right": False, "is_well_formed": number < 50} for number in range(128)]
    for resume, has_state in (False, True), (True, False), (True, True):
        (tmp_path / "run" / STATE).write_bytes(b"") if has_state else (tmp_path / "run" / STATE).unlink()
        rewards, goes_on = Rewards(grpo_run(tmp_path / "run", resume=resume)), resume and has_state
        with pytest.raises(Diverged, match="39% of .* 90% were at first") if goes_on else nullcontext():
            rewards.add(np.zeros((2, 4)), few, [5] * 8, entropy=None)


# ---- the script ----


@pytest.fixture
def folder(tokenizer, data, tmp_path, monkeypatch):
    """A folder with a checkpoint in out/distill and R1 data, in which the script runs."""
    monkeypatch.chdir(tmp_path)
    save_model(tiny_model(max_position_embeddings=512), "out/distill", tokenizer, 512, is_finished=True)
    return tmp_path


FLAGS = "--batch_size 2 --max_seq_len 256 --max_new_tokens 16 --group_size 2 --max_steps 2 --device cpu"


def test_the_script_leaves_a_checkpoint_metrics_and_charts(folder, data, capsys):
    last = GRPO.main(f"{FLAGS} --data_path {data['r1']} --eval_every 1".split())
    assert (folder / "out/GRPO/model.safetensors").is_file()
    charts = {path.name for path in (folder / "out/GRPO/charts").iterdir()}
    assert charts == {"loss_GRPO.png", "lr_GRPO.png", "epoch_Time_GRPO.png", "reward_GRPO.png"}
    assert {"reward", "teaching", "reply_tokens", "reasoning_accuracy", "val_loss"} <= last.keys()
    assert "the model is in out/GRPO" in capsys.readouterr().out
    report = (folder / "out/GRPO/report.html").read_text(encoding="utf-8")
    assert (
        "this run learned from its own replies" in report and "reply_1" in last and report.count("<svg") >= 7
    )


def test_a_dry_run_leaves_nothing_behind(folder, data, capsys):
    told = GRPO.main(f"{FLAGS} --data_path {data['r1']} --dry_run --max_steps 50".split())
    assert told["hours"] > 0 and not (folder / "out/GRPO").exists()


def test_what_cannot_be_is_refused(folder, data):
    with pytest.raises(FileNotFoundError, match="run distill.py first"):
        GRPO.main(["--init_from", "out/no"])
    with pytest.raises(UserError, match="--num_workers \\(2\\) must be 0"):
        GRPO.main(["--num_workers", "2", "--data_path", str(data["r1"])])
    talk = [{"conversations": conversation(f"你好{number}", "你好！")} for number in range(30)]
    path = write_jsonl(folder / "talk.jsonl", talk)
    with pytest.raises(UserError, match="questions of at most 240 tokens .* whose answer is a number"):
        GRPO.main(f"{FLAGS} --data_path {path}".split())


def test_group_of_one_and_other_impossible_flags_are_refused(tmp_path):
    for wrong in ({"group_size": 1}, {"max_new_tokens": 0}):
        with pytest.raises(UserError):
            replace(grpo_run(tmp_path), **wrong)
