"""The two things that can be configured: a model (`LLMConfig`) and a training run (`TrainConfig`).

`LLMConfig` has the fields of Hugging Face's LlamaConfig that this model uses, under the same names. In
`TrainConfig`, `flag(default, help, bounds)` is a field that becomes a command-line flag, and `Flags` checks
the bounds. A training script's RECIPE sets other defaults, which the command line overrides.
"""

import math
from dataclasses import dataclass, replace

from infra.cli import Flags, UserError, flag
from infra.shapes import check_shape

DTYPES = ("auto", "bf16", "fp16", "fp32")
SFT_FOLDERS = ["out/SFT", "out/SFT_1024"]  # of its two phases
DEVICES_HELP = "cuda, cuda:1, mps, cpu (default: the best one found)"
SHORTEST_ROW = 8  # tokens


@dataclass(frozen=True)
class LLMConfig:
    """The shape of a model. Raises UserError for shapes that cannot be built."""

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
        check_shape(self)

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def preset(cls, name: str, **changes) -> "LLMConfig":
        """The model called `name` in PRESETS, with some fields changed."""
        if name not in PRESETS:
            raise UserError(f"preset {name!r} is unknown, expected one of {', '.join(PRESETS)}")
        return replace(PRESETS[name], **changes)


PRESETS = {  # sizes in the order of the fields; docs/training.md has the learning rates of the wider ones
    "tiny": LLMConfig(192, 512, 4, 3, 3, rope_theta=1e4),  # LLaMA's theta; 30m's was never compared
    "5m": LLMConfig(192, 544, 8, 6, 6, rope_theta=1e4),
    "30m": LLMConfig(),  # 28,975,616 parameters
    "60m": LLMConfig(640, 1792, 12, 10, 5),  # 60,145,280
    "100m": LLMConfig(768, 1920, 16, 12, 4),  # 100,885,248
}


@dataclass(frozen=True)
class TrainConfig(Flags):
    """One training run."""

    stage: str = "pretrain"
    tag_weight: float = 1.0  # loss weight of <think>, </think>, <answer> and </answer>; a flag of distill.py
    data_path: str = flag("pretrain.jsonl", "the JSONL file to learn from")
    val_path: str = flag("", "a JSONL file to validate on (default: a slice held out of data_path)")
    tokenizer: str = flag("", "the tokenizer's folder (default: init_from's, else WeakWater_tokenizer)")
    preset: str = flag("30m", "the shape of a new model; ignored with init_from", choices=list(PRESETS))
    init_from: str = flag("", "the checkpoint folder to start from")
    out_dir: str = flag("out/pretrain", "where the checkpoint goes")
    cache_dir: str = flag("", "where token caches go (default: beside the data)")
    epochs: int = flag(1, "passes over the data", above=0)
    max_steps: int = flag(0, "stop, and end the schedule, after so many steps (0: after the epochs)", least=0)
    batch_size: int = flag(80, "rows in one micro-batch", above=0)
    accumulation_steps: int = flag(1, "micro-batches in one step, summed over all processes", above=0)
    max_seq_len: int = flag(512, "tokens in one row", least=SHORTEST_ROW)
    optimizer: str = flag("muon", "of the layers' matrices; all else has AdamW", choices=["muon", "adamw"])
    learning_rate: float = flag(4e-3, "peak learning rate", above=0)
    embedding_rate: float = flag(1.0, "the embedding's learning rate as a multiple of the others'", above=0)
    warmup_steps: int = flag(-1, "steps of linear warm-up (-1: 3 in 100 of all steps)", least=-1)
    min_lr_ratio: float = flag(0.1, "the floor of the cosine, as a fraction of the peak", least=0, most=1)
    weight_decay: float = flag(0.1, "decay of the matrices and the embedding", least=0)
    grad_clip: float = flag(1.0, "largest norm of the gradient", above=0)
    dtype: str = flag("auto", "of products (auto: bf16 if fast, else fp16 on CUDA, or fp32)", choices=DTYPES)
    device: str = flag("", DEVICES_HELP)
    compile: bool = flag(None, "torch.compile (default: on CUDA, and in long runs on a CPU)")
    num_workers: int = flag(0, "processes that prepare batches", least=0)
    seed: int = flag(42, "random seed of the initial weights and the data order", least=0, most=2**63 - 1)
    log_every: int = flag(10, "steps between two lines of the log", above=0)
    eval_every: int = flag(250, "steps between two validations", above=0)
    save_every: int = flag(500, "steps between two checkpoints", above=0)
    resume: bool = flag(False, "continue from the last checkpoint in out_dir, if there is one")
    dry_run: bool = flag(False, "time a few steps, tell hours, memory and disk, and leave nothing behind")
    skip_bad_lines: bool = flag(False, "skip and count lines that cannot be used, instead of stopping")
    use_wandb: bool = flag(False, "also log to Weights & Biases")

    @property
    def rows_per_step(self) -> int:
        return self.batch_size * self.accumulation_steps

    def steps_per_epoch(self, rows: int) -> int:
        return math.ceil(rows / self.rows_per_step)

    def total_steps(self, rows: int) -> int:
        steps = self.epochs * self.steps_per_epoch(rows)
        return min(steps, self.max_steps or steps)

    def warmup(self, total_steps: int) -> int:
        return math.ceil(0.03 * total_steps) if self.warmup_steps < 0 else self.warmup_steps
