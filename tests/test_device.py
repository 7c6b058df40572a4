"""The device at hand: its name, its arithmetic, and torch.compile where it works."""

import pytest
import torch
from conftest import tiny_model

from infra.cli import UserError
from infra.device import (
    compile_if_it_works,
    device_name,
    has_fast_bf16,
    peak_flops,
    pick_device,
    pick_dtype,
    pick_precision,
    wants_compile,
)

CPU = torch.device("cpu")
without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="there is an NVIDIA card")


# ---- which device ----


@pytest.mark.parametrize(
    "asked, has_cuda, has_mps, local_rank, expected",
    [
        ("", False, False, None, "cpu"),
        ("", False, True, None, "mps"),
        ("", True, False, None, "cuda:0"),
        ("", True, True, None, "cuda:0"),
        ("", True, False, "3", "cuda:3"),  # torchrun
        ("cuda", True, False, "3", "cuda:3"),
        ("cuda:0", True, False, "3", "cuda:3"),  # else all processes would share one card
        ("cuda", True, False, None, "cuda:0"),
        ("cuda:1", True, False, None, "cuda:1"),
        ("cpu", True, False, "3", "cpu"),
        ("", False, False, "3", "cpu"),
        ("", False, True, "3", "cpu"),  # gloo adds up no tensors of mps
        ("cpu", True, True, None, "cpu"),
        ("mps", False, True, None, "mps"),
    ],
)
def test_device_name(asked, has_cuda, has_mps, local_rank, expected):
    assert device_name(asked, has_cuda, has_mps, local_rank) == expected


def test_named_device_is_picked():
    assert pick_device("cpu") == CPU


@pytest.mark.parametrize("name", ["abacus", "cpu:x", "xla"])
def test_device_that_cannot_be_used_is_refused(name):
    with pytest.raises(UserError, match=f"device '{name}' cannot be used here, expected .*cpu"):
        pick_device(name)


@without_cuda
def test_cuda_where_there_is_no_card_is_refused():
    with pytest.raises(UserError, match="device 'cuda:0' cannot be used here, expected cpu"):
        pick_device("cuda")


# ---- its arithmetic ----


@pytest.mark.parametrize("name, dtype", [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_asked_dtype_is_taken_on_a_cpu(name, dtype):
    assert pick_dtype(name, CPU) == dtype


@pytest.mark.parametrize(
    "machine, maker, supported, dtype",
    [
        ("x86_64", "AMD", ["_is_avx512_bf16_supported"], torch.bfloat16),
        ("x86_64", "Intel", ["_is_avx512_bf16_supported"], torch.float32),  # without AMX it is slow there
        ("x86_64", "Intel", ["_is_avx512_bf16_supported", "_is_amx_tile_supported"], torch.bfloat16),
        ("x86_64", "", ["_is_avx512_bf16_supported"], torch.bfloat16),  # torch before 2.13 does not say
        ("AMD64", "Intel", ["_is_amx_tile_supported"], torch.bfloat16),
        (
            "x86_64",
            "AMD",
            ["_is_mkldnn_bf16_supported"],
            torch.float32,
        ),  # AVX512 without it: ten times slower
        ("aarch64", "", ["_is_mkldnn_bf16_supported"], torch.bfloat16),
        ("arm64", "", [], torch.float32),
    ],
)
def test_a_cpu_takes_bf16_where_its_hardware_does(machine, maker, supported, dtype, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": f"{maker} X"}, raising=False)
    if not maker:
        monkeypatch.delattr(torch.cpu, "get_capabilities")
    for module, name in [
        (torch.cpu, "_is_avx512_bf16_supported"),
        (torch.cpu, "_is_amx_tile_supported"),
        (torch.ops.mkldnn, "_is_mkldnn_bf16_supported"),
    ]:
        monkeypatch.setattr(module, name, lambda name=name: name in supported, raising=False)
    assert pick_dtype("auto", CPU) == dtype


def test_nothing_but_a_cpu_and_cuda_takes_bf16_unasked():
    assert pick_dtype("auto", torch.device("mps")) == torch.float32


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_fp16_needs_a_card(device):
    found = f"--dtype fp16 needs a CUDA device, found {device}: expected fp32 or bf16"
    with pytest.raises(UserError, match=found):
        pick_dtype("fp16", torch.device(device))


@pytest.mark.parametrize("name, dtype", [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_asked_dtype_is_taken_on_a_card(name, dtype):
    assert pick_dtype(name, torch.device("cuda")) == dtype


@pytest.mark.parametrize("name, product", [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_matrix_products_are_in_the_asked_dtype(name, product):
    with pick_precision(name, CPU).autocast:
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == product


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_loss_is_scaled_in_no_other_dtype_than_fp16(name):
    scaler = pick_precision(name, CPU).scaler
    assert not scaler.is_enabled() and scaler.scale(torch.tensor(3.0)) == 3.0


def test_muon_takes_bf16_only_where_that_is_fast():
    assert pick_precision("fp32", CPU).muon_dtype == torch.float32
    expected = torch.bfloat16 if has_fast_bf16(CPU) else torch.float32
    assert pick_precision("bf16", CPU).muon_dtype == expected


@pytest.mark.parametrize("device, expected", [("cpu", "highest"), ("cuda", "high")])
def test_float32_products_take_tf32_on_cuda_alone(device, expected):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        pick_precision("fp32", torch.device(device))
        assert torch.get_float32_matmul_precision() == expected
    finally:
        torch.set_float32_matmul_precision(before)


def test_peak_is_not_told_where_it_is_not_known():
    assert peak_flops(CPU, torch.bfloat16) is None


# ---- torch.compile ----


@pytest.mark.parametrize("is_long", [False, True])
@pytest.mark.parametrize("asked", [None, False, True])
def test_a_cpu_compiles_what_is_long_unless_told(asked, is_long):
    assert wants_compile(asked, CPU, is_long) is (is_long if asked is None else asked)
    assert wants_compile(asked, torch.device("mps"), is_long) is bool(asked)


@pytest.mark.parametrize(
    "error, reason",
    [
        (RuntimeError("no compiler\nand a long\nstory"), "no compiler"),
        (KeyError(), "KeyError"),
        (AssertionError("x" * 999), "x" * 200),
    ],
)
def test_compilation_that_fails_is_told_in_one_line_and_done_without(error, reason, capsys):
    def fail(compiled):
        raise error

    model = tiny_model()
    assert compile_if_it_works(model, fail) is model
    assert capsys.readouterr().err == f"torch.compile does not work here, going on without it: {reason}\n"


def test_lack_of_memory_is_not_taken_for_a_compiler_that_fails(capsys):
    def fail(compiled):
        raise torch.OutOfMemoryError("planted")

    with pytest.raises(torch.OutOfMemoryError, match="planted"):
        compile_if_it_works(tiny_model(), fail)
    assert not capsys.readouterr().err


def test_compilation_that_works_is_kept_without_a_word(capsys):
    model, tried = tiny_model(), []
    compiled = compile_if_it_works(model, tried.append)
    assert tried == [compiled] and compiled is not model and not capsys.readouterr().err


@pytest.mark.parametrize("fails", [False, True])
def test_trial_leaves_no_gradients(fails):
    model = tiny_model()

    def trial(compiled):
        model(torch.ones(1, 2, dtype=torch.long)).sum().backward()  # not compiled, which would take long
        if fails:
            raise RuntimeError("planted")

    compile_if_it_works(model, trial)
    assert all(parameter.grad is None for parameter in model.parameters())
