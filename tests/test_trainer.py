"""The loop: steps, schedule, resume, what is not finite, and what is written down."""

import json
import math
import os
import pickle
import signal
import time
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import conversation, tiny_model, write_jsonl

import model as model_module
import trainer
from Config import TrainConfig
from dataset import Batch, PackedRows, open_cache
from dry_run import disk_bytes, hours_of_run, validation_seconds
from model import WeakWater
from optimizer import Muon, make_optimizers, orthogonalize
from tools.replay import load_step, replay
from trainer import Run, evaluate, learning_rate, pick_dtype, read_metrics, train


@pytest.fixture(scope="module")
def rows(tokenizer, tmp_path_factory):
    """Rows with several short conversations in each, some of them with reasoning."""
    documents = []
    for number in range(70):
        a, b = 3 * number + 1, 7 * number % 50
        reply = f"<think>{a}+{b}</think>{a + b}" if number % 3 else f"{a + b}" * (number % 4 + 1)
        documents.append({"conversations": conversation(f"{a}+{b}?", reply, system="算")})
    path = write_jsonl(tmp_path_factory.mktemp("rows") / "sums.jsonl", documents)
    rows = PackedRows(open_cache(path, tokenizer, "conversations"), np.arange(60), 128, tag_weight=3.0)
    assert rows.truncated == 0 and len(rows.starts) > 2 * len(rows) > 30
    return rows


@pytest.fixture
def config(tmp_path):
    return TrainConfig(
        stage="test", out_dir=str(tmp_path / "run"), batch_size=3, accumulation_steps=2, max_seq_len=128, epochs=2, tag_weight=3.0,
        learning_rate=3e-3, device="cpu", log_every=1, eval_every=3, save_every=2, compile=False, seed=5,
    )  # fmt: skip


def weights_of(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def trained(rows, config, **changes):
    model = tiny_model()
    train(model, rows, replace(config, **changes))
    return weights_of(model)


# ---- a step ----


@pytest.mark.parametrize("batch_size, accumulation_steps", [(6, 1), (2, 3), (1, 6)])
def test_step_does_not_depend_on_how_it_is_cut_into_micro_batches(batch_size, accumulation_steps, rows, config, tmp_path):
    whole = trained(rows, config, out_dir=str(tmp_path / "a"), epochs=1)
    cut = trained(rows, config, out_dir=str(tmp_path / "b"), epochs=1, batch_size=batch_size, accumulation_steps=accumulation_steps)
    torch.testing.assert_close(cut, whole, rtol=1e-3, atol=1e-5)


def test_one_step_is_the_written_out_update_of_the_weighted_mean(rows, config):
    config = replace(config, batch_size=len(rows), accumulation_steps=1, epochs=1, grad_clip=1e9, warmup_steps=0, min_lr_ratio=1.0, embedding_rate=2.5)
    model, expected = tiny_model(), tiny_model()
    last = train(model, rows, config)
    nll, weight = 0.0, 0.0
    for number in range(len(rows)):  # one document at a time, without packing
        row = rows[number]
        for document in range(1, int(row.document_ids.max()) + 1):
            its = row.document_ids == document
            log_p = expected(row.input_ids[its][None])[0].log_softmax(-1)
            nll = nll - (log_p.gather(1, row.labels[its][:, None])[:, 0] * row.weights[its]).sum()
            weight += row.weights[its].sum()
    (nll / weight).backward()
    norm = torch.cat([parameter.grad.flatten() for parameter in expected.parameters()]).norm()
    assert last["loss"] == pytest.approx((nll / weight).item(), rel=1e-4) and last["grad_norm"] == pytest.approx(float(norm), rel=1e-3)
    for (name, moved), start in zip(model.named_parameters(), expected.parameters()):
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
            is_clear = g.abs() > 1e-4           # elsewhere rounding decides the sign
            assert is_clear.any(), name
            torch.testing.assert_close(moved[is_clear], (kept - update)[is_clear], rtol=1e-3, atol=2e-5, msg=name)


def gradients_of(run):
    return torch.cat([parameter.grad.flatten() for parameter in run.model.parameters()])


def run_with_gradients(rows, config, **changes):
    """A Run whose parameters hold gradients of a length of 5, and which keeps them after an update."""
    run = Run(tiny_model(), rows, replace(config, **changes), 0, 1, torch.device("cpu"))
    for parameter in run.model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    length = gradients_of(run).norm()
    for parameter in run.model.parameters():
        parameter.grad *= 5 / length
    run.model.zero_grad = lambda set_to_none: None
    return run


@pytest.mark.parametrize("grad_clip, expected", [(2.0, 2.0), (7.0, 5.0)])
def test_gradients_longer_than_grad_clip_are_shortened_to_it(grad_clip, expected, rows, config):
    run = run_with_gradients(rows, config, grad_clip=grad_clip)
    assert float(run.update(torch.tensor(1.0))) == pytest.approx(5.0, rel=1e-4)  # as it was before clipping
    assert float(gradients_of(run).norm()) == pytest.approx(expected, rel=1e-4)


def test_infinite_gradient_of_a_finite_loss_is_skipped(rows, config):
    run = run_with_gradients(rows, config)
    before = weights_of(run.model)
    run.model.lm_head.weight.grad[0, 0] = math.inf
    assert run.update(torch.tensor(1.0)) == math.inf
    assert torch.equal(weights_of(run.model), before) and run.skipped == run.skipped_in_a_row == 1


@pytest.mark.parametrize("planted", [math.nan, math.inf])
def test_update_dropped_on_the_device_changes_nothing_and_those_around_it_are_as_ever(planted, rows, config):
    runs = [run_with_gradients(rows, config) for _ in range(2)]
    runs[1].is_asynchronous = True  # as on CUDA: the optimizers are told by a tensor
    for run in runs:
        for loss in (1.0, 1.0, math.nan, 1.0):
            gradients = [parameter.grad.clone() for parameter in run.model.parameters()]
            before = weights_of(run.model)
            if math.isnan(loss):
                run.model.model.layers[0].mlp.up_proj.weight.grad[0, 0] = planted
            run.update(torch.tensor(loss))
            assert torch.equal(weights_of(run.model), before) == math.isnan(loss)
            for parameter, gradient in zip(run.model.parameters(), gradients):
                parameter.grad = gradient
        assert (run.skipped, run.skipped_in_a_row) == (1, 0)
    torch.testing.assert_close(*(weights_of(run.model) for run in runs), rtol=1e-6, atol=1e-7)


def test_training_masks_the_documents_of_a_row_from_each_other(rows, config):
    run = Run(tiny_model(), rows, config, 0, 1, torch.device("cpu"))
    row = rows[0]
    masked = float(run.loss_sum(run.model, Batch(*(tensor[None] for tensor in row))).detach())
    unmasked = float(run.model(row.input_ids[None], None, row.labels[None], row.weights[None]).detach())
    assert row.document_ids.max() > 1 and abs(masked - unmasked) > 1e-3 * abs(masked)


def test_last_step_of_an_epoch_takes_the_rows_that_are_left(rows, config):
    run = Run(tiny_model(), rows, config, 0, 1, torch.device("cpu"))
    assert run.steps_per_epoch == math.ceil(len(rows) / 6) and run.total_steps == 2 * run.steps_per_epoch
    batches = list(run.micro_batches(1))
    assert len(batches) == run.total_steps * 2
    first, second = batches[: len(batches) // 2], batches[len(batches) // 2 :]
    for epoch in (first, second):
        assert sorted(sum(epoch, [])) == list(range(len(rows)))
    assert first != second
    assert list(run.micro_batches(4)) == batches[6:]


def test_processes_share_a_step_without_overlap(rows, config):
    config = replace(config, accumulation_steps=4)
    alone = list(Run(tiny_model(), rows, config, 0, 1, torch.device("cpu")).micro_batches(1))
    shares = [list(Run(tiny_model(), rows, config, rank, 2, torch.device("cpu")).micro_batches(1)) for rank in (0, 1)]
    assert [batch for pair in zip(*shares) for batch in pair] == alone


def test_accumulation_that_processes_cannot_share_is_refused(rows, config):
    with pytest.raises(ValueError, match=r"--accumulation_steps \(2\) must be a multiple of the number of processes \(3\)"):
        Run(tiny_model(), rows, config, 0, 3, torch.device("cpu"))


def test_batches_from_worker_processes_are_the_same(rows, config):
    loaded = []
    for workers in (0, 2):
        run = Run(tiny_model(), rows, replace(config, num_workers=workers), 0, 1, torch.device("cpu"))
        loaded.append(torch.cat([batch.input_ids for batch in run.loader(1)]))
    assert torch.equal(*loaded)


def test_rows_reach_a_spawned_process_without_their_memory(rows):
    copied = pickle.loads(pickle.dumps(rows))
    assert len(pickle.dumps(rows)) < 200_000 and all(map(torch.equal, copied[3], rows[3]))


@pytest.mark.slow
def test_compiled_training_equals_eager_training(rows, config, tmp_path, monkeypatch):
    monkeypatch.setattr(model_module, "LOGITS_AT_ONCE", 400 * 100)  # so that the loss is taken in pieces
    eager = trained(rows, config, out_dir=str(tmp_path / "eager"))
    torch.testing.assert_close(trained(rows, config, out_dir=str(tmp_path / "compiled"), compile=True), eager, rtol=1e-3, atol=1e-4)


# ---- schedule and optimizer ----


def test_learning_rate_warms_up_to_its_peak_and_falls_to_its_floor():
    config = TrainConfig(learning_rate=2.0, min_lr_ratio=0.1)
    rates = [learning_rate(step, 110, 10, config) for step in range(1, 111)]
    assert rates[:10] == pytest.approx([0.2 * step for step in range(1, 11)])
    assert max(rates) == rates[9] == 2.0
    assert all(a > b for a, b in zip(rates[9:], rates[10:]))
    assert rates[59] == pytest.approx(0.2 + 0.9)  # half way: the mean of peak and floor
    assert rates[-1] == pytest.approx(0.2)


def test_every_parameter_has_one_optimizer_and_norms_are_not_decayed():
    model = tiny_model(tie_word_embeddings=False)
    muon, adamw = make_optimizers(model, 1e-3, weight_decay=0.1)
    held = [parameter for optimizer in (muon, adamw) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(map(id, held)) == sorted(map(id, model.parameters()))
    matrices, gains = adamw.param_groups
    assert {id(parameter) for parameter in matrices["params"]} == {id(model.model.embed_tokens.weight), id(model.lm_head.weight)}
    assert {parameter.dim() for parameter in gains["params"]} == {1} and gains["weight_decay"] == 0


@pytest.mark.parametrize("shape", [(4, 30, 10), (4, 10, 30), (4, 16, 16)])
def test_orthogonalize_is_close_to_the_polar_factor(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    assert torch.nn.functional.cosine_similarity(orthogonalize(matrices).flatten(1), (left @ right).flatten(1)).min() > 0.95


def test_muon_follows_pytorchs_own_where_that_exists():
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("torch.optim.Muon came with 2.9")
    weights = [torch.randn(24, 40, generator=torch.Generator().manual_seed(2)).requires_grad_() for _ in range(2)]
    ours = Muon([weights[0]], lr=0.1, weight_decay=0.1)
    theirs = torch.optim.Muon([weights[1]], lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(5):
        for weight, optimizer in zip(weights, (ours, theirs)):
            weight.grad = torch.randn(24, 40, generator=torch.Generator().manual_seed(step))
            optimizer.step()
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0.02)  # theirs iterates in bfloat16


def test_half_precision_needs_a_gpu():
    assert pick_dtype("auto", torch.device("cpu")) == torch.float32
    with pytest.raises(ValueError, match="--dtype fp16 needs a CUDA device"):
        pick_dtype("fp16", torch.device("cpu"))


def test_bf16_loss_is_close_to_fp32(rows, config):
    losses = []
    for dtype in ("fp32", "bf16"):
        run = Run(tiny_model(), rows, replace(config, dtype=dtype), 0, 1, torch.device("cpu"))
        losses.append(evaluate(run, rows)["val_loss"])
    assert losses[1] == pytest.approx(losses[0], rel=2e-2) and losses[1] != losses[0]


# ---- validation ----


def test_validation_is_the_mean_over_graded_tokens_and_bits_per_byte(tokenizer, rows, config):
    plain = PackedRows(rows.cache, rows.documents, 128)
    run = Run(tiny_model(), rows, replace(config, batch_size=4), 0, 1, torch.device("cpu"))
    nll, count, text = 0.0, 0, b""
    with torch.no_grad():
        for start, length in zip(plain.starts, plain.lengths):
            ids = torch.tensor(plain.cache.ids[start : start + length + 1].astype(int))
            graded = torch.tensor(plain.cache.grades[start + 1 : start + length + 1] > 0)
            log_p = run.model(ids[None, :-1])[0].log_softmax(-1)
            nll -= float(log_p.gather(1, ids[1:, None])[:, 0][graded].sum())
            count += int(graded.sum())
            text += b"".join(tokenizer.bytes_of(id) for id in ids[1:][graded].tolist())
    measured = evaluate(run, plain)
    assert measured["val_loss"] == pytest.approx(nll / count, rel=1e-4)
    assert measured["val_ppl"] == pytest.approx(math.exp(nll / count), rel=1e-3)
    assert measured["val_bpb"] == pytest.approx(nll / math.log(2) / len(text), rel=1e-4)


# ---- resume ----


class Stopped(Exception):
    pass


@pytest.mark.parametrize("stop_at", [1, 3, 4])
def test_resumed_run_is_bit_identical(stop_at, rows, config, tmp_path, monkeypatch):
    whole = trained(rows, config, out_dir=str(tmp_path / "whole"))
    cut = replace(config, out_dir=str(tmp_path / "cut"))
    with monkeypatch.context() as patch:
        take_step = Run.take_step

        def crash(run, step, model):
            if step == stop_at:
                raise Stopped
            return take_step(run, step, model)

        patch.setattr(Run, "take_step", crash)
        with pytest.raises(Stopped):
            trained(rows, cut)
    model = tiny_model(seed=9)  # as if built anew: nothing but the saved state may matter
    if stop_at == 1:
        model = tiny_model()  # killed before the first checkpoint: it starts again
    train(model, rows, replace(cut, resume=True))
    assert torch.equal(weights_of(model), whole)
    saved = [WeakWater.from_pretrained(tmp_path / name) for name in ("whole", "cut")]
    assert torch.equal(*map(weights_of, saved))
    timeless = [[{k: v for k, v in line.items() if k not in trainer.TIMED_METRICS} for line in read_metrics(tmp_path / name / "metrics.jsonl")] for name in ("whole", "cut")]
    assert timeless[0] == timeless[1]


def test_crash_between_state_and_checkpoint_of_the_last_save_is_made_good(rows, config, monkeypatch):
    whole = trained(rows, replace(config, out_dir=config.out_dir + "2"))

    def crash(model, folder, vocabulary):
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(WeakWater, "save_pretrained", crash)
        with pytest.raises(Stopped):
            trained(rows, replace(config, save_every=100))
    trained(rows, replace(config, save_every=100, resume=True))
    assert torch.equal(weights_of(WeakWater.from_pretrained(config.out_dir)), whole)


def test_fresh_run_keeps_the_files_of_the_run_before_but_is_not_resumed_from_them(rows, config, capsys):
    trained(rows, config)
    folder = trainer.Path(config.out_dir)
    before = {name: (folder / name).read_bytes() for name in ("metrics.jsonl", "training_state.pt")}
    trained(rows, replace(config, seed=9))
    assert "kept in" in capsys.readouterr().out
    assert (folder / "metrics.before.jsonl").read_bytes() == before["metrics.jsonl"]
    assert (folder / "training_state.before.pt").read_bytes() == before["training_state.pt"]


@pytest.mark.parametrize("content", [b"", b"not a state", bytes(100)])
def test_state_that_is_not_whole_is_refused(content, rows, config):
    trained(rows, config, epochs=1)
    (trainer.Path(config.out_dir) / "training_state.pt").write_bytes(content)
    with pytest.raises(ValueError, match="training_state.pt: not a whole training state"):
        trained(rows, config, epochs=1, resume=True)


def test_resuming_a_finished_run_changes_nothing(rows, config):
    first = trained(rows, config)
    assert torch.equal(trained(rows, config, resume=True), first)


@pytest.mark.parametrize("change", [{"batch_size": 2}, {"seed": 6}, {"epochs": 3}, {"accumulation_steps": 4}, {"learning_rate": 1e-4}])
def test_resuming_another_run_is_refused_by_name(change, rows, config):
    trained(rows, config, epochs=1)
    (name, value), = change.items()
    with pytest.raises(ValueError, match=f"{name}.*this one has {value}"):
        trained(rows, config, **{"epochs": 1, "resume": True, **change})


def test_resuming_with_other_data_or_model_is_refused(rows, config):
    trained(rows, config)
    with pytest.raises(ValueError, match="had data"):
        trained(PackedRows(_other_cache(rows), rows.documents, 128, tag_weight=3.0), config, resume=True)
    with pytest.raises(ValueError, match="holds another model's checkpoint \\(num_hidden_layers 3, here 2\\)"):
        train(tiny_model(num_hidden_layers=2), rows, replace(config, resume=True))


def _other_cache(rows):
    import copy

    cache = copy.copy(rows.cache)
    cache.about = {**cache.about, "sha256": "other"}
    return cache


def test_stop_signal_saves_and_leaves_with_its_code(rows, config, monkeypatch):
    whole = trained(rows, config)
    config = replace(config, out_dir=config.out_dir + "2", save_every=100, log_every=100)
    take_step = Run.take_step

    def interrupted(run, step, model):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return take_step(run, step, model)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "take_step", interrupted)
        with pytest.raises(SystemExit) as stop:
            trained(rows, config)
    assert stop.value.code == 128 + signal.SIGTERM
    assert torch.equal(trained(rows, config, resume=True), whole)


# ---- a dry run ----


def test_a_dry_run_promises_the_time_of_all_steps_and_validations(rows, config):
    validation = PackedRows(rows.cache, np.arange(60, 70), 128)
    run = Run(tiny_model(), rows, replace(config, eval_every=4), 0, 1, torch.device("cpu"))
    rows_validated = math.ceil(run.total_steps / 4) * len(validation)
    expected = (run.total_steps * 1800 + rows_validated * 300 / 3) / 3600  # 1800 seconds for 6 rows
    assert run.rows_per_step == 6 and hours_of_run(run, 1800.0, validation_seconds(run, 1800.0, validation)) == pytest.approx(expected)


def test_a_dry_run_counts_the_time_of_sample_replies(rows, config):
    validation, asked = PackedRows(rows.cache, np.arange(60, 70), 128), []
    promised = train(tiny_model(), rows, replace(config, dry_run=True), validation, probe=lambda model: asked.append(time.sleep(0.5)) or {})
    assert len(asked) == 1 and promised["validation_seconds"] > 0.5
    steps = Run(tiny_model(), rows, config, 0, 1, torch.device("cpu")).total_steps
    assert promised["hours"] * 3600 > math.ceil(steps / config.eval_every) * 0.5


def test_a_dry_run_halves_the_batch_until_it_fits_and_trains_on_equally_many_rows(rows, config, monkeypatch, capsys):
    loss_sum = Run.loss_sum

    def little_memory(run, model, batch):
        if len(batch.input_ids) > 2:
            raise torch.OutOfMemoryError("planted")
        return loss_sum(run, model, batch)

    monkeypatch.setattr(Run, "loss_sum", little_memory)
    promised = train(tiny_model(), rows, replace(config, batch_size=8, dry_run=True))
    said = capsys.readouterr().out
    assert "--batch_size 8 does not fit" in said and "--batch_size 2 --accumulation_steps 8 fits" in said and "steps of 16 rows" in said
    assert "if --batch_size 2 --accumulation_steps 8 is added to it" in said
    assert (promised["batch_size"], promised["accumulation_steps"]) == (2, 8)
    assert promised["hours"] > 0 and not os.path.exists(config.out_dir)


def test_a_dry_run_that_finds_too_small_a_disk_promises_nothing(rows, config, monkeypatch, capsys):
    monkeypatch.setattr("dry_run.shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(ValueError, match=r"needs 0\.00 GB, found 0\.00 GB free: make room, or pass another --out_dir"):
        train(tiny_model(), rows, replace(config, dry_run=True))
    said = capsys.readouterr().out
    assert "seconds a step" in said and "Nothing was written" not in said


def test_a_dry_run_counts_the_states_that_a_checkpoint_will_hold(rows, config):
    run = Run(tiny_model(), rows, config, 0, 1, torch.device("cpu"))
    run.take_step(1, run.forward)
    run.save(1, trainer.Log(run))
    folder = trainer.Path(config.out_dir)
    state, model = ((folder / name).stat().st_size for name in ("training_state.pt", "model.safetensors"))
    assert disk_bytes(run) == pytest.approx(2 * state + model, rel=0.1)


# ---- what is not finite ----


def test_update_that_is_not_finite_is_skipped_and_counted(rows, config, monkeypatch):
    loss_sum = Run.loss_sum
    calls = []

    def planted(run, model, batch):
        calls.append(1)
        return loss_sum(run, model, batch) * (math.nan if len(calls) == 3 else 1)

    monkeypatch.setattr(Run, "loss_sum", planted)
    model = tiny_model()
    last = train(model, rows, config)
    assert torch.isfinite(weights_of(model)).all() and math.isfinite(last["loss"])
    lines = read_metrics(trainer.Path(config.out_dir) / "metrics.jsonl")
    assert [line["skipped"] for line in lines[:3]] == [0, 1, 1] and lines[1]["loss"] is None


def give_up_with(message, model, rows, config):
    """Train until the run gives up with this message; what it left to replay."""
    with pytest.raises(ValueError, match=message):
        train(model, rows, replace(config, epochs=9))
    return load_step(trainer.Path(config.out_dir) / "failed_step.pt")


def test_broken_batches_stop_the_run_leave_the_checkpoint_and_can_be_replayed(rows, config, monkeypatch):
    trained(rows, config, epochs=1)
    good = weights_of(WeakWater.from_pretrained(config.out_dir))
    stack = trainer.stack

    def with_nan(*rows, **shape):
        batch = stack(*rows, **shape)
        batch.weights[-1, -1] = math.nan
        return batch

    monkeypatch.setattr(trainer, "stack", with_nan)
    step = give_up_with("step 6: loss nan.*dropped for the 6th time in a row.*replay.py .*failed_step.pt", tiny_model(), rows, config)
    assert torch.equal(weights_of(WeakWater.from_pretrained(config.out_dir)), good)
    assert len(step["micro_batches"]) == 2 and math.isnan(replay(step, torch.float32, torch.device("cpu"))["loss"])
    for batch in step["micro_batches"]:
        batch.weights[-1, -1] = 0.0
    assert replay(step, torch.float32, torch.device("cpu"))["loss"] < 10  # what was broken was the batch


def test_learning_rate_of_10_stops_with_its_cause_and_is_replayed_to_the_digit(rows, config):
    trained(rows, config, epochs=1)
    good = weights_of(WeakWater.from_pretrained(config.out_dir))
    message = r"Likely cause: it has diverged \(guessing would cost 6.0\): a lower --learning_rate \(now 10\).*To go on from it with other flags: --init_from"
    step = give_up_with(message, tiny_model(), rows, replace(config, learning_rate=10.0, save_every=1))
    again = replay(step, torch.float32, torch.device("cpu"))
    assert again["loss"] == pytest.approx(step["loss"], rel=1e-6) and again["grad_norm"] == pytest.approx(step["grad_norm"], rel=1e-5)
    assert torch.equal(weights_of(WeakWater.from_pretrained(config.out_dir)), good)  # not the weights that the first update ruined


def test_a_run_that_fails_before_its_first_save_does_not_speak_of_a_checkpoint(rows, config):
    with pytest.raises(ValueError, match="has no checkpoint yet. To repeat the step: ") as error:
        train(tiny_model(), rows, replace(config, learning_rate=10.0, epochs=9, save_every=1000))
    assert "keeps" not in str(error.value) and "--init_from" not in str(error.value)


def test_diverged_weights_are_saved_neither_at_the_end_nor_at_a_stop(rows, config, monkeypatch):
    trained(rows, config, epochs=1)
    good = weights_of(WeakWater.from_pretrained(config.out_dir))
    with pytest.raises(ValueError, match="step 3: weights with which the loss is more than 2 times that of guessing are not saved"):
        trained(rows, config, learning_rate=10.0, max_steps=3)
    take_step = Run.take_step
    monkeypatch.setattr(Run, "take_step", lambda run, step, model: (os.kill(os.getpid(), signal.SIGTERM) if step == 3 else None, take_step(run, step, model))[1])
    with pytest.raises(SystemExit) as stop:
        trained(rows, config, learning_rate=10.0)
    assert stop.value.code == 128 + signal.SIGTERM
    assert torch.equal(weights_of(WeakWater.from_pretrained(config.out_dir)), good)


def test_overflow_in_fp16_stops_with_its_cause_and_its_place(rows, config, monkeypatch):
    monkeypatch.setattr(trainer, "pick_dtype", lambda name, device: torch.float16)
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight *= 1e6
    step = give_up_with("Likely cause: numbers too large for fp16: --dtype bf16 or fp32", model, rows, config)
    assert step["dtype"] == "float16"
    assert replay(step, torch.float16, torch.device("cpu"))["where"] == "model.layers.1.mlp.down_proj"
    assert replay(step, torch.float32, torch.device("cpu"))["where"] == ""


def test_fp16_finds_its_loss_scale_and_then_learns_what_fp32_learns(rows, config, monkeypatch):
    exact = train(tiny_model(), rows, replace(config, out_dir=config.out_dir + "2"))
    monkeypatch.setattr(trainer, "pick_dtype", lambda name, device: torch.float16)
    scaler = partial(torch.amp.GradScaler, init_scale=2.0**40)
    monkeypatch.setattr(torch.amp, "GradScaler", scaler)
    last = train(tiny_model(), rows, replace(config, epochs=15))
    assert 5 < last["skipped"] < 40  # more in a row than would stop it if they were failures
    assert math.isfinite(last["loss"]) and last["loss"] < exact["loss"] + 0.5


def test_diverged_loss_counts_in_fp16_and_infinite_gradients_of_a_sane_one_do_not(rows, config, monkeypatch):
    monkeypatch.setattr(trainer, "pick_dtype", lambda name, device: torch.float16)
    run = run_with_gradients(rows, config)
    run.scaler.scale(torch.ones(()))  # as a step's loss would be
    run.update(torch.tensor(run.worst_loss))
    assert (run.skipped, run.skipped_in_a_row) == (1, 1)
    run = run_with_gradients(rows, config)
    run.scaler.scale(torch.ones(()))
    run.model.lm_head.weight.grad[0, 0] = math.inf
    run.update(torch.tensor(1.0))
    assert (run.skipped, run.skipped_in_a_row) == (1, 0)


def test_weights_that_are_no_numbers_are_not_saved(rows, config):
    trained(rows, config, epochs=1)
    run = Run(tiny_model(), rows, config, 0, 1, torch.device("cpu"))
    with torch.no_grad():
        run.model.model.norm.weight[0] = math.inf
    assert run.save(1, None) is False
    assert torch.isfinite(weights_of(WeakWater.from_pretrained(config.out_dir))).all()


# ---- what is written down ----


def test_checkpoint_of_another_model_is_not_overwritten(rows, config):
    trained(rows, config, epochs=1)
    with pytest.raises(ValueError, match="holds another model's checkpoint"):
        train(tiny_model(hidden_size=24), rows, config)


def test_metrics_charts_and_probe_are_written(rows, config):
    validation = PackedRows(rows.cache, np.arange(60, 70), 128)
    last = train(tiny_model(), rows, config, validation, probe=lambda model: {"well_formed": 0.25})
    lines = read_metrics(trainer.Path(config.out_dir) / "metrics.jsonl")
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, len(steps) + 1))
    assert set(steps[0]) == {"step", "epoch", "loss", "lr", "grad_norm", "tokens", "skipped", "seconds", "tokens_per_second", "epoch_minutes_left"}
    assert steps[-1]["tokens"] == 2 * rows.useful and steps[-1]["epoch_minutes_left"] == 0
    validations = [line for line in lines if "val_loss" in line]
    assert [line["step"] for line in validations] == [s for s in range(1, len(steps)) if s % 3 == 0] + [len(steps)]
    assert all(line["well_formed"] == 0.25 for line in validations) and last["well_formed"] == 0.25
    names = sorted(path.name for path in (trainer.Path(config.out_dir) / "charts").iterdir())
    assert names == ["epoch_Time_test.png", "loss_test.png", "lr_test.png"]


def test_minutes_left_end_with_the_run_and_the_checkpoint_knows_its_length(rows, config):
    assert train(tiny_model(), rows, replace(config, max_steps=2))["epoch_minutes_left"] == 0
    stored = json.loads((trainer.Path(config.out_dir) / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert stored["model_max_length"] == rows.row_length and stored["chat_template"]


def test_training_state_holds_no_code(rows, config):
    trained(rows, config, epochs=1)
    state = torch.load(trainer.Path(config.out_dir) / "training_state.pt", weights_only=True)
    assert state["step"] == state["identity"]["epochs"] * math.ceil(len(rows) / 6)
    assert not list(trainer.Path(config.out_dir).glob("*.tmp"))


def test_half_written_last_line_of_metrics_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1}) + "\n" + '{"ste')
    assert read_metrics(path) == [{"step": 1}]
