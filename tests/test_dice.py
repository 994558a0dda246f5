import math

import numpy as np
import pytest
import torch

from minseg import dice_loss, dice_score


def random_pair(n=3, c=2, h=5, w=7):
    logits = torch.randn(n, c, h, w, dtype=torch.float64)
    return logits, (torch.rand(n, c, h, w) > 0.6).double()


@pytest.mark.parametrize("per_image", [True, False])
def test_the_loss_is_its_equation(per_image):
    torch.manual_seed(0)
    logits, target = random_pair()
    p, t = 1 / (1 + np.exp(-logits.numpy())), target.numpy()
    losses = []
    for c in range(2):
        for images in ([0], [1], [2]) if per_image else ([0, 1, 2],):
            shared = sum(p[i, c, y, x] * t[i, c, y, x] for i in images
                         for y in range(5) for x in range(7))
            both = p[images, c].sum() + t[images, c].sum()
            losses.append(1 - (2 * shared + 1) / (both + 1))
    assert dice_loss(logits, target, per_image=per_image).item() == pytest.approx(np.mean(losses))


def test_a_perfect_prediction_costs_nothing_and_a_wrong_one_nearly_one():
    target = torch.zeros(1, 1, 16, 16)
    target[..., :8] = 1
    right = (2 * target - 1) * 40
    assert dice_loss(right, target).item() == pytest.approx(0, abs=1e-6)
    assert dice_loss(-right, target).item() == pytest.approx(1 - 1 / (256 + 1), abs=1e-6)


@pytest.mark.parametrize("kind", ["empty", "full", "mixed"])
@pytest.mark.parametrize("per_image", [True, False])
def test_the_gradient_matches_finite_differences(kind, per_image):
    torch.manual_seed(0)
    logits, target = random_pair()
    target = {"empty": target * 0, "full": target * 0 + 1, "mixed": target}[kind]
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: dice_loss(z, target, per_image=per_image), logits)


@pytest.mark.parametrize("logit, loss, slope", [(0, 0.970, 2.3e-4), (-7, 0.055, 8.1e-4)])
def test_an_empty_image_costs_and_teaches_what_the_table_says(logit, loss, slope):
    logits = torch.full((1, 1, 8, 8), float(logit), requires_grad=True)
    value = dice_loss(logits, torch.zeros(1, 1, 8, 8))
    value.backward()
    p = 1 / (1 + math.exp(-logit))
    assert value.item() == pytest.approx(64 * p / (64 * p + 1), rel=1e-4)
    assert value.item() == pytest.approx(loss, abs=6e-4)
    assert logits.grad[0, 0, 0, 0].item() == pytest.approx(slope, rel=0.02)


def test_images_and_channels_are_apart_unless_the_batch_is_one():
    torch.manual_seed(0)
    logits, target = random_pair()
    alone = [dice_loss(logits[i : i + 1, c : c + 1], target[i : i + 1, c : c + 1])
             for i in range(3) for c in range(2)]
    torch.testing.assert_close(dice_loss(logits, target), torch.stack(alone).mean())


def test_it_computes_in_float32_under_autocast_and_from_half():
    torch.manual_seed(0)
    logits, target = (x.float() for x in random_pair(h=200, w=200))
    logits = logits.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = dice_loss(logits, target)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, dice_loss(logits.double(), target).float())


def test_the_score_counts_and_two_empty_masks_agree():
    a, b = torch.tensor([[1, 1, 0, 0]]), torch.tensor([[0, 255, 255, 255]])
    assert dice_score(a, b) == 2 * 1 / (2 + 3)
    assert dice_score(a, a.bool()) == 1 and dice_score(a * 0, b) == 0
    assert dice_score(a * 0, a * 0) == 1
    assert dice_score(a.numpy(), b.numpy()) == 0.4


def test_the_score_is_the_loss_without_smoothing_on_hard_predictions():
    torch.manual_seed(0)
    _, a = random_pair(1, 1)
    _, b = random_pair(1, 1)
    soft = 1 - dice_loss((2 * a - 1) * 100, b, smooth=0)
    assert dice_score(a, b) == pytest.approx(soft.item())


def test_shapes_that_differ_and_probabilities_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 1, 4, 4\)"):
        dice_loss(torch.zeros(1, 1, 4, 4), torch.zeros(1, 4, 4))
    with pytest.raises(ValueError, match="differ"):
        dice_score(torch.zeros(3), torch.zeros(4))
    with pytest.raises(ValueError, match="threshold"):
        dice_score(torch.tensor([0.2, 0.9]), torch.tensor([0, 1]))


def test_a_mask_with_a_single_probability_in_it_is_refused():
    with pytest.raises(ValueError):
        dice_score(torch.tensor([[[[0.0, 0.5]]]]), torch.tensor([[[[0.0, 1.0]]]]))
