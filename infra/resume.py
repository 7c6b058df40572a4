"""The state to resume from, `training_state.pt`, and what a resumed run must share with the stopped one."""

import pickle
from dataclasses import asdict
from pathlib import Path

import torch

from infra.checkpoint import has_checkpoint
from infra.cli import UserError
from infra.device import dtype_name
from infra.distributed import all_reduce_sum
from infra.files import write_atomically

STATE = "training_state.pt"
MAY_DIFFER = {  # flags that change neither the weights, but for rounding, nor the order of the data
    "data_path", "val_path", "tokenizer", "preset", "init_from", "out_dir", "cache_dir", "device", "compile",
    "num_workers", "log_every", "eval_every", "save_every", "resume", "dry_run", "skip_bad_lines",
    "use_wandb",
}  # fmt: skip
# what torch.load raises for a file that is not whole, or not a state
UNREADABLE = (RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, pickle.PickleError)


def resume_fingerprint(config, model_config, rows, dtype: torch.dtype) -> dict:
    """What a resumed run must share with the one that was stopped: {what: value}."""
    flags = {name: value for name, value in asdict(config).items() if name not in MAY_DIFFER}
    data = {"data": rows.cache.about["sha256"], "rows": rows.fingerprint, "dtype": dtype_name(dtype)}
    return {**flags, **data, **{f"model {name}": value for name, value in asdict(model_config).items()}}


def save_run(folder: str | Path, run, log, processes: int, is_finished: bool) -> None:
    """Write what a `trainer.Run` and its log need to go on, whole or not at all."""
    state = {
        "fingerprint": run.fingerprint,
        "is_finished": is_finished,
        "step": run.step,
        "processes": processes,
        "dropped": run.watch.dropped,
        "log": log.state(),
        "model": run.model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in run.optimizers],
        "scaler": run.precision.scaler.state_dict(),
    }

    def write(path):
        with open(path, "wb") as file:  # a file of Python's, whose errors tell why
            torch.save(state, file)

    Path(folder).mkdir(parents=True, exist_ok=True)
    write_atomically(Path(folder) / STATE, write)


def resume_run(run, log, config, processes: int) -> None:
    """With --resume, let the run and its log go on from the state in out_dir; else put aside what is there.

    Raises UserError when the state belongs to another run, or not all processes find the same.
    """
    state = load_state(config.out_dir, run.fingerprint) if config.resume else None
    step = state["step"] if state else 0
    if int(all_reduce_sum(torch.tensor(step))) != step * processes:
        found = "found different steps in different processes: copy it to every machine before --resume"
        raise UserError(f"{config.out_dir}: {found}")
    if state is None:
        if config.resume:
            log.print(f"nothing to resume in {config.out_dir}: starting at step 1")
        log.set_aside_earlier_run()
        return
    run.model.load_state_dict(state["model"])
    for optimizer, stored in zip(run.optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(stored)
    run.precision.scaler.load_state_dict(state["scaler"])
    run.watch.counts[0] = state["dropped"]
    run.step = step
    log.restore(state["log"], step)
    verb = "finished" if state["is_finished"] else "resumed"
    log.print(f"{verb}: {config.out_dir} is at step {step}/{log.extent.total_steps}")
    if state["processes"] != processes and not state["is_finished"]:
        log.print(
            f"the stopped run had {state['processes']} processes, this one has {processes}:"
            " from here on it equals an uninterrupted one to rounding, not to the bit"
        )


def load_state(folder: str | Path, fingerprint: dict) -> dict | None:
    """The state in a folder, None if there is none. Raises UserError when it belongs to another run."""
    path = Path(folder) / STATE
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        stored = dict(state["fingerprint"])
    except UNREADABLE:
        other = f", or begin at its weights with --init_from {folder} and another --out_dir"
        advice = "delete it to start anew" + (other if has_checkpoint(folder) else "")
        raise UserError(f"{path}: not a whole training state of this version: {advice}") from None
    for name, value in stored.items():
        is_context = name == "model max_position_embeddings"  # at least max_seq_len, which is compared
        if not is_context and value != fingerprint.get(name):
            found = f"the stopped run had {name} {value}, this one has {fingerprint.get(name)}"
            raise UserError(f"{path}: {found}: use the same, or leave out --resume to start anew")
    return state
