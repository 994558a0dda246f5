from functools import partial

import pytest
import torch

from minseg import deep_supervision_loss, dice_loss, lovasz_hinge, make_loss
from minseg.losses import bce_loss, first_stage


@pytest.fixture
def pair():
    torch.manual_seed(0)
    return torch.randn(2, 1, 6, 6), (torch.rand(2, 1, 6, 6) < 0.3).float()


def test_bce_is_its_equation(pair):
    logits, target = pair
    p = logits.double().sigmoid()
    naive = -(target * p.log() + (1 - target) * (1 - p).log()).mean()
    assert bce_loss(logits, target).item() == pytest.approx(naive.item(), rel=1e-5)


@pytest.mark.parametrize("spec, parts", [
    ("bce", {bce_loss: 1}),
    ("dice", {dice_loss: 1}),
    ("batch_dice", {partial(dice_loss, per_image=False): 1}),
    ("lovasz", {lovasz_hinge: 1}),
    ("bce+dice", {bce_loss: 1, dice_loss: 1}),
    ("0.5*bce+lovasz", {bce_loss: 0.5, lovasz_hinge: 1}),
    (" 2 * dice + 1e-1*lovasz ", {dice_loss: 2, lovasz_hinge: 0.1}),
])
def test_a_spec_is_the_weighted_sum_it_spells(pair, spec, parts):
    wanted = sum(weight * loss(*pair) for loss, weight in parts.items())
    torch.testing.assert_close(make_loss(spec)(*pair), wanted)


@pytest.mark.parametrize("spec", ["bce", "dice", "batch_dice", "lovasz", "bce+dice+lovasz"])
@pytest.mark.parametrize("positives", ["none", "some", "all"])
def test_every_loss_is_finite_and_teaches_whatever_the_image_holds(pair, spec, positives):
    logits, target = pair
    target = {"none": target * 0, "some": target, "all": target * 0 + 1}[positives]
    logits = logits.requires_grad_()
    value = make_loss(spec)(logits, target)
    value.backward()
    assert value.isfinite() and value > 0 and value.shape == ()
    assert logits.grad.isfinite().all() and logits.grad.any()


@pytest.mark.parametrize("spec", ["bce", "dice", "lovasz", "bce+dice"])
def test_extreme_logits_stay_finite(spec):
    logits = torch.tensor([3e4, -3e4, 3e4, -3e4]).view(1, 1, 2, 2).requires_grad_()
    value = make_loss(spec)(logits, torch.tensor([1.0, 0, 0, 1]).view(1, 1, 2, 2))
    value.backward()
    assert value.isfinite() and logits.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_compute_in_float32_under_autocast(pair, dtype):
    logits, target = pair[0].to(dtype), pair[1]
    with torch.autocast("cpu", torch.bfloat16):
        value = make_loss("bce+dice+lovasz")(logits, target)
    assert value.dtype == torch.float32
    wide = make_loss("bce+dice+lovasz")(logits.double(), target.double())
    assert wide.dtype == torch.float64
    assert value.item() == pytest.approx(wide.item(), rel=1e-5)


# Pixels that nobody labelled: 255


def half_void(pair):
    """Logits and targets whose lower half is void, and the same without it."""
    logits, target = (part.clone() for part in pair)
    target[:, :, 3:] = 255
    return (logits, target), (logits[:, :, :3], target[:, :, :3])


@pytest.mark.parametrize("spec", ["dice", "lovasz", "dice+lovasz"])
def test_void_pixels_are_not_there(pair, spec):
    whole, rest = half_void(pair)
    torch.testing.assert_close(make_loss(spec)(*whole), make_loss(spec)(*rest))


def test_of_void_pixels_bce_counts_the_number_and_nothing_else(pair):
    whole, rest = half_void(pair)
    torch.testing.assert_close(2 * make_loss("bce")(*whole), make_loss("bce")(*rest))


@pytest.mark.parametrize("spec", ["bce", "dice", "lovasz", "bce+dice+lovasz"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_void_pixels_have_no_gradient_whatever_the_network_says_there(pair, spec, dtype):
    (logits, target), _ = half_void(pair)
    logits, grads = logits.to(dtype), []
    for there in (0, 3e4, -3e4):
        logits[:, :, 3:] = there
        leaf = logits.clone().requires_grad_()
        make_loss(spec)(leaf, target).backward()
        grads.append(leaf.grad)
    assert not grads[0][:, :, 3:].any() and grads[0][:, :, :3].any()
    assert torch.equal(grads[0], grads[1]) and torch.equal(grads[0], grads[2])


@pytest.mark.parametrize("spec", ["bce", "dice", "lovasz"])
def test_an_image_that_is_void_costs_exactly_nothing(pair, spec):
    logits = pair[0].requires_grad_()
    value = make_loss(spec)(logits, torch.full_like(logits, 255))
    value.backward()
    assert value.item() == 0 and not logits.grad.any()


@pytest.mark.parametrize("spec", ["bce", "dice", "lovasz"])
def test_void_pixels_are_left_out_at_every_size_of_deep_supervision(pair, spec):
    torch.manual_seed(1)
    logits = [torch.randn(2, 1, size, size) for size in (8, 4, 2)]
    target = (torch.rand(2, 1, 8, 8) < 0.3).float()
    target[:, :, 4:] = 255
    value = deep_supervision_loss(make_loss(spec), logits, target)
    rest = deep_supervision_loss(make_loss(spec), [part[:, :, : len(part[0, 0]) // 2]
                                                   for part in logits], target[:, :, :4])
    torch.testing.assert_close(value * (2 if spec == "bce" else 1), rest)


@pytest.mark.parametrize("spec", ["", "focal", "bce+", "bce*dice", "0*bce", "-1*bce", "nan*bce",
                                  "x*dice", "inf*dice", "bce dice"])
def test_what_spells_no_loss_is_refused_with_its_text(spec):
    with pytest.raises(ValueError, match="unknown loss|weight") as error:
        make_loss(spec)
    assert repr(spec) in str(error.value)


@pytest.mark.parametrize("epochs, switch, wanted", [
    (10, 0.6, 6), (10, 0.64, 6), (10, 0.66, 7), (20, 0.25, 5), (3, 0.5, 2),
    (2, 0.01, 1), (2, 0.99, 1), (10, 0.001, 1), (10, 0.999, 9)])
def test_the_first_stage_is_its_share_of_the_steps_but_each_stage_has_one(epochs, switch, wanted):
    assert first_stage(epochs, switch) == wanted
    assert isinstance(first_stage(epochs, switch), int)


def test_both_stages_have_an_epoch_and_a_larger_share_never_fewer():
    for epochs in range(2, 30):
        stages = [first_stage(epochs, share / 100) for share in range(1, 100)]
        assert stages == sorted(stages) and stages[0] == 1 and stages[-1] == epochs - 1
        assert all(abs(n - epochs * s / 100) <= 1 for s, n in enumerate(stages, 1))


@pytest.mark.parametrize("epochs, switch", [
    (1, 0.5), (0, 0.5), (10, 0), (10, 1), (10, -0.1), (10, 1.5), (10, float("nan"))])
def test_stages_that_cannot_be_are_refused_with_their_numbers(epochs, switch):
    with pytest.raises(ValueError, match=f"{epochs} steps, switched at {switch}"):
        first_stage(epochs, switch)


@pytest.mark.parametrize("first, steps, share", [
    (10_000, 30, 0.97), (10_000, 500, 0.61), (360, 30, 0.91), (360, 240, 0.53)])
def test_how_much_of_adams_second_moment_comes_from_the_first_stage(first, steps, share):
    weight = torch.nn.Parameter(torch.zeros(1))
    adam = torch.optim.AdamW([weight], 0.0)
    for step in range(first + steps):
        weight.grad = torch.tensor([float(step < first)])
        adam.step()
    state = adam.state[weight]
    unbiased = state["exp_avg_sq"].item() / (1 - 0.999 ** state["step"].item())
    assert round(unbiased, 2) == share


def test_a_term_has_one_weight():
    with pytest.raises(ValueError, match=r"unknown loss '3\*dice' in '2\*3\*dice'"):
        make_loss("2*3*dice")


@pytest.mark.parametrize("spec, over_batch", [
    ("bce", False), ("bce+dice", False), ("batch_dice", True), ("bce+batch_dice", True)])
def test_a_loss_says_whether_it_takes_a_batch_as_a_whole(spec, over_batch):
    assert make_loss(spec).over_batch is over_batch
