"""The two things that can be configured: a model (`LLMConfig`) and a training run (`TrainConfig`).

`LLMConfig` is Hugging Face's LlamaConfig cut down to the fields that this model uses, under the same names; `config.json`
is its file. `TrainConfig` holds one field per command-line flag, so that the flags, their defaults and their help text are
written once; each training script starts from its own recipe and lets the command line change it.
"""

import argparse
import errno
import json
import math
import os
import shutil
import sys
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

DTYPES = ("auto", "bf16", "fp16", "fp32")
SHORTEST_ROW = 8  # tokens
LARGEST_NUMBER = 1e12
LARGEST_SIZE = 2**20  # of anything in a model: a config.json from elsewhere must not ask for all memory
DEVICES_HELP = "cuda, cuda:1, mps, cpu (default: the best one found)"


@dataclass(frozen=True)
class LLMConfig:
    """The shape of a model. Raises ValueError for shapes that cannot be built."""

    hidden_size: int = 512
    intermediate_size: int = 1408
    num_hidden_layers: int = 8
    num_attention_heads: int = 8
    num_key_value_heads: int = 8
    vocab_size: int = 6400
    max_position_embeddings: int = 1024
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    pad_token_id: int = 0
    bos_token_id: int = 1
    eos_token_id: int = 2

    def __post_init__(self):
        for name, value in asdict(self).items():
            if name.endswith(("size", "layers", "heads", "embeddings")) and name != "tie_word_embeddings" and not 1 <= value <= LARGEST_SIZE:
                raise ValueError(f"{name} ({str(value)[:40]}) must be at least 1 and at most {LARGEST_SIZE}")
        for name in ("rope_theta", "rms_norm_eps", "initializer_range"):
            if not 0 < getattr(self, name) < LARGEST_NUMBER:
                raise ValueError(f"{name} ({str(getattr(self, name))[:40]}) must be greater than 0 and less than {LARGEST_NUMBER:g}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size ({self.hidden_size}) must be a multiple of num_attention_heads ({self.num_attention_heads})")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(f"num_attention_heads ({self.num_attention_heads}) must be a multiple of num_key_value_heads ({self.num_key_value_heads})")
        if self.head_dim % 2:
            raise ValueError(f"head_dim ({self.head_dim}) must be even: RoPE rotates its two halves into each other")

    @property
    def head_dim(self):
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def preset(cls, name, **changes):
        """The model called `name` in PRESETS, with some fields changed."""
        if name not in PRESETS:
            raise ValueError(f"preset {name!r} is unknown, expected one of {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **changes})

    @classmethod
    def load(cls, folder):
        """Read `folder/config.json`. Raises ValueError when it describes anything else than the decoder of model.py."""
        path = Path(folder) / "config.json"
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"{path}: not a JSON file ({error})") from None
        if not isinstance(stored, dict):
            raise ValueError(f"{path}: expected a JSON object, found {type(stored).__name__}")
        # transformers 5 writes rope_theta into rope_parameters, earlier releases beside the other fields
        rope = stored.get("rope_parameters") or {}
        if not isinstance(rope, dict):
            raise ValueError(f"{path}: expected an object for rope_parameters, found {str(rope)[:40]!r}")
        stored = {**rope, **stored}
        fixed = {"model_type": "llama", "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "rope_scaling": None}
        fixed |= {"rope_type": "default"}
        for name, expected in fixed.items():
            if stored.get(name, expected) != expected:
                raise ValueError(f"{path}: found {name} {stored[name]!r}, this model is {expected!r}")
        missing = [f.name for f in fields(cls) if f.name not in stored]
        if missing:
            raise ValueError(f"{path}: {missing[0]} is missing")
        for f in fields(cls):
            allowed = (int, float) if f.type is float else (f.type,)
            if type(stored[f.name]) not in allowed:
                raise ValueError(f"{path}: expected {f.type.__name__} for {f.name}, found {str(stored[f.name])[:40]}")
        config = cls(**{f.name: stored[f.name] for f in fields(cls)})
        if stored.get("head_dim") not in (None, config.head_dim):
            raise ValueError(f"{path}: found head_dim {stored['head_dim']}, expected hidden_size / num_attention_heads = {config.head_dim}")
        return config

    def to_json(self, vocabulary=""):
        """The text of `config.json`: every field that transformers, llama.cpp and vLLM ask for, and which vocabulary it is."""
        constant = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "mlp_bias": False,
            "rope_scaling": None,
            "torch_dtype": "float32",
            "use_cache": True,
        }
        return json.dumps({**constant, **asdict(self), "head_dim": self.head_dim, "vocabulary": vocabulary}, indent=2) + "\n"


PRESETS = {
    "30m": {},  # 28,975,616 parameters with the vocabulary of 6400
    # rope_theta as in LLaMA: with 1e6, only a few of a head's 64 dimensions would tell near positions apart
    "5m": dict(hidden_size=256, intermediate_size=704, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4, rope_theta=1e4),
    "tiny": dict(hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=3, num_key_value_heads=3, rope_theta=1e4),
}


def flag(default, help, **more):
    """A dataclass field that becomes the command-line flag `--<its name>`."""
    return field(default=default, metadata={"help": help, **more})


@dataclass(frozen=True)
class TrainConfig:
    """One training run. The fields without `flag` are set by the script, all others by the command line."""

    stage: str = "pretrain"
    tag_weight: float = 1.0
    data_path: str = flag("pretrain.jsonl", "the JSONL file to learn from")
    val_path: str = flag("", "a JSONL file to validate on (default: a slice held out of data_path)")
    tokenizer: str = flag("", "the tokenizer's folder (default: the one in init_from, else WeakWater_tokenizer)")
    preset: str = flag("30m", "the shape of a new model; ignored with init_from", choices=list(PRESETS))
    init_from: str = flag("", "the checkpoint folder to start from")
    out_dir: str = flag("out/pretrain", "where the checkpoint goes")
    cache_dir: str = flag("", "where token caches go (default: beside the data)")
    epochs: int = flag(1, "passes over the data")
    max_steps: int = flag(0, "stop, with the learning rate at its floor, after so many steps (0: at the end of the epochs)")
    batch_size: int = flag(80, "rows in one micro-batch")
    accumulation_steps: int = flag(1, "micro-batches in one step, over all processes together")
    max_seq_len: int = flag(512, "tokens in one row")
    learning_rate: float = flag(4e-3, "peak learning rate")
    embedding_rate: float = flag(1.0, "learning rate of the embedding, which is also the head, as a multiple of the others'")
    warmup_steps: int = flag(-1, "steps of linear warm-up (-1: 3 in 100 of all steps)")
    min_lr_ratio: float = flag(0.1, "the floor of the cosine, as a part of the peak")
    weight_decay: float = flag(0.1, "decay of the matrices and the embedding")
    grad_clip: float = flag(1.0, "largest norm of the gradient")
    dtype: str = flag("auto", "arithmetic of the matrix products (auto: bf16 or else fp16 on CUDA, fp32 elsewhere)", choices=list(DTYPES))
    device: str = flag("", DEVICES_HELP)
    compile: bool = flag(None, "torch.compile (default: on CUDA, where Triton is installed)")
    num_workers: int = flag(0, "processes that prepare batches")
    seed: int = flag(42, "of the initial weights and the order of the data")
    log_every: int = flag(10, "steps between two lines of the log")
    eval_every: int = flag(250, "steps between two validations")
    save_every: int = flag(500, "steps between two checkpoints")
    resume: bool = flag(False, "go on from the last checkpoint in out_dir, if there is one")
    dry_run: bool = flag(False, "check data, disk and memory, time a few steps, say how long it will take, and leave nothing behind")
    skip_bad_lines: bool = flag(False, "skip and count lines that cannot be used, instead of stopping")
    use_wandb: bool = flag(False, "also log to Weights & Biases")

    def __post_init__(self):
        positive = "epochs batch_size accumulation_steps log_every eval_every save_every learning_rate embedding_rate grad_clip tag_weight"
        for name in positive.split():
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"--{name} ({getattr(self, name)}) must be greater than 0")
        for name in "max_steps weight_decay num_workers seed".split():
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"--{name} ({getattr(self, name)}) must not be negative")
        if self.warmup_steps < -1:
            raise ValueError(f"--warmup_steps ({self.warmup_steps}) must be at least 0, or -1")
        if self.seed >= 2**63:
            raise ValueError(f"--seed ({self.seed}) must be below 2**63")
        if self.max_seq_len < SHORTEST_ROW:
            raise ValueError(f"--max_seq_len ({self.max_seq_len}) must be at least {SHORTEST_ROW}")
        if not 0 <= self.min_lr_ratio <= 1:
            raise ValueError(f"--min_lr_ratio ({self.min_lr_ratio}) must lie between 0 and 1")


def write_atomically(path, write):
    """Call `write(temporary path)`, flush the file to the disk, then give it its name: it is there whole or not at all.

    Raises OSError, naming the file, where the disk is full or cannot be written; what stood there before stays.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with named_disk_errors(path):
            write(temporary)
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def named_disk_errors(path):
    """Errors of the system in writing `path`, in one line with its name, which the system's own messages leave out."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        system = error if isinstance(error, OSError) else error.__context__  # torch.save hides the system's error behind its own
        if not isinstance(system, OSError):
            raise
        advice = "run it again when that is mended"
        if system.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            free = shutil.disk_usage(path.parent).free / 1e6
            advice = f"{free:.0f} MB are free: make room there, then run it again"
        raise OSError(f"{path} could not be written ({system.strerror or system}); {advice}, a training script with --resume") from None


def parse_args(recipe, description, argv=None):
    """The recipe with the changes that the command line asks for, one flag per field. Exits with code 2 on a bad flag."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for f in fields(recipe):
        if "help" in f.metadata:
            add_flag(parser, f, getattr(recipe, f.name))
    changes = vars(parser.parse_args(argv))
    try:
        return replace(recipe, **changes)
    except ValueError as error:
        parser.exit(2, f"{error}\n")


def add_flag(parser, f, default):
    help = f.metadata["help"]
    if default not in ("", None) and "default" not in help:
        help += f" (default: {str(default).lower() if isinstance(default, bool) else default})"
    if f.type is bool:
        parser.add_argument(f"--{f.name}", action=argparse.BooleanOptionalAction, default=default, help=help)
    else:
        parser.add_argument(f"--{f.name}", type=f.type, default=default, help=help, choices=f.metadata.get("choices"), metavar=f.name.split("_")[-1].upper())


def run_script(main):
    """Run a script's `main`: a user's mistake (ValueError, OSError) ends it with its message and exit code 2, no traceback."""
    for stream in (sys.stdout, sys.stderr):  # Windows consoles would refuse Chinese text
        stream.reconfigure(encoding="utf-8", errors="replace")
    if not sys.stdin.isatty():
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    try:
        main()
        code = 0
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)
