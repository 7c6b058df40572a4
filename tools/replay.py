"""python tools/replay.py out/pretrain/failed_step.pt

Repeat the step at which a training run gave up, and show where its numbers went wrong.

The file holds the weights, the micro-batches and the arithmetic of that step. Each micro-batch is graded again in that
arithmetic and in fp32, module by module, and differentiated.
"""

import argparse
import math
import pickle
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from Config import DEVICES_HELP, LLMConfig, run_script
from dataset import Batch
from model import WeakWater, document_mask, pick_device


def load_step(path):
    """The dictionary that `Run.give_up` wrote. Raises FileNotFoundError or ValueError."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} not found: a training run writes it when it gives up")
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
        wanted = ("step", "loss", "grad_norm", "dtype", "model_config", "model")
        return {**{name: stored[name] for name in wanted}, "micro_batches": [Batch(*tensors) for tensors in stored["micro_batches"]]}
    except (RuntimeError, EOFError, ValueError, KeyError, TypeError, pickle.UnpicklingError):
        raise ValueError(f"{path}: expected the failed_step.pt that a training run leaves when it gives up, found something else") from None


def replay(step, dtype, device):
    """Grade and differentiate a failed step: {loss, grad_norm, where}: the first module whose output is not finite, or ""."""
    model = WeakWater(LLMConfig(**step["model_config"]))
    model.load_state_dict(step["model"])
    model.to(device)
    found = []

    def look(name):
        def hook(module, inputs, output):
            if not torch.isfinite(output).all():
                found.append(name)

        return hook

    for name, module in model.named_modules():
        if name and not list(module.children()):
            module.register_forward_hook(look(name))
    weight = sum(float(batch.weights.sum()) for batch in step["micro_batches"])
    loss = 0.0
    for batch in step["micro_batches"]:
        batch = Batch(*(tensor.to(device) for tensor in batch))
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            part = model(batch.input_ids, document_mask(batch.document_ids), batch.labels, batch.weights) / weight
        part.backward()
        loss += float(part.detach())
    squares = sum(float(parameter.grad.double().square().sum()) for parameter in model.parameters() if parameter.grad is not None)
    return {"loss": loss, "grad_norm": math.sqrt(squares) if squares >= 0 else math.nan, "where": found[0] if found else ""}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="failed_step.pt in the run's out_dir")
    parser.add_argument("--device", default="", help=DEVICES_HELP)
    args = parser.parse_args(argv)
    step, device = load_step(args.file), pick_device(args.device)
    model, batches = step["model"], step["micro_batches"]
    print(f"step {step['step']}: loss {step['loss']:.6g}, gradient norm {step['grad_norm']:.6g} in {step['dtype']}")
    broken = [number for number, batch in enumerate(batches, 1) if not torch.isfinite(batch.weights).all()]
    print(f"micro-batches  {len(batches)} of {tuple(batches[0].input_ids.shape)}" + (f", weights that are no numbers in {broken}" if broken else ""))
    sizes = {name: float(tensor.abs().max()) for name, tensor in model.items()}
    if lost := [name for name, size in sizes.items() if not math.isfinite(size)]:
        print(f"no numbers     in {', '.join(lost)}")
    largest = max((name for name in sizes if name not in lost), key=sizes.get, default="none")
    print(f"largest weight {sizes.get(largest, math.nan):.4g} in {largest}")
    for dtype in dict.fromkeys([getattr(torch, step["dtype"]), torch.float32]):
        result = replay(step, dtype, device)
        print(f"again in {str(dtype).removeprefix('torch.'):<9} loss {result['loss']:.6g}, gradient norm {result['grad_norm']:.6g}"
              + (f", not finite from {result['where']} on" if result["where"] else ""))
    print(f"(guessing costs {math.log(step['model_config']['vocab_size']):.2f}: a loss far above that says that training has diverged)")


if __name__ == "__main__":
    run_script(main)
