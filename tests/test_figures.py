from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("matplotlib", reason="python -m pip install -e '.[lab]'")
from matplotlib.axis import Axis
from matplotlib.text import Text

from lab import figures, style
from minseg import EfficientNet as B0
from minseg import UNet

ROOT = Path(__file__).parent.parent
NETWORKS = {"every-trick": {"gates": True, "attention": "scse", "hypercolumn": True,
                                "deep_supervision": True},
            "cbam": {"attention": "cbam"}}
NAMES = [*figures.FIGURES, *figures.NETWORK_FIGURES, *figures.CHARTS]


@pytest.fixture(scope="module")
def make():
    """Draws a figure by name, each once, with untrained networks and a small image."""
    torch.manual_seed(0)
    nets = {name: UNet("efficientnet-lite0", **options).eval()
            for name, options in NETWORKS.items()}
    image, drawn = figures.unseen(192), {"lovasz": figures.draw_lovasz(steps=13)}

    def make(name):
        if name not in drawn:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(figures, "unseen", lambda size=256: image)
                patch.setattr(figures, "TILE", 64)
                patch.setattr(figures.minseg, "EfficientNet",
                              lambda name, **options: B0("efficientnet-b0", **options))
                patch.setattr(figures, "trained", lambda network, runs: nets[network])
                patch.setattr(figures, "RESULTS", ROOT / "docs/results")
                drawn[name] = figures.make(name, Path("runs"))
        figure, small = drawn[name]
        figure.set_dpi(100)  # as it is seen 800 pixels wide
        return figure, small

    return make


def texts_of(figure):
    """The texts that are drawn: ticks beyond the limits of an axis are not."""
    hidden = set()
    for axis in figure.findobj(Axis):
        low, high = sorted(axis.get_view_interval())
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
            if not low <= tick.get_loc() <= high or not axis.get_visible():
                hidden |= {tick.label1, tick.label2}
    return [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()
            and text not in hidden]


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if "synthetic" in name
                                               else []) for name in NAMES])
def test_texts_touch_nothing_and_are_large_enough(name, make):
    figure, _ = make(name)
    style.draw(figure)  # lays the texts out
    texts = texts_of(figure)
    boxes = {text: text.get_window_extent() for text in texts}
    for text, box in boxes.items():
        assert text.get_fontsize() >= 8
        assert box.x0 >= 1 and box.y0 >= 1 and box.x1 <= 799 and box.y1 <= figure.bbox.y1 - 1, text
    for one, other in combinations(texts, 2):
        assert not boxes[one].padded(-1).overlaps(boxes[other].padded(-1)), (one, other)
    for text in texts:
        text.set_alpha(0)  # what is left below a text is a plain colour: nothing strikes it through
    figure.canvas.draw()
    page = np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)
    for text, box in boxes.items():
        text.set_alpha(1)
        x0, y0, x1, y1 = (round(value) for value in box.padded(-1, -2).extents)
        below = page[len(page) - y1 : len(page) - y0, x0 : max(x1, x0 + 1)].reshape(-1, 3)
        assert np.ptp(below, axis=0).max() < 16, text


def test_a_figure_is_the_same_every_time_and_has_a_small_copy(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        figure, small = figures.draw_folds()
        figure.set_dpi(60)
        style.save(figure, tmp_path / folder / "folds.png", small)
    for name in ("folds.png", "small/folds.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert Image.open(tmp_path / "a/small/folds.png").size == (240, 160)


def test_main_draws_figures_1600_pixels_wide(tmp_path, capsys):
    figures.main(["losses", "--out", str(tmp_path / "new")])
    assert capsys.readouterr().out == f"{tmp_path / 'new' / 'losses.png'}\n"
    with Image.open(tmp_path / "new/losses.png") as picture:
        assert picture.width == 1600 and picture.info.keys() <= {"dpi"}  # no date, no version


def test_every_figure_has_its_place_in_a_docstring_or_a_page():
    modules = " ".join(path.read_text("utf-8") for path in (ROOT / "minseg").glob("*.py"))
    pages = " ".join(path.read_text("utf-8") for path in (ROOT / "docs").glob("*.md"))
    readme = (ROOT / "README.md").read_text("utf-8")
    for name in NAMES:
        path = ROOT / f"docs/figures/{name}.png"
        if name in figures.CHARTS:
            assert f"figures/{name}.png)" in pages + modules, name
        else:
            assert f"](../docs/figures/{name}.png)\n\n*" in modules, name  # a caption follows
        assert path.stat().st_size < 400_000
    small = {path.name for path in (ROOT / "docs/figures/small").glob("*.png")}
    assert small and all(f"docs/figures/small/{name}" in readme for name in small)


@pytest.mark.parametrize("name", [path.stem for path in (ROOT / "docs/figures/small").iterdir()])
def test_a_small_picture_has_no_hair_lines_and_little_empty_paper(name):
    with Image.open(ROOT / f"docs/figures/small/{name}.png") as picture:
        assert picture.size == (240, 160)
        dark = np.asarray(picture.convert("L")) < 200
    assert np.ptp(np.nonzero(dark.any(1))) > 100 and np.ptp(np.nonzero(dark.any(0))) > 160
    inside = dark[:-2] & dark[1:-1] & dark[2:]
    assert inside.sum() > 0.6 * dark.sum()  # of a line of two pixels, nothing would be left


def test_an_unknown_figure_is_one_line(capsys):
    with pytest.raises(SystemExit) as error:
        figures.main(["mona"])
    assert error.value.code == 2 and "windows" in capsys.readouterr().err


def test_a_damaged_network_is_one_line_that_names_it(tmp_path, capsys):
    model = tmp_path / f"figures-cbam-{figures.EPOCHS}-epochs" / "fold0" / "model.pt"
    model.parent.mkdir(parents=True)
    model.write_bytes(b"no network")
    with pytest.raises(SystemExit) as error:
        figures.main(["cbam", "--runs", str(tmp_path), "--out", str(tmp_path / "out")])
    line = capsys.readouterr().err
    assert error.value.code == 2 and str(model) in line and line.count("\n") == 1


def test_the_unseen_image_is_the_slide_at_the_training_scale():
    image, mask = figures.unseen(64)
    assert image.shape == (64, 64, 3) and image.dtype == torch.uint8 and mask.shape == (64, 64)
    slide, label = figures.synthetic_slide(figures.SEED, 256, 256)
    assert abs(image[10, 20, 0].item() - slide[40:44, 80:84, 0].mean()) <= 0.5
    assert mask.numpy().mean() == pytest.approx(label.mean(), abs=0.01)


def test_a_map_of_weights_says_its_means_in_glomeruli_and_elsewhere():
    mask, weights = torch.zeros(8, 8, dtype=torch.uint8), torch.full((4, 4), 0.25)
    mask[:4], weights[:2] = 1, 0.75
    weights[0, 0], weights[3, 3] = 0.83, 0.09
    assert figures.range_and_means(weights, mask).endswith("in glomeruli 0.76,\nelsewhere 0.23")


def test_watched_returns_what_the_network_computes():
    torch.manual_seed(0)
    net, image = UNet("efficientnet-lite0").eval(), torch.randint(256, (64, 64, 3))
    [((d,), _), (_, logits)] = figures.watched(net, image, ["head", "head"])
    with torch.inference_mode():
        assert torch.equal(net.head(d), logits)
        assert torch.equal(net(image.permute(2, 0, 1)[None] / 255), logits)


def test_the_costliest_place_is_where_four_tiles_meet_and_cost_most_together():
    cost = torch.zeros(192, 256)
    cost[:64, :64] = 0.5  # one tile alone costs most, but with its neighbours less than these four
    cost[64:, 64:192] = 0.2
    cost[128:, 192:] = -1.0  # what overlap spoils counts against a place
    assert figures.costliest_place(cost, 64) == (slice(64, 192), slice(64, 192))
