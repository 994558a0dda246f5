"""Dice against MONAI."""

import pytest
import torch

from minseg import dice_loss

losses = pytest.importorskip(
    "monai.losses", reason="needs monai: python -m pip install -e '.[audit]'")


def test_dice_is_the_same_with_the_same_smoothing_in_value_and_gradient():
    torch.manual_seed(0)
    target = (torch.rand(3, 2, 8, 8, dtype=torch.float64) < 0.3).double()
    target[0] = 0
    results = []
    for loss in (dice_loss, losses.DiceLoss(sigmoid=True, smooth_nr=1.0, smooth_dr=1.0)):
        torch.manual_seed(1)
        logits = torch.randn(3, 2, 8, 8, dtype=torch.float64, requires_grad=True)
        value = loss(logits, target)
        value.backward()
        results.append((value.detach(), logits.grad))
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("logit, loss, slope", [(0, 1.000, 2.4e-9), (-7, 1.000, 2.7e-6)])
def test_their_empty_image_costs_one_and_hardly_teaches_as_the_table_says(logit, loss, slope):
    logits = torch.full((1, 1, 8, 8), float(logit), dtype=torch.float64, requires_grad=True)
    value = losses.DiceLoss(sigmoid=True)(logits, torch.zeros(1, 1, 8, 8, dtype=torch.float64))
    value.backward()
    assert value.item() == pytest.approx(loss, abs=6e-4)
    assert logits.grad[0, 0, 0, 0].item() == pytest.approx(slope, rel=0.03)
