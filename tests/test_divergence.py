"""When numbers go wrong: which updates are dropped, when a run stops, and what it leaves."""

import math
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ChangedRows, tiny_model, trained, weights_of

from dataset import collate_rows
from infra.checkpoint import has_checkpoint
from infra.divergence import CHECK_EVERY, Diverged, Watch
from infra.metrics import read_metrics
from model import WeakWater, document_mask
from optimizer import make_optimizers, update
from trainer import prepare, summed_loss, train

CPU = torch.device("cpu")
ONE = torch.tensor(1.0)


def watch_of(is_fp16=False):
    return Watch(vocab_size=400, device=CPU, is_fp16=is_fp16)  # guessing costs log(400) = 5.99


def after(dropped, is_fp16=False):
    """A Watch that has seen so many losses in a row that are no numbers."""
    watch = watch_of(is_fp16)
    for _ in range(dropped):
        watch.accepts(torch.tensor(math.nan), ONE)
    return watch


# ---- which updates are dropped ----


@pytest.mark.parametrize(
    "loss, grad_norm, expected",
    [
        (5.0, 1.0, True),
        (11.9, 1e30, True),
        (12.0, 1.0, False),  # twice what guessing costs
        (math.nan, 1.0, False),
        (math.inf, 1.0, False),
        (5.0, math.nan, False),
        (5.0, math.inf, False),
    ],
)
def test_update_is_accepted_if_its_gradient_is_finite_and_its_loss_makes_sense(loss, grad_norm, expected):
    is_sound = watch_of().accepts(torch.tensor(loss), torch.tensor(grad_norm))
    assert is_sound.dtype == torch.bool and bool(is_sound) == expected


def test_dropped_updates_are_counted_in_all_and_in_a_row():
    watch, counts = watch_of(), []
    for loss in (1.0, math.nan, math.nan, 1.0, math.nan):
        watch.accepts(torch.tensor(loss), ONE)
        counts.append(watch.counts.tolist())
    assert counts == [[0, 0], [1, 1], [2, 2], [2, 0], [3, 1]] and watch.dropped == 3


@pytest.mark.parametrize("is_fp16, allowed", [(False, 5), (True, 5 + 16)])
def test_a_run_may_drop_five_in_a_row_and_in_fp16_as_many_more_as_its_scale_can_be_halved(
    is_fp16, allowed, config
):
    after(allowed, is_fp16).check(8, ONE, ONE, config)
    with pytest.raises(Diverged, match=f"step 9: .*{allowed + 1} updates in a row dropped"):
        after(allowed + 1, is_fp16).check(9, ONE, ONE, config)


@pytest.mark.parametrize(
    "loss, is_fp16, cause",
    [
        (13.0, False, r"it has diverged \(guessing would cost 6.0\)"),
        (13.0, True, r"it has diverged \(guessing would cost 6.0\)"),
        (math.nan, True, "numbers too large for fp16: --dtype bf16 or fp32"),
        (5.0, True, "numbers too large for fp16: --dtype bf16 or fp32"),
        (math.nan, False, "weights grown too large, or a broken batch"),
        (5.0, False, "weights grown too large, or a broken batch"),
    ],
)
def test_likely_cause_is_told_by_the_loss_and_the_arithmetic(loss, is_fp16, cause, config):
    with pytest.raises(Diverged, match=f"Likely cause: {cause}"):
        after(30, is_fp16).check(30, torch.tensor(loss), ONE, config)


def test_fp16_finds_its_loss_scale_and_then_learns(rows, config):
    """The steps of the loop with the scaler of a card; a scale of 2^30 is too large for any gradient here."""
    run, watch = prepare(tiny_model(), rows, config, CPU), watch_of(is_fp16=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)
    batch = rows[0]._replace(**{name: tensor[None] for name, tensor in rows[0]._asdict().items()})
    losses = []
    for step in range(1, 41):
        with torch.autocast("cpu", torch.float16):
            loss = summed_loss(run.model, batch, run.mask) / batch.loss_weights.sum()
        scaler.scale(loss).backward()
        for optimizer in run.optimizers:
            scaler.unscale_(optimizer)
        grad_norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
        update(run.optimizers, 3e-3, watch.accepts(loss.detach(), grad_norm))
        scaler.update()
        run.model.zero_grad()
        watch.check(step, loss.detach(), grad_norm, config)  # it never gives up
        losses.append(loss.item())
    assert 5 < watch.dropped < 20  # more in a row than would end a run in another arithmetic
    assert losses[0] == losses[5] and losses[-1] < losses[0] - 1


def test_step_asks_the_device_for_no_number(rows):
    """On a card it would wait. A tensor of the device "meta" has none: `.item()`, an `if` and such raise.

    The parts of the loop's step but for AdamW, whose kernel is torch's and does not take such tensors.
    """
    meta = torch.device("meta")
    model, batch = tiny_model().to(meta), collate_rows([rows[0]], 3, rows.row_length).to(meta)
    muon, _ = make_optimizers(model, weight_decay=0.1, embedding_rate=1.0)
    loss = summed_loss(model, batch, document_mask) / 100
    loss.backward()
    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    update([muon], 1e-3, Watch(400, meta, is_fp16=True).accepts(loss.detach(), grad_norm))
    for measured in loss, grad_norm:
        with pytest.raises(RuntimeError, match="meta"):
            measured.item()


# ---- runs with broken batches ----


def breaking(rows, *numbers):
    """The rows, those of these numbers with a loss weight that is no number."""

    def plant(number, batch):
        if number in numbers:
            batch.loss_weights[-1] = math.nan
        return batch

    return ChangedRows(rows, plant)


def test_broken_batch_is_dropped_counted_and_shown_and_the_run_goes_on(rows, config, capsys):
    model = tiny_model()
    train(model, breaking(rows, 20), replace(config, epochs=1))
    lines = read_metrics(Path(config.out_dir) / "metrics.jsonl")
    (broken,) = [line["step"] for line in lines if line["loss"] is None]
    assert [line["dropped"] for line in lines] == [int(step >= broken) for step in range(1, 6)]
    assert capsys.readouterr().out.count("| 1 dropped\n") == 6 - broken
    assert torch.isfinite(weights_of(model)).all() and lines[-1]["loss"] < lines[0]["loss"]


def test_broken_batches_stop_the_run_at_the_sixth(rows, config):
    found = (
        r"step 6: loss nan, gradient norm nan, 6 updates in a row dropped\. Likely cause: .*a broken batch"
    )
    with pytest.raises(Diverged, match=found):
        train(tiny_model(), breaking(rows, *range(len(rows))), config)


def test_run_that_logs_seldom_still_gives_up_within_check_every_steps(rows, config):
    seldom = replace(config, batch_size=1, accumulation_steps=1, log_every=1000)
    with pytest.raises(
        Diverged, match=f"step {CHECK_EVERY}: loss nan.*{CHECK_EVERY} updates in a row dropped"
    ):
        train(tiny_model(), breaking(rows, *range(len(rows))), seldom)


def test_run_shorter_than_a_check_apart_is_checked_at_its_end(rows, config):
    with pytest.raises(Diverged, match="step 10: loss nan.* 10 updates in a row dropped"):
        train(tiny_model(), breaking(rows, *range(len(rows))), replace(config, log_every=1000))


def test_broken_batches_leave_the_checkpoint_of_the_run_before(rows, config):
    good = trained(rows, config, epochs=1)
    with pytest.raises(Diverged, match="keeps the last good checkpoint"):
        train(tiny_model(), breaking(rows, *range(len(rows))), replace(config, save_every=1))
    assert torch.equal(weights_of(WeakWater.from_pretrained(config.out_dir)), good)


# ---- runs that diverge ----


def test_learning_rate_of_10_stops_with_its_cause(rows, config):
    cause = r"Likely cause: it has diverged \(guessing would cost 6.0\).*A lower --learning_rate \(now 10\)"
    with pytest.raises(Diverged, match=cause):
        trained(rows, config, learning_rate=10.0)


def test_learning_rate_of_10_leaves_the_last_good_checkpoint(rows, config):
    good = trained(rows, config, epochs=1)
    with pytest.raises(Diverged, match=f"--init_from {config.out_dir} and another --out_dir go on from it"):
        trained(rows, config, learning_rate=10.0, save_every=1)
    # not the weights that the first update ruined, whose step still had a good loss
    assert torch.equal(weights_of(WeakWater.from_pretrained(config.out_dir)), good)


def test_run_that_fails_before_its_first_save_does_not_speak_of_a_checkpoint(rows, config):
    with pytest.raises(Diverged, match="has no checkpoint yet") as error:
        trained(rows, config, learning_rate=10.0)
    assert "keeps" not in str(error.value) and "--init_from" not in str(error.value)


def test_diverged_weights_are_not_saved_at_the_end(rows, config):
    found = "step 3: weights whose loss is more than 2 times that of guessing are not saved"
    with pytest.raises(Diverged, match=found):
        trained(rows, config, learning_rate=10.0, max_steps=3)
    assert not has_checkpoint(config.out_dir) and not list(Path(config.out_dir).glob("*.pt"))


def test_diverged_weights_are_not_saved_at_a_stop(rows, validation, config, capsys):
    def send_signal(model):
        signal.raise_signal(signal.SIGTERM)
        return {}

    with pytest.raises(SystemExit) as stop:
        train(tiny_model(), rows, replace(config, learning_rate=10.0), validation, probe=send_signal)
    assert stop.value.code == 128 + signal.SIGTERM
    assert "stopped at step 3/10, weights whose loss is more than 2 times" in capsys.readouterr().out
    assert not has_checkpoint(config.out_dir)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_not_saved(value, rows, validation, config):
    def ruin(model):
        with torch.no_grad():
            model.model.norm.weight[0] = value
        return {}

    with pytest.raises(Diverged, match="are not saved"):
        train(tiny_model(), rows, replace(config, max_steps=3), validation, probe=ruin)
    assert not has_checkpoint(config.out_dir)
