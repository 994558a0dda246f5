"""The plain U-Net, Dice and Lovász against segmentation_models.pytorch, weights copied across."""

import pytest
import torch

from minseg import UNet, dice_loss, lovasz_hinge

smp = pytest.importorskip(
    "segmentation_models_pytorch",
    reason="needs segmentation-models-pytorch: python -m pip install -e '.[audit]'")


def same_weights():
    """segmentation_models.pytorch's U-Net with random statistics, and ours with all of it."""
    torch.manual_seed(0)
    theirs = smp.Unet("efficientnet-b0", encoder_weights=None)
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    ours = UNet("efficientnet-b0", mean=(0, 0, 0), std=(1, 1, 1))
    used = [v for k, v in theirs.state_dict().items() if not k.startswith(
        ("encoder._conv_head", "encoder._bn1"))]
    ours.load_state_dict(dict(zip(ours.state_dict(), used, strict=True)))  # in order
    return ours.eval(), theirs.eval()


@pytest.mark.parametrize("size", [(256, 256), (224, 320)])
def test_the_plain_unet_gives_the_same_logits(size):
    ours, theirs = same_weights()
    x = torch.rand(2, 3, *size)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-4, rtol=1e-4)


def test_it_has_the_same_parameters_less_those_never_used():
    ours, theirs = same_weights()
    counts = [sum(p.numel() for p in net.parameters()) for net in (ours, theirs)]
    assert counts[1] - counts[0] == 412_160


@pytest.mark.parametrize("positives", ["none", "some", "all"])
def test_lovasz_is_the_same_in_value_and_gradient(positives):
    torch.manual_seed(0)
    target = (torch.rand(3, 1, 40, 40) < {"none": 0, "some": 0.2, "all": 1}[positives]).float()
    values, gradients = [], []
    for loss in (lovasz_hinge, smp.losses.LovaszLoss("binary", per_image=True)):
        torch.manual_seed(1)
        logits = torch.randn(3, 1, 40, 40).mul_(2).requires_grad_()
        value = loss(logits, target)
        value.backward()
        values.append(value.detach())
        gradients.append(logits.grad)
    torch.testing.assert_close(*values, rtol=1e-5, atol=0)
    # They subtract one Delta from the next: an error of float32's last digit, whatever the step.
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=6e-8)


@pytest.mark.parametrize("logit", [0, -7])
def test_their_dice_of_an_all_empty_batch_teaches_nothing(logit):
    logits = torch.full((1, 1, 8, 8), float(logit), requires_grad=True)
    value = smp.losses.DiceLoss("binary")(logits, torch.zeros(1, 1, 8, 8))
    value.backward()
    assert value.item() == 0 and not logits.grad.any()


def test_dice_is_the_same_without_smoothing_over_a_batch_with_positives():
    torch.manual_seed(0)
    logits, target = torch.randn(3, 1, 8, 8), (torch.rand(3, 1, 8, 8) < 0.3).float()
    ours = dice_loss(logits, target, smooth=0, per_image=False)
    torch.testing.assert_close(ours, smp.losses.DiceLoss("binary")(logits, target))
