import argparse

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lab.seams import WAYS, distance_to_seam, seams
from minseg.data.datasets import Item


class WrongAtTheBorder(nn.Module):
    """Finds what is bright, but says the opposite within 2 pixels of its input's border."""

    def forward(self, x):
        logits = 20 * (x[:, :1] - 0.5)
        inner = torch.full_like(logits, -1)
        inner[..., 2:-2, 2:-2] = 1
        return logits * inner


@pytest.fixture
def item(tmp_path):
    rng = np.random.default_rng(0)
    mask = (rng.random((96, 128)) < 0.4).astype(np.uint8) * 255
    Image.fromarray(np.dstack([mask] * 3)).save(tmp_path / "i.png")
    Image.fromarray(mask).save(tmp_path / "m.png")
    return Item("i", tmp_path / "i.png", tmp_path / "m.png", "i")


def measured(item, tile):
    args = argparse.Namespace(device="cpu", amp=False, tile=tile, scale=1, batch=4)
    return seams(WrongAtTheBorder(), [item], args)


def test_an_error_at_the_border_of_tiles_is_found_where_it_is(item):
    found = measured(item, 32)
    assert found["no overlap"]["wrong"][:2] == found["no overlap"]["pixels"][:2]
    assert sum(found["no overlap"]["wrong"][2:]) == 0
    assert len(found["no overlap"]["pixels"]) == 16
    assert {len(found[way]["pixels"]) for way in WAYS if way != "no overlap"} == {8}


def test_windows_that_fall_mend_what_the_border_spoils(item):
    found = {way: sum(counts["wrong"][:2]) / sum(counts["pixels"][:2])
             for way, counts in measured(item, 32).items()}
    assert found["no overlap"] == 1
    assert 0.3 < found["overlap 0.5, uniform"] < 0.8  # one of two tiles says the opposite
    for window in ("linear", "gaussian", "hann"):
        assert found[f"overlap 0.5, {window}"] == 0


def test_an_image_within_one_tile_has_no_seam(item):
    assert all(sum(counts["pixels"]) == 0 for counts in measured(item, 256).values())


def test_distances_are_those_to_the_nearest_line_in_pixels_of_the_scale():
    found = distance_to_seam(48, 96, 2, tile=16, stride=16)  # seams at 16 and 32, 8 at most
    for i, distance in enumerate(found.tolist()):
        at = (i + 0.5) / 2
        wanted = min(abs(at - 16), abs(at - 32))
        assert distance == pytest.approx(wanted if wanted <= 8 else -1)
