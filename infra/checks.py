"""What can be wrong with a training run before any data is read."""

from pathlib import Path

from infra.checkpoint import check_out_dir, check_vocabulary
from infra.cli import UserError
from infra.device import pick_device, pick_dtype
from infra.distributed import world_size
from infra.resume import STATE
from infra.tokenizer import ChatTokenizer


def check_run(config, model, tokenizer: ChatTokenizer) -> None:
    """Raises UserError for flags that this model, or this machine, cannot follow."""
    pick_dtype(config.dtype, pick_device(config.device))
    context, world = model.config.max_position_embeddings, world_size()
    if config.max_seq_len > context:
        most = f"the model's max_position_embeddings ({context})"
        raise UserError(f"--max_seq_len ({config.max_seq_len}) must be at most {most}")
    check_processes(config.accumulation_steps, world)
    if config.dry_run and world > 1:
        flags = f"--accumulation_steps {config.accumulation_steps // world}"
        raise UserError(
            f"--dry_run measures one process: run it without torchrun, with {flags} for the share of one"
        )
    if config.init_from:
        check_vocabulary(config.init_from, tokenizer)
        check_start(config)
    check_out_dir(config.out_dir, model.config, tokenizer)


def check_processes(accumulation_steps: int, world: int) -> None:
    if accumulation_steps % world:
        expected = f"a multiple of the number of processes ({world})"
        raise UserError(f"--accumulation_steps ({accumulation_steps}) must be {expected}")


def check_start(config) -> None:
    """Raises UserError where a run would read its start from the folder that it writes: after a crash, it
    would start from half-trained weights."""
    out_dir = Path(config.out_dir)
    resumes = config.resume and (out_dir / STATE).is_file()
    if not resumes and Path(config.init_from).resolve() == out_dir.resolve():
        raise UserError(f"--init_from and --out_dir are both {out_dir}: pass another --out_dir")
