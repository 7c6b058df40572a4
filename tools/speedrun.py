"""python tools/speedrun.py --data_path pretrain.jsonl --val_path pretrain_val.jsonl --change baseline

Train a small model on a fixed number of positions with one thing changed; add its validation loss to a file.

    python tools/speedrun.py ... --change all --seeds 1 2        every change in turn, each with two seeds
    python tools/speedrun.py ... --change "momentum 0.9 + dropout 0.1"               two changes together
    python tools/speedrun.py --table benchmarks/speedrun.jsonl   the results so far as a table, best first

Runs of one seed see the same rows in the same order. All are validated on the same held-out rows.
Changes: tools/speedrun_changes.py; what those that were measured are worth: docs/speedrun.md.
"""

import json
import statistics
import sys
import time
from collections import defaultdict
from dataclasses import replace
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch.nn.functional import dropout

import trainer
from Config import DTYPES, PRESETS, LLMConfig, TrainConfig
from dataset import PackedRows, open_tokens
from infra.cli import UserError, make_parser, run_script
from infra.device import dtype_name, pick_device
from infra.distributed import Process
from infra.jsonl import check_file
from infra.packing import cut
from infra.tokenizer import ChatTokenizer
from model import WeakWater
from optimizer import update
from tools.speedrun_changes import CHANGES, change_named

VALIDATION_ROWS = 96
RECIPE = TrainConfig(batch_size=8, max_seq_len=512, learning_rate=8e-3, embedding_rate=4.0, epochs=1000)


class CutRows(PackedRows):
    """Rows of all texts, cut into segments of at most `longest` tokens."""

    def __init__(self, cache, row_length, seed, longest):
        self.longest = longest
        super().__init__(cache, np.arange(len(cache)), row_length, seed)

    def segments(self, documents):
        starts, ends = self.cache.spans(documents)
        return cut(starts, ends - starts - 1, self.longest)


def train_changed(change, model, cache, config, positions) -> tuple[trainer.Run, list[float]]:
    """(the run, the loss of each step) of the trainer's loop on one process, with places for a change."""
    process = Process(0, 1, pick_device(config.device))
    per_step = config.batch_size * config.max_seq_len
    run, longest, seen, losses = None, None, 0, []
    for block in model.model.layers if change.dropout else []:
        for part in (block.self_attn, block.mlp):
            part.register_forward_hook(lambda it, _, out: dropout(out, change.dropout, it.training))
    while seen < positions:
        progress = seen / positions
        if longest != (longest := change.longest(progress) if change.longest else config.max_seq_len):
            rows = CutRows(cache, config.max_seq_len, config.seed, longest)
            if run is None:
                run = trainer.prepare(model, rows, config, process.device)
                run.optimizers = change.optimizers(run.optimizers, config)
            batches = iter(trainer.load_batches(rows, config, process, first_step=len(losses) + 1))
        weight, _ = trainer.step_totals([batch := next(batches)])
        with run.precision.autocast:
            loss = trainer.summed_loss(run.forward, batch.to(process.device), run.mask) / weight
        run.precision.scaler.scale(loss).backward()
        for optimizer in run.optimizers:
            run.precision.scaler.unscale_(optimizer)
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        seen = min(seen + per_step, positions)
        lr = learning_rate(change, seen / per_step, positions / per_step, config)
        for group in (group for optimizer in run.optimizers for group in optimizer.param_groups):
            group["weight_decay"] = bool(group["weight_decay"]) * config.weight_decay * change.decay(progress)
        update(run.optimizers, lr, is_sound=run.watch.accepts(loss.detach(), grad_norm))
        run.precision.scaler.update()
        model.zero_grad(set_to_none=True)
        losses.append(loss.detach())
    model.eval()
    return run, [float(loss) for loss in losses]


def learning_rate(change, step, total_steps, config) -> float:
    """The trainer's or, once the warm-up is over, the change's."""
    warmup = config.warmup(total_steps)
    if change.schedule is None or step <= warmup:
        return trainer.learning_rate(step, total_steps, config)
    return config.learning_rate * change.schedule((step - warmup) / (total_steps - warmup))


def measure(name, config, positions) -> dict:
    """{change, seed, val_loss, tokens, seconds, ...} of one run."""
    change, process = change_named(name), Process(0, 1, pick_device(config.device))
    config, tokenizer = replace(config, **change.config), ChatTokenizer(config.tokenizer)
    cache, val_cache = (open_tokens(path, tokenizer, "text") for path in (config.data_path, config.val_path))
    torch.compiler.reset()  # else what was compiled before would be taken, without the hooks of dropout
    torch.manual_seed(config.seed)
    model = WeakWater(LLMConfig.preset(config.preset, vocab_size=len(tokenizer))).to(process.device)
    begin = time.perf_counter()
    run, losses = train_changed(change, model, cache, config, positions)
    val_rows = PackedRows(val_cache, np.arange(len(val_cache)), config.max_seq_len)
    measured = trainer.evaluate(run, val_rows, config, process, VALIDATION_ROWS // config.batch_size)
    return {
        "change": name, "seed": config.seed, "val_loss": round(measured["val_loss"], 4),
        "val_bpb": round(measured["val_bpb"], 4), "last_losses": round(statistics.mean(losses[-20:]), 4),
        "parameters": model.num_parameters(), "tokens": positions, "steps": len(losses),
        "dropped": run.watch.dropped, "seconds": round(time.perf_counter() - begin), "dtype":
        dtype_name(run.precision.dtype), "compiled": run.forward is not model, "torch": torch.__version__,
    }  # fmt: skip


def table(path) -> str:
    """The results of a file in Markdown, best first. Raises UserError for runs that do not compare."""
    results = [json.loads(line) for line in check_file(path).read_text(encoding="utf-8").splitlines()]
    for name in ("parameters", "tokens", "dtype", "compiled"):
        if len(found := {result.get(name) for result in results}) > 1:
            found = f"found runs with {name} {' and '.join(map(str, found))}, expected one value"
            raise UserError(f"{path}: {found}: give each a --results file of its own")
    losses, rows = defaultdict(dict), []
    for result in results:
        losses[result["change"]][result["seed"]] = result["val_loss"]
    baseline = losses.get("baseline", {})
    for change, by_seed in losses.items():
        differences = [by_seed[seed] - baseline[seed] for seed in by_seed if seed in baseline]
        told = ", ".join(f"{seed}: {loss:.3f}" for seed, loss in sorted(by_seed.items()))
        rows.append((statistics.mean(differences or [float("nan")]), change, told))
    lines = [f"| {change} | {mean:+.3f} | {told} |" for mean, change, told in sorted(rows)]
    return "\n".join(["| change | val_loss - baseline's | val_loss by seed |", "|---|---|---|", *lines])


def main(argv=None):
    parser = make_parser(__doc__)
    add = parser.add_argument
    told = f"all, or some of: {'; '.join(CHANGES)}; with + between them, together".replace("%", "%%")
    add("--data_path", default="pretrain.jsonl", help="texts to learn from (default: pretrain.jsonl)")
    add("--val_path", default="pretrain_val.jsonl", help="texts to validate on (default: pretrain_val.jsonl)")
    add("--tokenizer", default="WeakWater_tokenizer", help="its folder (default: WeakWater_tokenizer)")
    add("--change", nargs="+", default=["baseline"], metavar="NAME", help=told)
    add("--seeds", type=int, nargs="+", default=[1], help="of weights and order (default: 1)")
    add("--tokens", type=int, default=300 * 8 * 512, help="positions trained on (default: 1228800)")
    add("--preset", default="tiny", choices=list(PRESETS), help="the model's shape (default: tiny)")
    add("--dtype", default="auto", choices=DTYPES, help="of matrix products (default: auto)")
    add("--compile", action="store_true", help="torch.compile")
    add("--results", default="out/speedrun.jsonl", help="where results go (default: out/speedrun.jsonl)")
    add("--table", metavar="FILE", help="print the results in FILE instead of training")
    args = vars(parser.parse_args(argv))
    if args["table"]:
        return print(table(args["table"]))
    chosen = list(CHANGES) if args["change"] == ["all"] else args["change"]
    for name in chosen:  # before anything is trained
        change_named(name)
    config = replace(RECIPE, **{name: value for name, value in args.items() if hasattr(RECIPE, name)})
    Path(args["results"]).parent.mkdir(parents=True, exist_ok=True)
    for seed, name in product(args["seeds"], chosen):
        line = json.dumps(measure(name, replace(config, seed=seed), args["tokens"]))
        print(line, flush=True)
        with open(args["results"], "a", encoding="utf-8") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    run_script(main)
