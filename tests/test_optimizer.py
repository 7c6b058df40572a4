"""Muon and AdamW: which parameters they hold, what an update is, and updates that are dropped."""

import copy
import math

import pytest
import torch
from conftest import tiny_model, weights_of

from optimizer import Muon, make_optimizers, orthogonalize, update

SOUND, BROKEN = torch.tensor(True), torch.tensor(False)


def optimizers_of(model, embedding_rate=1.0, weight_decay=0.1, dtype=torch.float32):
    return make_optimizers(model, weight_decay, embedding_rate, dtype)


def set_gradients(model, seed, size=1.0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = size * torch.randn(parameter.shape, generator=generator)


# ---- groups ----


@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_has_one_optimizer(tied):
    model = tiny_model(tie_word_embeddings=tied)
    groups = [group for optimizer in optimizers_of(model) for group in optimizer.param_groups]
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(map(id, model.parameters()))


def test_muon_holds_the_matrices_of_the_layers_and_adamw_the_rest():
    model = tiny_model(tie_word_embeddings=False)
    muon, adamw = optimizers_of(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    held = [{names[id(p)] for group in o.param_groups for p in group["params"]} for o in (muon, adamw)]
    assert held[0] == {name for name in names.values() if "_proj" in name}
    assert held[1] == {name for name in names.values() if "norm" in name} | {
        "model.embed_tokens.weight",
        "lm_head.weight",
    }


def test_adamw_alone_holds_all_and_moves_matrices_by_its_own_rule():
    model, before = tiny_model(), tiny_model()
    (adamw,) = make_optimizers(model, 0.1, 1.0, name="adamw")
    held = [id(parameter) for group in adamw.param_groups for parameter in group["params"]]
    assert sorted(held) == sorted(map(id, model.parameters()))
    set_gradients(model, seed=1)
    update([adamw], lr=0.01, is_sound=SOUND)
    for (name, moved), start in zip(model.named_parameters(), before.parameters()):
        decayed = start * (1 if "norm" in name else 1 - 0.01 * 0.1)
        signs = moved.grad / (moved.grad.abs() + 1e-8)  # of Adam's first update
        torch.testing.assert_close(moved, decayed - 0.01 * signs, rtol=0, atol=1e-6)


def test_without_gradients_matrices_decay_and_gains_do_not():
    model, before = tiny_model(), tiny_model()
    set_gradients(model, seed=1, size=0.0)
    update(optimizers_of(model, embedding_rate=2.5), lr=0.01, is_sound=SOUND)
    for (name, moved), start in zip(model.named_parameters(), before.parameters()):
        lr = 0.01 * (2.5 if "embed_tokens" in name else 1.0)
        decay = 0.0 if "norm" in name else 0.1
        torch.testing.assert_close(moved, start * (1 - lr * decay), rtol=1e-6, atol=0)


def test_embedding_moves_by_its_multiple_of_the_learning_rate():
    moves = {}
    for rate in (1.0, 4.0):
        model, before = tiny_model(), tiny_model()
        set_gradients(model, seed=1)
        update(optimizers_of(model, rate, weight_decay=0.0), lr=1e-3, is_sound=SOUND)
        moves[rate] = [moved - start for moved, start in zip(model.parameters(), before.parameters())]
    ratios = [(fast.norm() / slow.norm()).item() for fast, slow in zip(moves[4.0], moves[1.0])]
    assert ratios == pytest.approx([4.0] + [1.0] * (len(ratios) - 1), rel=1e-3)


# ---- Muon ----


@pytest.mark.parametrize("shape", [(4, 30, 10), (4, 10, 30), (4, 16, 16)])
def test_orthogonalize_is_close_to_the_polar_factor(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    found, polar = orthogonalize(matrices).flatten(1), (left @ right).flatten(1)
    assert torch.nn.functional.cosine_similarity(found, polar).min() > 0.95


def test_orthogonalize_does_not_depend_on_the_size_of_the_matrix():
    matrices = torch.randn(2, 12, 20, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(orthogonalize(1000 * matrices), orthogonalize(matrices))


def test_orthogonalize_takes_each_matrix_by_itself():
    matrices = torch.randn(3, 12, 20, generator=torch.Generator().manual_seed(1))
    one_by_one = torch.cat([orthogonalize(matrix[None]) for matrix in matrices])
    torch.testing.assert_close(orthogonalize(matrices), one_by_one, rtol=1e-4, atol=1e-5)


def test_muon_follows_pytorchs_own_where_that_exists():
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("torch.optim.Muon came with 2.9")
    start = torch.randn(24, 40, generator=torch.Generator().manual_seed(2))
    ours, theirs = start.clone().requires_grad_(), start.clone().requires_grad_()
    muon = Muon([ours], weight_decay=0.1)
    reference = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(5):
        gradient = torch.randn(24, 40, generator=torch.Generator().manual_seed(step))
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        update([muon], lr=0.1, is_sound=SOUND)
        reference.step()
    assert (ours - start).abs().mean() > 0.05
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0.02)  # theirs iterates in bfloat16


def test_size_of_muons_updates_is_that_of_adamws_for_any_shape():
    """A fifth of the learning rate, as a root mean square (Liu et al. 2025)."""
    matrices = [torch.zeros(shape, requires_grad=True) for shape in ((10, 60), (60, 10), (30, 30))]
    for matrix in matrices:
        matrix.grad = torch.randn(matrix.shape, generator=torch.Generator().manual_seed(1))
    update([Muon(matrices, weight_decay=0.0)], lr=0.5, is_sound=SOUND)
    sizes = [float(matrix.detach().square().mean().sqrt()) for matrix in matrices]
    assert sizes == pytest.approx([0.5 * 0.2] * 3, rel=0.2)


def test_muon_in_bf16_keeps_its_weights_and_momenta_in_float32():
    model, exact = tiny_model(), tiny_model()
    optimizers = optimizers_of(model, dtype=torch.bfloat16)
    for one, its in ((model, optimizers), (exact, optimizers_of(exact))):
        set_gradients(one, seed=1)
        update(its, lr=0.01, is_sound=SOUND)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {state["momentum"].dtype for state in optimizers[0].state.values()} == {torch.float32}
    torch.testing.assert_close(weights_of(model), weights_of(exact), rtol=0, atol=0.01 * 0.05)


# ---- dropped updates ----


def plant(model, value):
    model.model.layers[0].mlp.up_proj.weight.grad[0, 0] = value
    model.model.embed_tokens.weight.grad[3, 4] = value
    model.model.norm.weight.grad[5] = value


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("steps_before", [0, 2])
def test_dropped_update_leaves_every_weight_as_it_is(steps_before, value):
    model = tiny_model()
    optimizers = optimizers_of(model)
    for step in range(steps_before):
        set_gradients(model, seed=step)
        update(optimizers, lr=0.01, is_sound=SOUND)
    before = weights_of(model).clone()
    set_gradients(model, seed=9)
    plant(model, value)
    update(optimizers, lr=0.01, is_sound=BROKEN)
    assert torch.equal(weights_of(model), before)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_updates_after_a_dropped_one_are_those_after_a_gradient_of_zero(value):
    model = tiny_model()
    optimizers = optimizers_of(model)
    set_gradients(model, seed=1)
    update(optimizers, lr=0.01, is_sound=SOUND)
    twin = copy.deepcopy(model)
    twins = optimizers_of(twin)
    for own, others in zip(twins, optimizers):
        own.load_state_dict(copy.deepcopy(others.state_dict()))
    set_gradients(model, seed=2)
    plant(model, value)
    update(optimizers, lr=0.01, is_sound=BROKEN)
    set_gradients(twin, seed=2, size=0.0)
    update(twins, lr=0.0, is_sound=SOUND)
    for step in range(3):
        for one, its in ((model, optimizers), (twin, twins)):
            set_gradients(one, seed=10 + step)
            update(its, lr=0.01, is_sound=SOUND)
    assert torch.isfinite(weights_of(model)).all()
    assert torch.equal(weights_of(model), weights_of(twin))


def test_updates_after_a_dropped_one_move_the_weights():
    model = tiny_model()
    optimizers = optimizers_of(model)
    for is_sound in (SOUND, BROKEN, SOUND):
        before = weights_of(model).clone()
        set_gradients(model, seed=1)
        update(optimizers, lr=0.01, is_sound=is_sound)
        assert (weights_of(model) != before).float().mean() == pytest.approx(float(is_sound), abs=0.01)
