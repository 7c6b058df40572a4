"""The loop: what a step does, in which order rows come, what is measured, and how a run is stopped."""

import math
import pickle
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import small_run, tiny_model, trained, weights_of

from Config import TrainConfig
from dataset import Batch, PackedRows
from infra.config_json import read_json
from infra.distributed import Process
from infra.loss import chunked_cross_entropy
from infra.metrics import read_metrics
from infra.resume import STATE
from infra.tokenizer import ChatTokenizer
from model import WeakWater, document_mask
from trainer import evaluate, learning_rate, load_batches, prepare, row_numbers, summed_loss, train

CPU = torch.device("cpu")
ALONE = Process(rank=0, world=1, device=CPU)


# ---- a step ----


@pytest.mark.parametrize("batch_size, accumulation_steps", [(6, 1), (2, 3), (1, 6)])
def test_step_does_not_depend_on_how_it_is_cut_into_micro_batches(
    batch_size, accumulation_steps, rows, config
):
    whole = trained(rows, config, epochs=1)
    cut = trained(rows, config, epochs=1, batch_size=batch_size, accumulation_steps=accumulation_steps)
    torch.testing.assert_close(cut, whole, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("batch_size, accumulation_steps", [(6, 1), (2, 3), (1, 6)])
def test_loss_and_gradient_do_not_depend_on_how_the_step_is_cut(batch_size, accumulation_steps, rows, config):
    """The updates alone would not show a gradient of another size: they hardly depend on it."""
    measured = []
    for cut in (3, 2), (batch_size, accumulation_steps):
        trained(rows, replace(config, epochs=1), batch_size=cut[0], accumulation_steps=cut[1])
        lines = read_metrics(Path(config.out_dir) / "metrics.jsonl")
        measured.append([line[name] for line in lines for name in ("loss", "grad_norm")])
    assert len(measured[0]) == 10 and measured[1] == pytest.approx(measured[0], rel=1e-3)


@pytest.fixture(scope="module")
def one_step(rows, tmp_path_factory):
    """(config, what was logged, the model, a model like it before) of one step over all rows at once."""
    shape = {"batch_size": len(rows), "accumulation_steps": 1, "epochs": 1}
    rates = {"warmup_steps": 0, "min_lr_ratio": 1.0, "embedding_rate": 2.5, "grad_clip": 1e9}
    config = small_run(tmp_path_factory.mktemp("one_step"), **shape, **rates)
    model = tiny_model()
    return config, train(model, rows, config), model, tiny_model()


@pytest.fixture(scope="module")
def mean_loss(rows, one_step):
    """The weighted mean loss of all documents, one at a time and unpacked; `one_step` has its gradients."""
    *_, model = one_step
    nll, weight = 0.0, 0.0
    for number in range(len(rows)):
        row = rows[number]
        for document in range(1, int(row.document_ids.max()) + 1):
            its = row.document_ids == document
            log_p = model(row.input_ids[its][None])[0].log_softmax(-1)
            nll = nll - (log_p.gather(1, row.labels[its][:, None])[:, 0] * row.loss_weights[its]).sum()
            weight += row.loss_weights[its].sum()
    loss = nll / weight
    loss.backward()
    return loss.item()


def test_loss_of_a_step_is_the_weighted_mean_over_its_documents(one_step, mean_loss):
    _, logged, _, _ = one_step
    assert logged["loss"] == pytest.approx(mean_loss, rel=1e-4)


def test_gradient_of_a_step_is_that_of_the_weighted_mean(one_step, mean_loss):
    _, logged, _, model = one_step
    norm = torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).norm()
    assert logged["grad_norm"] == pytest.approx(float(norm), rel=1e-3)


def test_one_step_is_the_written_out_update_of_the_weighted_mean(one_step, mean_loss):
    config, _, model, before = one_step
    for (name, moved), start in zip(model.named_parameters(), before.parameters()):
        g, lr = start.grad, config.learning_rate * (2.5 if name == "model.embed_tokens.weight" else 1)
        kept = start * (1 - lr * (config.weight_decay if start.dim() == 2 else 0))
        if "layers" in name and start.dim() == 2:  # Muon: its polynomial, taken of each singular value
            left, values, right = torch.linalg.svd(g, full_matrices=False)
            values = values / values.norm()
            for _ in range(5):
                values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
            direction = (kept - moved) / (lr * 0.2 * max(g.shape) ** 0.5)
            torch.testing.assert_close(direction, left @ values.diag() @ right, rtol=0, atol=2e-3, msg=name)
        else:
            update = lr * g / (g.abs() + 1e-8)  # AdamW: both moments, bias-corrected, at step 1
            is_clear = g.abs() > 1e-4  # elsewhere rounding decides the sign
            assert is_clear.any(), name
            moved, expected = moved[is_clear], (kept - update)[is_clear]
            torch.testing.assert_close(moved, expected, rtol=1e-3, atol=2e-5, msg=name)


def gradient_of_first_step(folder):
    """The clipped gradient of a run of one step, from the momenta: 0.05 of it in Muon's, 0.1 in AdamW's."""
    muon, adamw = torch.load(f"{folder}/{STATE}", weights_only=True)["optimizers"]
    parts = [state["momentum"] / 0.05 for state in muon["state"].values()]
    parts += [state["exp_avg"] / 0.1 for state in adamw["state"].values()]
    return torch.cat([part.flatten() for part in parts])


def test_gradients_longer_than_grad_clip_are_shortened_to_it(rows, config):
    trained(rows, config, max_steps=1, grad_clip=2.0)
    assert float(gradient_of_first_step(config.out_dir).norm()) == pytest.approx(2.0, rel=1e-4)


def test_gradients_shorter_than_grad_clip_stay_as_they_are(rows, config):
    logged = train(tiny_model(), rows, replace(config, max_steps=1, grad_clip=1000.0))
    norm = float(gradient_of_first_step(config.out_dir).norm())
    assert norm == pytest.approx(logged["grad_norm"], rel=1e-4) and norm > 2


def test_logged_gradient_norm_is_that_before_clipping(rows, config):
    norms = [
        train(tiny_model(), rows, replace(config, max_steps=1, grad_clip=clip))["grad_norm"]
        for clip in (2.0, 1000.0)
    ]
    assert norms[0] == norms[1]


def test_training_masks_the_documents_of_a_row_from_each_other(rows):
    model, batch = tiny_model(), Batch(*(tensor[None] for tensor in rows[0]))
    masked = summed_loss(model, batch, document_mask).item()
    one_by_one = 0.0
    for document in range(1, int(batch.document_ids.max()) + 1):
        its = batch.document_ids == document
        alone = Batch(*(tensor[its][None] for tensor in batch))
        one_by_one += model(alone.input_ids, None, alone.labels, alone.loss_weights).item()
    assert batch.document_ids.max() > 1 and masked == pytest.approx(one_by_one, rel=1e-5)


# ---- the order of the data ----


def test_an_epoch_takes_every_row_once_and_its_last_step_those_that_are_left(rows, config):
    batches = list(row_numbers(len(rows), config, ALONE, first_step=1))
    assert len(rows) % 6 and config.total_steps(len(rows)) == 2 * math.ceil(len(rows) / 6)
    assert len(batches) == 2 * config.total_steps(len(rows))  # two micro-batches in each
    for epoch in batches[: len(batches) // 2], batches[len(batches) // 2 :]:
        assert sorted(sum(epoch, [])) == list(range(len(rows)))


def test_each_epoch_and_each_seed_has_an_order_of_its_own(rows, config):
    first, other = (
        list(row_numbers(len(rows), replace(config, seed=seed), ALONE, first_step=1)) for seed in (5, 6)
    )
    epoch = len(first) // 2
    assert first[:epoch] != first[epoch:] and first[:epoch] != other[:epoch]


@pytest.mark.parametrize("first_step", [2, 5, 6, 10])
def test_order_from_a_step_on_is_the_rest_of_the_whole_order(first_step, rows, config):
    whole = list(row_numbers(len(rows), config, ALONE, first_step=1))
    assert list(row_numbers(len(rows), config, ALONE, first_step)) == whole[2 * (first_step - 1) :]


def test_processes_share_a_step_without_overlap(rows, config):
    config = replace(config, accumulation_steps=4)
    alone = list(row_numbers(len(rows), config, ALONE, first_step=1))
    shares = [list(row_numbers(len(rows), config, Process(rank, 2, CPU), first_step=1)) for rank in (0, 1)]
    assert [batch for pair in zip(*shares) for batch in pair] == alone


def test_batches_from_worker_processes_are_the_same(rows, config):
    loaded = [
        [batch.input_ids for batch in load_batches(rows, replace(config, num_workers=workers), ALONE, 1)]
        for workers in (0, 2)
    ]
    assert len(loaded[0]) == 20
    torch.testing.assert_close(*loaded, rtol=0, atol=0)


def test_rows_reach_a_spawned_process_without_their_memory(rows):
    copied = pickle.loads(pickle.dumps(rows))
    assert len(pickle.dumps(rows)) < 200_000 and all(map(torch.equal, copied[3], rows[3]))


def test_every_micro_batch_has_one_shape(rows, config):
    shapes = {batch.labels.shape for batch in load_batches(rows, config, ALONE, first_step=1)}
    assert shapes == {(3, 128)}  # the last step has rows for less


# ---- schedule ----


def test_learning_rate_warms_up_to_its_peak_and_falls_to_its_floor():
    config = TrainConfig(learning_rate=2.0, min_lr_ratio=0.1, warmup_steps=10)
    rates = [learning_rate(step, 110, config) for step in range(1, 111)]
    assert rates[:10] == pytest.approx([0.2 * step for step in range(1, 11)])
    assert max(rates) == rates[9] == 2.0
    assert all(a > b for a, b in zip(rates[9:], rates[10:]))
    assert rates[59] == pytest.approx(0.2 + 0.9)  # half way: the mean of peak and floor
    assert rates[-1] == pytest.approx(0.2)


def test_schedule_counts_steps_and_not_micro_batches(rows, config):
    for accumulation_steps, batch_size in (1, 6), (6, 1):
        trained(rows, config, accumulation_steps=accumulation_steps, batch_size=batch_size)
        rates = [line["lr"] for line in read_metrics(Path(config.out_dir) / "metrics.jsonl")]
        assert rates == pytest.approx([learning_rate(step, 10, config) for step in range(1, 11)])


# ---- arithmetic ----


def test_bf16_loss_is_close_to_fp32_and_not_the_same(rows, validation, config):
    exact, rounded = (
        evaluate(prepare(tiny_model(), rows, replace(config, dtype=dtype), CPU), validation, config, ALONE)[
            "val_loss"
        ]
        for dtype in ("fp32", "bf16")
    )
    assert rounded == pytest.approx(exact, rel=2e-2) and rounded != exact


def test_bf16_training_learns_what_fp32_learns_and_keeps_its_weights_in_fp32(rows, config):
    model = tiny_model()
    exact = train(tiny_model(), rows, replace(config, dtype="fp32"))
    rounded = train(model, rows, replace(config, dtype="bf16"))
    assert rounded["loss"] == pytest.approx(exact["loss"], abs=0.1)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.slow
def test_compiled_training_equals_eager_training(rows, validation, config):
    losses, weights = [], []
    for compile in (False, True):
        model = tiny_model(num_hidden_layers=1)
        losses.append(train(model, rows, replace(config, compile=compile), validation)["val_loss"])
        weights.append(weights_of(model))
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-3, atol=1e-4)
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.slow
def test_compiled_loss_in_chunks_equals_the_eager_one():
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(400, (50,), generator=generator)
    loss_weights = torch.rand(50, generator=generator)
    results = []
    for function in (chunked_cross_entropy, torch.compile(chunked_cross_entropy)):
        head = tiny_model().lm_head
        hidden = torch.randn(50, 48, generator=torch.Generator().manual_seed(2)).requires_grad_()
        loss = function(head, hidden, labels, loss_weights, elements=400 * 20)  # 20 of 50 at a time
        loss.backward()
        results.append([loss.detach(), hidden.grad, head.weight.grad])
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)


# ---- validation ----


def test_validation_is_the_mean_over_counted_tokens_and_bits_per_byte(tokenizer, rows, config):
    plain = PackedRows(rows.cache, rows.documents, 128)
    config = replace(config, batch_size=4)
    run = prepare(tiny_model(), plain, config, CPU)
    nll, count, text = 0.0, 0, b""
    with torch.no_grad():
        for start, length in zip(plain.starts, plain.lengths):
            ids = torch.tensor(plain.cache.ids[start : start + length + 1].astype(int))
            counted = torch.tensor(plain.cache.loss_mask[start + 1 : start + length + 1] > 0)
            log_p = run.model(ids[None, :-1])[0].log_softmax(-1)
            nll -= float(log_p.gather(1, ids[1:, None])[:, 0][counted].sum())
            count += int(counted.sum())
            text += b"".join(tokenizer.bytes_of(id) for id in ids[1:][counted].tolist())
    measured = evaluate(run, plain, config, ALONE)
    assert measured["val_loss"] == pytest.approx(nll / count, rel=1e-4)
    assert measured["val_ppl"] == pytest.approx(math.exp(nll / count), rel=1e-3)
    assert measured["val_bpb"] == pytest.approx(nll / math.log(2) / len(text), rel=1e-4)


def test_validation_comes_at_its_interval_and_at_the_end(rows, validation, config):
    train(tiny_model(), rows, config, validation)
    lines = read_metrics(Path(config.out_dir) / "metrics.jsonl")
    assert [line["step"] for line in lines if "val_loss" in line] == [3, 6, 9, 10]


def test_probe_is_called_with_the_model_and_logged_with_each_validation(rows, validation, config):
    model, asked = tiny_model(), []

    def probe(model):
        asked.append(model)
        return {"well_formed": 0.25 * len(asked)}

    last = train(model, rows, config, validation, probe)
    lines = [line for line in read_metrics(Path(config.out_dir) / "metrics.jsonl") if "val_loss" in line]
    assert [line["well_formed"] for line in lines] == [0.25, 0.5, 0.75, 1.0] and last["well_formed"] == 1.0
    assert all(one is model for one in asked)


def test_validation_does_not_change_the_training(rows, validation, config):
    assert torch.equal(
        trained(rows, config),
        trained_with_validation(rows, replace(config, eval_every=1), validation),
    )


def trained_with_validation(rows, config, validation):
    model = tiny_model()
    train(model, rows, config, validation)
    return weights_of(model)


# ---- the end of a run ----


def test_checkpoint_holds_the_last_weights(rows, config):
    weights = trained(rows, config)
    assert torch.equal(weights_of(WeakWater.from_pretrained(config.out_dir)), weights)


def test_checkpoint_knows_the_length_that_it_was_trained_to_see(rows, config):
    trained(rows, config, max_steps=1)
    assert ChatTokenizer(config.out_dir).max_length == rows.row_length


def test_max_steps_ends_the_run_and_the_schedule(rows, config):
    last = train(tiny_model(), rows, replace(config, max_steps=4))
    assert last["step"] == 4 and last["lr"] == pytest.approx(config.learning_rate * config.min_lr_ratio)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_signal_saves_and_leaves_with_its_code(number, rows, validation, config, capsys):
    model = tiny_model()

    def send_signal(model):
        signal.raise_signal(number)
        return {}

    with pytest.raises(SystemExit) as stop:
        train(model, rows, config, validation, probe=send_signal)
    assert stop.value.code == 128 + number
    assert torch.equal(weights_of(WeakWater.from_pretrained(config.out_dir)), weights_of(model))
    assert torch.load(f"{config.out_dir}/{STATE}", weights_only=True)["step"] == 3
    assert read_json(config.out_dir)["is_finished"] is False
    assert f"stopped at step 3/10, saved in {config.out_dir}" in capsys.readouterr().out


def test_stop_signal_in_the_last_validation_still_leaves_with_its_code(rows, validation, config):
    """So that the program that started the run does not go on to its next stage."""

    def send_signal(model):
        signal.raise_signal(signal.SIGINT)
        return {}

    with pytest.raises(SystemExit) as stop:
        train(tiny_model(), rows, replace(config, max_steps=1), validation, probe=send_signal)
    assert stop.value.code == 130 and read_json(config.out_dir)["is_finished"] is True


def test_signals_act_as_before_once_a_run_has_ended(rows, config):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    trained(rows, config, max_steps=1)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_last_checkpoint_is_marked_as_finished(rows, config):
    trained(rows, config, max_steps=1)
    assert read_json(config.out_dir)["is_finished"] is True


def test_step_of_padding_beside_few_rows_has_the_loss_of_the_rows_alone(sums, config):
    few = PackedRows(sums, np.arange(4), 128, tag_weight=3.0)
    exact = train(tiny_model(), few, replace(config, batch_size=len(few), accumulation_steps=1))
    padded = train(tiny_model(), few, replace(config, batch_size=7, accumulation_steps=2))
    assert padded["loss"] == pytest.approx(exact["loss"], rel=1e-5)
