"""What a graphics card computes is what it should be.

Each check is a function of a device and runs on the CPU too, with a small model, so that it is known to run:

    python -m pytest tests/test_cuda.py -m cuda       on a card, the model of 30 million parameters

Tolerances are relative, and several times what rounding alone gives in the stated arithmetic.
"""

import signal
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch._dynamo
from conftest import ChangedRows, tiny_model, weights_of

from Config import LLMConfig, TrainConfig
from dataset import Batch, PackedRows, collate_rows
from infra.kv_cache import KVCache
from model import WeakWater
from trainer import prepare, summed_loss, train

ON_A_CARD = (
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA card"),
)
DEVICES = ["cpu", pytest.param("cuda", marks=ON_A_CARD)]
each_device = pytest.mark.parametrize("device", DEVICES)
compiling = pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=ON_A_CARD)]
)


@dataclass
class Bench:
    """A shape, rows and a configuration of a size that suits the device."""

    device: torch.device
    shape: LLMConfig
    rows: PackedRows
    config: TrainConfig

    def model(self):
        torch.manual_seed(0)
        return WeakWater(self.shape).to(self.device)

    def batch(self) -> Batch:
        rows = [self.rows[row] for row in range(self.config.batch_size)]
        return collate_rows(rows, self.config.batch_size, self.rows.row_length).to(self.device)

    def loss_and_gradients(self, **changes):
        """The mean loss of a batch, and all of its gradients in one vector."""
        run = prepare(self.model(), self.rows, replace(self.config, **changes), self.device)
        batch, scaler = self.batch(), run.precision.scaler
        with exact_products(), run.precision.autocast:
            loss = summed_loss(run.forward, batch, run.mask) / batch.loss_weights.sum()
            scaler.scale(loss).backward()
        gradients = torch.cat([parameter.grad.flatten() for parameter in run.model.parameters()])
        assert changes.get("compile") is not True or run.forward is not run.model, "it was not compiled"
        return loss.detach(), gradients / scaler.get_scale()


@pytest.fixture
def bench(device, sums, tokenizer, tmp_path):
    is_card = device == "cuda"
    preset, row_length, batch_size, times = ("30m", 512, 8, 10) if is_card else ("tiny", 128, 3, 1)
    rows = PackedRows(sums, np.tile(np.arange(len(sums)), times), row_length)
    assert len(rows) > 4 * batch_size
    config = TrainConfig(
        batch_size=batch_size, max_seq_len=row_length, epochs=1000, device=device, dtype="fp32",
        compile=False, learning_rate=1e-3, warmup_steps=1, log_every=10**6, out_dir=str(tmp_path / "run"),
    )  # fmt: skip
    shape = LLMConfig.preset(preset, vocab_size=len(tokenizer))
    return Bench(torch.device(device), shape, rows, config)


@contextmanager
def exact_products():
    """float32 products in float32, where a card would take TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def relative_difference(found, expected) -> float:
    return float((found - expected).detach().norm() / expected.detach().norm())


@each_device
def test_logits_and_gradients_match_hugging_face_llama(bench):
    from transformers import LlamaConfig, LlamaForCausalLM

    ours = bench.model()
    theirs = LlamaForCausalLM(LlamaConfig(**vars(bench.shape))).to(bench.device)
    theirs.load_state_dict(ours.state_dict())
    ids = torch.randint(7, bench.shape.vocab_size, (2, 200), device=bench.device)
    with exact_products():
        logits, expected = ours(ids), theirs(ids).logits
        logits.square().mean().backward()
        expected.square().mean().backward()
    assert relative_difference(logits, expected) < 1e-4
    gradients = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert relative_difference(parameter.grad, gradients[name].grad) < 1e-3, name


@each_device
def test_packed_documents_cost_what_each_of_them_costs_alone(bench):
    model, rows = bench.model(), [bench.rows[row] for row in range(2)]
    batch = collate_rows(rows, 2, bench.rows.row_length).to(bench.device)
    run = prepare(model, bench.rows, bench.config, bench.device)
    with torch.no_grad(), exact_products():
        packed, alone, documents = summed_loss(model, batch, run.mask), 0.0, 0
        for row in range(2):
            for document in range(1, int(batch.document_ids[row].max()) + 1):
                its = batch.document_ids[row] == document
                ids, labels, loss_weights = (tensor[row][its][None] for tensor in batch[:3])
                alone, documents = alone + model(ids, None, labels, loss_weights), documents + 1
    assert documents > 2 and relative_difference(packed, alone) < 1e-5


@compiling
def test_compiled_training_computes_what_eager_training_does(bench):
    loss, gradients = bench.loss_and_gradients(compile=True)
    expected, expected_gradients = bench.loss_and_gradients(compile=False)
    assert relative_difference(loss, expected) < 1e-4
    assert relative_difference(gradients, expected_gradients) < 2e-3


# rounding to 8 bits (bf16) or 11 (fp16) in each of the layers
@pytest.mark.parametrize(
    "device, dtype, loss_tolerance, gradient_tolerance",
    [
        ("cpu", "bf16", 1e-3, 0.03),
        pytest.param("cuda", "bf16", 1e-3, 0.03, marks=ON_A_CARD),
        pytest.param("cuda", "fp16", 2e-4, 5e-3, marks=ON_A_CARD),
    ],
)
def test_half_precision_rounds_and_no_more(bench, dtype, loss_tolerance, gradient_tolerance):
    loss, gradients = bench.loss_and_gradients(dtype=dtype)
    expected, expected_gradients = bench.loss_and_gradients(dtype="fp32")
    assert relative_difference(loss, expected) < loss_tolerance
    assert 1e-5 < relative_difference(gradients, expected_gradients) < gradient_tolerance


@each_device
def test_resumed_run_equals_an_unbroken_one(bench, tmp_path):
    def trained(name, **changes):
        model, config = bench.model(), replace(bench.config, max_steps=6, out_dir=str(tmp_path / name))
        train(model, changes.pop("rows", bench.rows), replace(config, **changes))
        return weights_of(model)

    asked = []

    def stop_in_step_3(number, row):
        asked.append(number)
        if len(asked) == 3 * bench.config.batch_size:
            signal.raise_signal(signal.SIGTERM)
        return row

    unbroken = trained("unbroken")
    with suppress(SystemExit):
        trained("stopped", rows=ChangedRows(bench.rows, stop_in_step_3))
    assert len(asked) <= 4 * bench.config.batch_size  # and one more row for the loss that decides on the save
    resumed, moved = trained("stopped", resume=True), weights_of(bench.model()) - unbroken
    assert torch.equal(resumed, unbroken) or bench.device.type == "cuda"
    assert (resumed - unbroken).norm() < 0.01 * moved.norm()  # a card adds in any order


@compiling
def test_no_step_waits_for_the_device_or_compiles_anew(bench):
    """Steps 2 to 15, none of which logs; what is asked for before step 1 is a row to compile with."""
    asked, size = [], bench.config.batch_size
    first, last = 1 + size + 1, 1 + 15 * size

    def watch(number, row):
        asked.append(number)
        if len(asked) in (first, last):
            set_errors(bench.device, len(asked) == first)
        return row

    model, config = bench.model(), replace(bench.config, compile=True, dtype="auto", max_steps=18)
    try:
        train(model, ChangedRows(bench.rows, watch), config)
    finally:
        set_errors(bench.device, False)
    assert len(asked) > last


def set_errors(device, is_on):
    """Whether it is an error to wait for a card, and to compile anew."""
    torch._dynamo.config.error_on_recompile = is_on
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error" if is_on else "default")


@each_device
def test_cached_decoding_equals_one_forward(bench):
    model = tiny_model().to(bench.device)
    ids = torch.randint(7, 400, (3, 20), device=bench.device)
    cache = KVCache(model.config, 3, 20, bench.device, torch.float32)
    with torch.no_grad(), exact_products():
        expected = model(ids)
        found = [model(part, cache=cache) for part in (ids[:, :12], *ids[:, 12:].split(1, dim=1))]
    assert relative_difference(torch.cat(found, dim=1), expected) < 1e-4
