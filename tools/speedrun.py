"""python tools/speedrun.py --data_path pretrain.jsonl --val_path pretrain_val.jsonl --change baseline

Train a small model for a fixed number of tokens with one thing changed, and add its validation loss to a JSONL file.

    python tools/speedrun.py ... --change all --seeds 1 2        every change in turn, each with two seeds
    python tools/speedrun.py --table benchmarks/speedrun.jsonl   the results so far as a table, best first

Runs of one seed and shape see the same rows in the same order; all are graded on the same held-out rows. A change that wins is made the default
of the training scripts; the others live only here.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import torch

import optimizer
import trainer
from Config import DEVICES_HELP, DTYPES, LLMConfig, TrainConfig, run_script
from dataset import ChatTokenizer, PackedRows, check_file, open_cache
from model import WeakWater, document_mask, pick_device

newton_schulz = optimizer.orthogonalize
VALIDATION_ROWS = 96
POLAR_EXPRESS = (  # Amsel et al. 2025 (arXiv:2505.16932), for 5 iterations; each an (a, b, c) of its own
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


@dataclass(frozen=True)
class Change:
    """One difference from the baseline: the training scripts' defaults, but for the learning rate and the small sizes given below."""

    config: dict = field(default_factory=dict)  # fields of TrainConfig
    model: object = None                        # function (model) -> None, after its initialization
    optimizers: object = None                   # function (model, config, dtype) -> [optimizer, ...]
    orthogonalize: object = None                # function () -> what takes the place of optimizer.orthogonalize
    schedule: object = None                     # function (progress from 0 to 1) -> part of the peak learning rate, after warm-up
    shape: object = None                        # function (progress) -> (tokens in a row, rows in a batch), at equal tokens
    cuts: object = None                         # function (progress) -> the longest pieces of texts, each for a part of the texts
    mask: object = None                         # function (document_ids, progress) -> the mask, in place of document_mask's


# ---- optimizers ----


def ours(model, config, dtype):
    return optimizer.make_optimizers(model, config.learning_rate, config.weight_decay, dtype, config.embedding_rate)


def adamw_alone(model, config, dtype, embedding_rate=1.0):
    embedding = model.model.embed_tokens.weight
    matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2 and parameter is not embedding]
    gains = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": [embedding], "weight_decay": config.weight_decay, "rate_scale": embedding_rate},
        {"params": gains, "weight_decay": 0.0},
    ]
    return [torch.optim.AdamW(groups, config.learning_rate, betas=(0.9, 0.95), fused=True)]


def with_adamw(**changes):
    """Our optimizers, with some of AdamW's settings changed; `gain_scale` multiplies the gains' learning rate."""

    def make(model, config, dtype):
        muon, adamw = ours(model, config, dtype)
        for group in adamw.param_groups:
            group.update({name: value for name, value in changes.items() if name in group})
        adamw.param_groups[1]["rate_scale"] = changes.get("gain_scale", 1.0)
        return [muon, adamw]

    return make


def with_momentum(momentum):
    def make(model, config, dtype):
        muon, adamw = ours(model, config, dtype)
        muon.param_groups[0]["momentum"] = momentum
        return [muon, adamw]

    return make


def polar_express(matrices, dtype):
    """The semi-orthogonal matrices nearest to `matrices`, by coefficients that differ from iteration to iteration."""
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.to(dtype)
    x = x.mT if is_tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) * 1.02 + 1e-6)
    for a, b, c in POLAR_EXPRESS:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if is_tall else x).to(matrices.dtype)


class NormalizedNeurons:
    """Orthogonalized, then each row divided by a running mean of its size (NorMuon, Li et al. 2025, arXiv:2510.05491)."""

    def __init__(self):
        self.squares = {}

    def __call__(self, matrices, dtype):
        directions = newton_schulz(matrices, dtype)
        now = directions.square().mean(dim=2, keepdim=True)
        kept = self.squares.setdefault(matrices.shape, torch.zeros_like(now)).lerp_(now, 0.05)
        normed = directions / (kept.sqrt() + 1e-8)
        return normed * directions.norm(dim=(1, 2), keepdim=True) / normed.norm(dim=(1, 2), keepdim=True)


# ---- initialization ----


def zero_residuals(model):
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            torch.nn.init.zeros_(parameter)


def scale_matrices(factor, which="layers"):
    def change(model):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() == 2 and which in name:
                    parameter.mul_(factor)

    return change


# ---- schedules ----


def cosine_to(floor):
    return lambda progress: floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def linear_to(floor):
    return lambda progress: 1 - (1 - floor) * progress


def constant_then_linear(decaying, floor=0.0):
    """Warm-up, stable, decay (Hu et al. 2024, arXiv:2404.06395)."""
    return lambda progress: 1 - (1 - floor) * max(0.0, (progress - (1 - decaying)) / decaying)


# ---- how far back attention sees ----


def window(positions):
    def mask(document_ids, progress):
        everything = document_mask(document_ids)
        return everything if progress >= 1 / 2 else everything.triu(1 - positions)

    return mask


def chunks(positions):
    def mask(document_ids, progress):
        if progress >= 1 / 2:
            return document_mask(document_ids)
        T = document_ids.shape[1]
        return document_mask(document_ids * T + torch.arange(T, device=document_ids.device) // positions)

    return mask


CHANGES = {
    "baseline": Change(),
    "learning rate 2e-3": Change({"learning_rate": 2e-3}),
    "learning rate 4e-3": Change({"learning_rate": 4e-3}),
    "learning rate 1.6e-2": Change({"learning_rate": 1.6e-2}),
    "learning rate 3.2e-2": Change({"learning_rate": 3.2e-2}),
    "AdamW alone, 1e-3": Change({"learning_rate": 1e-3}, optimizers=adamw_alone),
    "AdamW alone, 2e-3": Change({"learning_rate": 2e-3}, optimizers=adamw_alone),
    "AdamW alone, 4e-3": Change({"learning_rate": 4e-3}, optimizers=adamw_alone),
    "AdamW alone, 8e-3": Change({"learning_rate": 8e-3}, optimizers=adamw_alone),
    "AdamW alone, 1e-3, embedding rate x 4": Change({"learning_rate": 1e-3}, optimizers=partial(adamw_alone, embedding_rate=4.0)),
    "AdamW alone, 2e-3, embedding rate x 4": Change({"learning_rate": 2e-3}, optimizers=partial(adamw_alone, embedding_rate=4.0)),
    "embedding rate x 1": Change({"embedding_rate": 1.0}),
    "embedding rate x 2": Change({"embedding_rate": 2.0}),
    "embedding rate x 8": Change({"embedding_rate": 8.0}),
    "learning rate 4e-3, embedding rate x 8": Change({"learning_rate": 4e-3, "embedding_rate": 8.0}),
    "learning rate 2e-3, embedding rate x 8": Change({"learning_rate": 2e-3, "embedding_rate": 8.0}),
    "learning rate 1.6e-2, embedding rate x 1": Change({"learning_rate": 1.6e-2, "embedding_rate": 1.0}),
    "linear to 0, embedding rate x 1": Change({"embedding_rate": 1.0}, schedule=linear_to(0.0)),
    "gain rate x 0.3": Change(optimizers=with_adamw(gain_scale=0.3)),
    "embedding not decayed": Change(optimizers=with_adamw(weight_decay=0.0)),
    "AdamW betas 0.8, 0.95": Change(optimizers=with_adamw(betas=(0.8, 0.95))),
    "AdamW betas 0.9, 0.99": Change(optimizers=with_adamw(betas=(0.9, 0.99))),
    "no decay": Change({"weight_decay": 0.0}),
    "decay 0.03": Change({"weight_decay": 0.03}),
    "decay 0.3": Change({"weight_decay": 0.3}),
    "momentum 0.9": Change(optimizers=with_momentum(0.9)),
    "momentum 0.98": Change(optimizers=with_momentum(0.98)),
    "Polar Express": Change(orthogonalize=lambda: polar_express),
    "NorMuon": Change(orthogonalize=NormalizedNeurons),
    "residual outputs start at 0": Change(model=zero_residuals),
    "layers start twice as large": Change(model=scale_matrices(2.0)),
    "layers start half as large": Change(model=scale_matrices(0.5)),
    "embedding starts twice as large": Change(model=scale_matrices(2.0, "embed_tokens")),
    "embedding starts half as large": Change(model=scale_matrices(0.5, "embed_tokens")),
    "cosine to 0": Change({"min_lr_ratio": 0.0}),
    "linear to 0": Change(schedule=linear_to(0.0)),
    "linear to 0.1": Change(schedule=linear_to(0.1)),
    "constant, last 40% linear to 0": Change(schedule=constant_then_linear(0.4)),
    "constant, last 20% linear to 0": Change(schedule=constant_then_linear(0.2)),
    "no warm-up": Change({"warmup_steps": 0}),
    "warm-up over 10%": Change({"warmup_steps": 30}),
    "gradients not clipped": Change({"grad_clip": 1e9}),
    "half the batch": Change({"batch_size": 4}),
    "half the batch, rate / sqrt 2": Change({"batch_size": 4, "learning_rate": 5.7e-3}),
    "twice the batch": Change({"batch_size": 16}),
    "twice the batch, rate x sqrt 2": Change({"batch_size": 16, "learning_rate": 1.13e-2}),
    "twice the batch, rows of 128, then 512": Change(shape=lambda progress: (128, 64) if progress < 1 / 2 else (512, 16)),
    "batch 4 rows, then 8, then 16": Change(shape=lambda progress: (512, 4 if progress < 1 / 4 else 8 if progress < 2 / 3 else 16)),
    "pieces of 128, then 512": Change(cuts=lambda progress: (128,) if progress < 1 / 2 else (512,)),
    "pieces of 256": Change(cuts=lambda progress: (256,)),
    "half of the texts in pieces of 128": Change(cuts=lambda progress: (128, 512)),
    "window of 128, then all": Change(mask=window(128)),
    "window of 32, then all": Change(mask=window(32)),
    "chunks of 128, then all": Change(mask=chunks(128)),
    "rows of 128, then 512": Change(shape=lambda progress: (128, 32) if progress < 1 / 2 else (512, 8)),
}


# ---- one run ----


class FirstRows(torch.utils.data.Subset):
    """The first rows of PackedRows, to be graded in their place."""

    def __init__(self, rows, count):
        super().__init__(rows, range(min(count, len(rows))))
        self.cache, self.row_length = rows.cache, rows.row_length


class CutRows(PackedRows):
    """PackedRows whose texts are cut into shorter pieces than a row: at cuts[0] tokens, the next text at cuts[1] and so on in turn."""

    def __init__(self, cache, row_length, seed, cuts):
        self.cuts = cuts
        super().__init__(cache, np.arange(len(cache)), row_length, seed)

    def pieces_of_texts(self, documents):
        row_length, found = self.row_length, []
        for number, self.row_length in enumerate(self.cuts):
            found.append(super().pieces_of_texts(documents[number :: len(self.cuts)]))
        self.row_length = row_length
        return [np.concatenate(arrays) for arrays in zip(*found)]


class ChangedRun(trainer.Run):
    """A Run whose learning rate and mask follow the share of tokens seen, by any schedule."""

    def __init__(self, change, rate_at, optimizers, *args):
        super().__init__(*args)
        self.change, self.rate_at, self.progress = change, rate_at, 0.0
        self.optimizers = optimizers or (change.optimizers or ours)(self.model, self.config, self.optimizers[0].dtype)

    def loss_sum(self, model, batch):
        if not self.change.mask:
            return super().loss_sum(model, batch)
        with patch.object(trainer, "document_mask", lambda document_ids, in_blocks: self.change.mask(document_ids, self.progress)):
            return super().loss_sum(model, batch)

    def set_learning_rate(self, step):
        rate = self.rate_at()
        for one in self.optimizers:
            for group in one.param_groups:
                group["lr"] = rate * group.get("rate_scale", 1.0)
        return rate


def train_changed(change, model, cache, config, tokens):
    """Train on `tokens` tokens; returns (the last run, all losses)."""
    seen, losses, runs, run = 0, [], {}, None
    warmup = config.warmup_steps * config.batch_size * config.max_seq_len if config.warmup_steps >= 0 else 0.03 * tokens
    schedule = change.schedule or cosine_to(config.min_lr_ratio)

    def rate_at():
        after = seen + shape[0] * shape[1]  # as in the trainer, a step's rate is that of its end
        return config.learning_rate * (after / warmup if after < warmup else schedule((after - warmup) / (tokens - warmup)))

    while seen < tokens:
        shape = change.shape(seen / tokens) if change.shape else (config.max_seq_len, config.batch_size)
        cuts = change.cuts(seen / tokens) if change.cuts else (shape[0],)
        if (shape, cuts) not in runs:
            rows = CutRows(cache, shape[0], config.seed, cuts)
            shaped = replace(config, max_seq_len=shape[0], batch_size=shape[1])
            runs[shape, cuts] = ChangedRun(change, rate_at, run and run.optimizers, model, rows, shaped, 0, 1, pick_device(config.device))
        run = runs[shape, cuts]
        run.progress = seen / tokens
        losses.append(float(run.take_step(len(losses) + 1, run.forward)["loss"]))
        seen += shape[0] * shape[1]
    run.progress = 1.0
    return run, losses


def measure(name, seed, args):
    """{change, seed, val_loss, tokens, seconds, ...} of one run."""
    change, device = CHANGES[name], pick_device(args.device)
    config = TrainConfig(
        data_path=args.data_path, batch_size=8, max_seq_len=512, learning_rate=args.learning_rate, embedding_rate=4.0, seed=seed, epochs=1000,
        dtype=args.dtype, device=args.device, compile=args.compile, out_dir=f"{args.cache_dir}/speedrun",
    )  # fmt: skip
    config = replace(config, **change.config)
    tokenizer = ChatTokenizer(args.tokenizer)
    cache, val_cache = (open_cache(path, tokenizer, "text", cache_dir=args.cache_dir) for path in (args.data_path, args.val_path))
    torch.manual_seed(seed)
    model = WeakWater(LLMConfig.preset(args.preset, vocab_size=len(tokenizer))).to(device)
    if change.model:
        change.model(model)
    begin = time.perf_counter()
    orthogonalize = change.orthogonalize() if change.orthogonalize else newton_schulz
    with patch.object(optimizer, "orthogonalize", orthogonalize):
        run, losses = train_changed(change, model, cache, config, args.tokens)
    validation = FirstRows(PackedRows(val_cache, np.arange(len(val_cache)), 512), VALIDATION_ROWS)
    measured = trainer.evaluate(run, validation)
    return {
        "change": name, "seed": seed, **{key: round(measured[key], 4) for key in ("val_loss", "val_bpb")},
        "last_losses": round(statistics.mean(losses[-20:]), 4), "tokens": args.tokens, "steps": len(losses), "skipped": run.skipped,
        "parameters": model.num_parameters(), "seconds": round(time.perf_counter() - begin), "dtype": str(run.dtype).removeprefix("torch."), "compiled": run.compiled, "torch": torch.__version__,
    }  # fmt: skip


def table(path):
    """The results in a file as a Markdown table, best first: mean, difference from the baseline with the same seeds, losses by seed.

    Raises ValueError for runs that are not to be compared.
    """
    losses = defaultdict(dict)
    results = [json.loads(line) for line in check_file(path).read_text(encoding="utf-8").splitlines()]
    for name in ("tokens", "dtype", "compiled"):
        if len(found := {result.get(name) for result in results}) > 1:
            raise ValueError(f"{path}: found runs with {name} {' and '.join(map(str, found))}, expected one value: give each a --results file of its own")
    for result in results:
        losses[result["change"]][result["seed"]] = result["val_loss"]
    baseline = losses.get("baseline", {})
    rows = []
    for change, by_seed in losses.items():
        shared = [by_seed[seed] - baseline[seed] for seed in by_seed if seed in baseline]
        rows.append((statistics.mean(shared) if shared else math.nan, change, by_seed))
    lines = ["| change | val_loss - baseline's | val_loss by seed |", "|---|---|---|"]
    for difference, change, by_seed in sorted(rows, key=lambda row: row[0]):
        lines.append(f"| {change} | {difference:+.3f} | {', '.join(f'{seed}: {by_seed[seed]:.3f}' for seed in sorted(by_seed))} |")
    return "\n".join(lines)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path", default="pretrain.jsonl", help="JSONL texts to learn from (default: pretrain.jsonl)")
    parser.add_argument("--val_path", default="pretrain_val.jsonl", help="JSONL texts to be graded on (default: pretrain_val.jsonl)")
    parser.add_argument("--tokenizer", default="WeakWater_tokenizer", help="the tokenizer's folder (default: WeakWater_tokenizer)")
    parser.add_argument("--cache_dir", default="out", help="where token caches go (default: out)")
    parser.add_argument("--results", default="out/speedrun.jsonl", help="where results are added (default: out/speedrun.jsonl)")
    parser.add_argument("--change", nargs="+", default=["baseline"], choices=[*CHANGES, "all"], metavar="CHANGE", help=("'all', or some of: " + "; ".join(CHANGES)).replace("%", "%%"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="seeds of weights and order (default: 1)")
    parser.add_argument("--tokens", type=int, default=300 * 8 * 512, help="positions trained on (default: 1228800)")
    parser.add_argument("--learning_rate", type=float, default=8e-3, help="peak learning rate (default: 8e-3)")
    parser.add_argument("--preset", default="tiny", help="the model's shape (default: tiny)")
    parser.add_argument("--dtype", default="auto", choices=DTYPES, help="arithmetic of the matrix products (default: auto)")
    parser.add_argument("--device", default="", help=DEVICES_HELP)
    parser.add_argument("--compile", action="store_true", help="torch.compile, which needs a C++ compiler on a CPU")
    parser.add_argument("--table", metavar="FILE", help="print the results in FILE instead of training")
    args = parser.parse_args(argv)
    if args.table:
        print(table(args.table))
        return
    Path(args.results).parent.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for name in CHANGES if "all" in args.change else args.change:
            result = measure(name, seed, args)
            print(json.dumps(result), flush=True)
            with open(args.results, "a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    run_script(main)
