"""The shapes of models that can be built."""

from dataclasses import asdict

from infra.cli import UserError

LARGEST_NUMBER, LARGEST_SIZE = 1e12, 2**20  # a config.json from elsewhere must not ask for all memory


def check_shape(config) -> None:
    """Raises UserError for an LLMConfig that cannot be built, naming the field."""
    for name, value in asdict(config).items():
        is_size = name.endswith(("size", "layers", "heads", "position_embeddings"))
        if is_size and not 1 <= value <= LARGEST_SIZE:
            raise UserError(f"{name} ({str(value)[:40]}) must be at least 1 and at most {LARGEST_SIZE}")
        if name in ("rope_theta", "rms_norm_eps", "initializer_range") and not 0 < value < LARGEST_NUMBER:
            raise UserError(f"{name} ({str(value)[:40]}) must be above 0 and below {LARGEST_NUMBER:g}")
    pairs = [("hidden_size", "num_attention_heads"), ("num_attention_heads", "num_key_value_heads")]
    for name, of in pairs:
        value, divisor = getattr(config, name), getattr(config, of)
        if value % divisor:
            raise UserError(f"{name} ({value}) must be a multiple of {of} ({divisor})")
    if config.head_dim % 2:
        raise UserError(f"head_dim ({config.head_dim}) must be even: RoPE rotates pairs of dimensions")
