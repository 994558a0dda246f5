"""The training step beside segmentation_models.pytorch's: the same weights, batches and losses."""

import pytest
import torch

import train
from minseg import UNet, dice_loss, lovasz_hinge

smp = pytest.importorskip(
    "segmentation_models_pytorch",
    reason="needs segmentation-models-pytorch: python -m pip install -e '.[audit]'")
STEPS = 20


def test_twenty_steps_give_the_same_losses_in_float64():
    torch.manual_seed(0)
    theirs = smp.Unet("efficientnet-b0", encoder_weights=None).double().train()
    theirs.encoder._drop_connect_rate = 0.0
    ours = UNet("efficientnet-b0", mean=(0, 0, 0), std=(1, 1, 1), stochastic_depth=0).double()
    used = [value for key, value in theirs.state_dict().items() if not key.startswith(
        ("encoder._conv_head", "encoder._bn1"))]
    ours.load_state_dict(dict(zip(ours.state_dict(), used, strict=True)))
    ours = ours.to(memory_format=torch.channels_last).train()
    batches = torch.rand(STEPS, 4, 3, 64, 64, dtype=torch.float64)
    masks = (batches.mean(2, keepdim=True) > 0.5).double()

    # Dice over the batch, as theirs; their Lovász hinge takes no float64: this project's for both.
    dice = smp.losses.DiceLoss("binary", eps=0)

    def loss(logits, target):
        return (dice_loss(logits, target, smooth=0, per_image=False)
                + lovasz_hinge(logits, target))

    optimizers = [torch.optim.AdamW(net.parameters(), 1e-4, fused=net is ours)
                  for net in (ours, theirs)]
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    losses = [], []
    for images, target in zip(batches, masks):
        losses[0].append(train.training_step(ours, loss, [(images, target)], optimizers[0],
                                             scaler).item())
        optimizers[1].zero_grad()
        logits = theirs(images)
        value = dice(logits, target) + lovasz_hinge(logits, target)
        value.backward()
        optimizers[1].step()
        losses[1].append(value.item())
    assert losses[1][-1] < losses[1][0] - 0.01  # something was learnt
    assert losses[0] == pytest.approx(losses[1], rel=0, abs=1e-6)
