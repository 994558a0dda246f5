import numpy as np
import pytest
import torch
from PIL import Image

from lab import figures, maps
from minseg import UNet
from minseg.run.report import PAPER

OPTIONS = {"every-trick": dict(gates=True, attention="scse", hypercolumn=True,
                               deep_supervision=True),
           "cbam": dict(attention="cbam")}


@pytest.fixture(scope="module")
def nets():
    torch.manual_seed(0)
    return {name: UNet("efficientnet-lite0", **options).eval() for name, options in OPTIONS.items()}


@pytest.fixture(scope="module")
def small():
    return maps.picture(160)


@pytest.mark.parametrize("name", maps.NETWORK_FIGURES)
def test_a_figure_fits_its_sheet(name, nets, small, tmp_path, monkeypatch):
    monkeypatch.setattr(maps, "picture", lambda size=256: small)
    monkeypatch.setattr(maps, "TILE", 64)
    monkeypatch.setattr(figures, "trained", lambda network, runs: nets[network])
    figures.main([name, "--out", str(tmp_path)])
    picture = np.asarray(Image.open(tmp_path / f"{name}.png"))
    assert picture.shape[1] == 1600
    for edge in (picture[:8], picture[-8:], picture[:, :8], picture[:, -8:]):
        assert (edge == PAPER).all()  # nothing is cut off


def test_the_picture_is_the_slide_at_the_training_scale(small):
    image, mask = small
    assert image.shape == (160, 160, 3) and mask.shape == (160, 160)
    assert set(mask.unique().tolist()) == {0, 1}
    again, _ = maps.picture(160)
    assert torch.equal(image, again)


def test_what_is_watched_is_what_the_network_computes(nets, small):
    net, image = nets["every-trick"], small[0]
    [((d,), _), (_, logits)] = maps.watched(net, image, ["head", "head"])
    with torch.inference_mode():
        assert torch.equal(net.head(d), logits)
        assert torch.equal(net(image.permute(2, 0, 1)[None] / 255), logits[:, :, :160, :160])


def test_the_worst_seam_is_where_neighbours_jump_most():
    probability = torch.zeros(192, 192)
    probability[80:120, 128:] = 1.0  # at the second of two seams
    probability[100:104, 64:128] = 0.5
    column, top, bottom = maps.worst_seam(probability, 64)
    assert column == 128 and bottom - top == 64 and 80 <= (top + bottom) / 2 < 120
