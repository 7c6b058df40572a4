"""The device at hand: which one, which arithmetic is fast on it, whether torch.compile works, its peak."""

import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch

from infra.cli import UserError

PEAK_FLOPS = {  # of dense bf16 matrix products per second, from the data sheets
    "NVIDIA GeForce RTX 3090": 71e12,
    "NVIDIA GeForce RTX 4090": 165e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}


def pick_device(name: str = "") -> torch.device:
    """The device of that name or, without one, the best there is. Raises UserError if it cannot be used."""
    has_cuda, is_one_of_many = torch.cuda.is_available(), int(os.environ.get("WORLD_SIZE", 1)) > 1
    local_rank = os.environ.get("LOCAL_RANK") if is_one_of_many else None  # both are set by torchrun
    name = device_name(name, has_cuda, torch.backends.mps.is_available(), local_rank)
    try:
        device = torch.device(name)
        if device.type == "cuda" and has_cuda:
            torch.cuda.set_device(device)  # before anything is allocated: no process opens another's card
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError):
        expected = "cuda or cpu" if has_cuda else "cpu"
        raise UserError(f"device {name!r} cannot be used here, expected {expected}") from None
    return device


def device_name(asked: str, has_cuda: bool, has_mps: bool, local_rank: str | None) -> str:
    """("", True, False, "3") -> "cuda:3": under torchrun, each process takes the card of its number."""
    best = "cuda" if has_cuda else "mps" if has_mps and local_rank is None else "cpu"  # gloo has no mps
    name = asked or best
    if name.startswith("cuda") and local_rank is not None:
        return f"cuda:{local_rank}"
    return "cuda:0" if name == "cuda" else name


def has_fast_bf16(device: torch.device) -> bool:
    """True where the hardware multiplies in bfloat16 faster than in float32, as far as torch can tell."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    # private, each; which of them exists depends on the release
    if platform.machine().lower() in ("aarch64", "arm64"):  # on x86, AVX512 of any kind is enough for it
        return getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", bool)()
    if getattr(torch.cpu, "_is_amx_tile_supported", bool)():
        return True
    is_intel = "Intel" in getattr(torch.cpu, "get_capabilities", dict)().get("cpu_name", "")  # torch 2.13
    return not is_intel and getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()  # Intel's is slower


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The torch dtype for --dtype. Raises UserError for fp16 anywhere else than on CUDA."""
    if name == "auto":
        name = "bf16" if has_fast_bf16(device) else "fp16" if device.type == "cuda" else "fp32"
    if name == "fp16" and device.type != "cuda":
        raise UserError(f"--dtype fp16 needs a CUDA device, found {device}: expected fp32 or bf16")
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[name]


@dataclass(frozen=True)
class Precision:
    """The arithmetic of a run, whose weights stay float32."""

    dtype: torch.dtype  # of matrix products
    muon_dtype: torch.dtype  # of Muon's, which tolerate bfloat16
    autocast: torch.autocast  # does nothing in fp32
    scaler: torch.amp.GradScaler  # keeps fp16's gradients in range; does nothing in bf16 and fp32


def pick_precision(name: str, device: torch.device) -> Precision:
    dtype = pick_dtype(name, device)
    is_half = dtype != torch.float32
    if device.type == "cuda":  # float32 products may use TF32, whose 10-bit mantissa is ample for training
        torch.set_float32_matmul_precision("high")
    return Precision(
        dtype,
        torch.bfloat16 if is_half and has_fast_bf16(device) else torch.float32,
        torch.autocast(device.type, dtype if is_half else None, enabled=is_half),
        torch.amp.GradScaler(device.type, enabled=dtype == torch.float16),
    )


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def wants_compile(asked: bool | None, device: torch.device, is_long: bool) -> bool:
    """--compile if it was given, else True on a CPU in long runs, and on CUDA where Triton takes the card."""
    if asked is not None or device.type not in ("cpu", "cuda"):
        return bool(asked)
    if device.type == "cpu":
        return is_long
    from torch.utils._triton import has_triton

    if not has_triton():
        print("torch.compile is off: Triton is not available here", file=sys.stderr)
    return has_triton()


def compile_if_it_works(model: torch.nn.Module, trial: Callable[[torch.nn.Module], object]):
    """torch.compile(model), or the model itself, with a line that says why, where `trial(compiled)` fails.

    trial: one forward and backward pass. Whatever it raises, short of a lack of memory, is taken for the
    compiler's failure: if it is not, the same error comes again from the plain model, and ends the run with
    its traceback.
    """
    compiled = torch.compile(model)
    try:
        trial(compiled)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # compilers raise what they like
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        print(f"torch.compile does not work here, going on without it: {reason[:200]}", file=sys.stderr)
        compiled = model
    model.zero_grad(set_to_none=True)
    return compiled


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was told to: a clock read before would not count it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Floating-point operations per second of the card's matrix products, None where that is not known."""
    if device.type != "cuda" or dtype == torch.float32:
        return None
    return PEAK_FLOPS.get(torch.cuda.get_device_name(device))
