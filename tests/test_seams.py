import argparse

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lab.seams import distance_to_seam, errors
from minseg.files.masks import Item
from minseg.run.scores import predict


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


def measured(item, folder, tile, share=0, window="uniform"):
    args = argparse.Namespace(device="cpu", amp=False, tile=tile, scale=1, microns=None, batch=4)
    (folder / "probabilities").mkdir(exist_ok=True)
    predict(WrongAtTheBorder(), [item], args, overlap=share, window=window,
            folder=folder / "probabilities")
    return errors(folder, [item], args)


def test_an_error_at_the_border_of_tiles_is_found_where_it_is(item, tmp_path):
    found = measured(item, tmp_path, 32)
    assert found["wrong"][:2] == found["pixels"][:2]
    assert sum(found["wrong"][2:]) == 0 and len(found["pixels"]) == 16


def test_windows_that_fall_mend_what_the_border_spoils_at_the_same_pixels(item, tmp_path):
    without, wrong = measured(item, tmp_path, 32), {}
    for window in ("uniform", "linear", "gaussian", "hann"):
        found = measured(item, tmp_path, 32, 0.5, window)
        assert found["pixels"] == without["pixels"]
        wrong[window] = sum(found["wrong"][:2]) / sum(found["pixels"][:2])
    # Of two tiles or four, half say the opposite. Only at the image's own border do all say it.
    assert 0.5 < wrong.pop("uniform") < 0.8
    assert max(wrong.values()) < 0.2


def test_pixels_that_nobody_labelled_do_not_count(item, tmp_path):
    all_pixels = sum(measured(item, tmp_path, 32)["pixels"])
    mask = np.array(Image.open(item.mask)) // 255
    mask[40:44, 40:60] = 255  # beside 0 and 1, that is void
    Image.fromarray(mask).save(item.mask)
    assert sum(measured(item, tmp_path, 32)["pixels"]) == all_pixels - 4 * 20


def test_an_image_within_one_tile_has_no_seam(item, tmp_path):
    assert sum(measured(item, tmp_path, 256)["pixels"]) == 0


def test_distances_are_those_to_the_nearest_line_in_pixels_of_the_scale():
    found = distance_to_seam(48, 96, 2, tile=16)  # seams at 16 and 32, 8 at most
    for i, distance in enumerate(found.tolist()):
        at = (i + 0.5) / 2
        wanted = min(abs(at - 16), abs(at - 32))
        assert distance == pytest.approx(wanted if wanted <= 8 else -1)
