"""Beside other programs: each writes files that minseg reads, and reads files that minseg writes.
`record` keeps what was seen; `python -m pytest tests/interop --write` makes docs/interop.md of it.
"""

from importlib.util import find_spec

import numpy as np
import page
import pytest
import tifffile
import torch

import infer
from minseg import UNet
from minseg.run.checkpoint import save_model
from minseg.synthetic import synthetic_slide

TABLES = pytest.StashKey[dict]()
SILENT = pytest.StashKey[set]()  # tests that should have seen something, but did not
SLIDES = {"square": ((612, 789), (0.2527, 0.2527)), "oblong": ((530, 701), (0.25, 0.5))}


def pytest_addoption(parser):
    parser.addoption("--write", action="store_true",
                     help="tests/interop: write what was seen into docs/interop.md")


def pytest_collection_modifyitems(items):
    """Without the extra, Pillow and tifffile alone need not be asked in each run of the suite."""
    if not any(map(find_spec, ("openslide", "tiffslide", "pyvips", "slideio", "SimpleITK"))):
        for item in items:
            if "interop" in item.path.parts:
                item.add_marker(pytest.mark.skip("python -m pip install -e '.[interop]'"))


@pytest.fixture
def record(request):
    """record(table, row, column=text, ...) keeps what a test has seen for a table of the page."""
    tables = request.config.stash.setdefault(TABLES, {})
    silent = request.config.stash.setdefault(SILENT, set())
    silent.add(request.node.nodeid)

    def keep(table, row, **cells):
        silent.discard(request.node.nodeid)
        tables.setdefault(table, {}).setdefault(row, {}).update(cells)

    return keep


def pytest_terminal_summary(terminalreporter, exitstatus, config):
    if not config.getoption("write", False):
        return
    silent, say = config.stash.get(SILENT, set()), terminalreporter.line
    if exitstatus or silent or terminalreporter.stats.get("deselected"):
        say(f"nothing written: tests failed or were left out, or saw nothing: {sorted(silent)}")
    else:
        for path in page.write(config.stash[TABLES]):
            say(str(path))


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A network with random weights that finds about a third of the pixels, in patches with
    holes."""
    network = {"encoder": "efficientnet-lite0", "decoder_channels": [16, 16, 8, 8, 8]}
    torch.manual_seed(0)
    net = UNet(**network).eval()
    with torch.inference_mode():
        image = torch.tensor(synthetic_slide(1, 256, 256)[0].transpose(2, 0, 1)[None] / 255)
        logits = net(image.float())
    with torch.no_grad():
        net.head.bias -= logits.quantile(0.7)
    path = tmp_path_factory.mktemp("model") / "model.pt"
    save_model(path, network, net.state_dict(), scale=8, tile=64, threshold=0.5)
    return path


@pytest.fixture(scope="session")
def segmented(model, tmp_path_factory):
    """The folder of what infer.py writes for two slides, one of them with oblong pixels."""
    folder = tmp_path_factory.mktemp("segmented")
    for name, (shape, size) in SLIDES.items():
        tifffile.imwrite(folder / f"{name}.tif", synthetic_slide(1, *shape)[0], photometric="rgb",
                         metadata=None, tile=(256, 256), compression="zlib",
                         resolution=[1e4 / side for side in size], resolutionunit="CENTIMETER")
    infer.main([*(str(folder / f"{name}.tif") for name in SLIDES), "--model", str(model), "--out",
                str(folder / "out"), "--rle", str(folder / "out" / "submission.csv"),
                "--probabilities", "--geojson", "--device", "cpu"])
    return folder / "out"


@pytest.fixture(params=SLIDES)
def slide(request, segmented):
    """Of one slide: its name, the size of its pixels and its mask, as it was written."""
    mask = tifffile.imread(segmented / f"{request.param}.tiff")
    assert mask.shape == SLIDES[request.param][0] and set(np.unique(mask)) == {0, 255}
    return request.param, SLIDES[request.param][1], mask
