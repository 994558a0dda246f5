"""Networks that are exported say what they said before, at any size.

`python -m pytest -m slow tests/test_export.py -s` exports every network in every way, and prints
how long that took and how far apart the results are."""

import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from minseg import UNet
from minseg.efficientnet import SCALES
from minseg.run.checkpoint import load_model, save_model

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"),
              pytest.mark.filterwarnings("ignore::FutureWarning"),
              pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")]
PAGE = Path(__file__).parent.parent / "docs/export.md"
NEW = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 9)
needs_new = pytest.mark.skipif(not NEW, reason="torch.export takes any size from PyTorch 2.9 on")

EVERYTHING = {"gates": True, "hypercolumn": True, "deep_supervision": True}
TOGETHER = {
    "plain": {},
    "all, CBAM": {**EVERYTHING, "encoder": "efficientnet-b0", "attention": "cbam"},
    "all, SCSE": {**EVERYTHING, "encoder": "efficientnet-b0", "attention": "scse",
                  "padding": "symmetric"},
    "all, CBAM 3 x 3": {**EVERYTHING, "attention": "cbam3"},
}
ALONE = {
    "B0": {"encoder": "efficientnet-b0"},
    "symmetric": {"padding": "symmetric"},
    "gates": {"gates": True},
    "SCSE": {"attention": "scse"},
    "CBAM": {"attention": "cbam"},
    "CBAM 3 x 3": {"attention": "cbam3"},
    "hypercolumn": {"hypercolumn": True},
    "deep supervision": {"deep_supervision": True},
}
NETWORKS = TOGETHER | ALONE
EXAMPLE = (2, 3, 70, 45)  # images, channels, rows, columns
SIZES = [(1, 3, 1, 1), (2, 3, 1, 40), (1, 3, 33, 64), (3, 3, 64, 64), (1, 3, 31, 32),
         (1, 3, 65, 97)]


@pytest.fixture(scope="module", autouse=True)
def even_smaller(small_networks):
    """Exporters take their time for each layer: Lite0 with one block in each stage, a narrow B0."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SCALES, "efficientnet-lite0", (0.25, 0.01, 0.2, 224))
        patch.setitem(SCALES, "efficientnet-b0", (0.25, 1.0, 0.2, 224))
        yield


def build(**options):
    """A network in eval mode, whose norms are what training leaves: none of them does nothing."""
    torch.manual_seed(0)
    net = UNet(**{"encoder": "efficientnet-lite0", **options})
    with torch.no_grad():
        for norm in net.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.normal_(0, 0.2)
                norm.running_var.uniform_(0.5, 1.5)
    return net.eval()


def needs_onnx():
    for name in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name, reason="needs ONNX: python -m pip install -e '.[export]'")


def session(path):
    """A function that runs the ONNX file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # not what it removes from the graph
    found = onnxruntime.InferenceSession(str(path), options)
    name = found.get_inputs()[0].name
    return lambda x: torch.from_numpy(found.run(None, {name: x.numpy()})[0])


def trace(net, x, vary, path):
    return torch.jit.trace(net, x)


def export(net, x, vary, path):
    sizes = (dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC),) if vary else None
    return torch.export.export(net, (x,), dynamic_shapes=sizes).module(check_guards=False)


def old_onnx(net, x, vary, path):
    needs_onnx()
    sizes = {"x": {0: "n", 2: "h", 3: "w"}} if vary else None
    torch.onnx.export(net, (x,), path, dynamo=False, input_names=["x"], dynamic_axes=sizes)
    return session(path)


def new_onnx(net, x, vary, path):
    needs_onnx()
    sizes = (dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC),) if vary else None
    torch.onnx.export(net, (x,), path, dynamo=True, external_data=False, verbose=False,
                      dynamic_shapes=sizes)
    return session(path)


def difference(found, wanted, sizes):
    """The largest one of two functions at these sizes; they must give logits that say something."""
    torch.manual_seed(1)
    largest = 0.0
    with torch.no_grad():
        for size in sizes:
            x = torch.rand(size)
            ours, theirs = wanted(x), found(x)
            assert theirs.shape == ours.shape == (size[0], 1, *size[2:])
            assert ours.numel() == 1 or ours.std() > 1e-4
            largest = max(largest, (ours - theirs).abs().max().item())
    return largest


def check(way, options, vary, path):
    net = build(**options)
    start = time.perf_counter()
    found = way(net, torch.rand(EXAMPLE), vary, path)
    seconds = time.perf_counter() - start
    apart = difference(found, net, SIZES if vary else [EXAMPLE])
    print(f"{way.__name__}, {options}, {'any size' if vary else 'one size'}: {seconds:.1f} s, "
          f"difference {apart:.0e}")
    assert apart < 1e-4
    return apart


@pytest.mark.parametrize("options", [
    pytest.param(options, id=name, marks=[pytest.mark.slow] if "encoder" in options else [])
    for name, options in TOGETHER.items()])
@pytest.mark.slow
def test_a_traced_network_takes_any_size(options, tmp_path):
    assert check(trace, options, True, tmp_path) == 0


@pytest.mark.parametrize("options", TOGETHER.values(), ids=TOGETHER)
def test_the_older_exporter_to_onnx_takes_every_network_and_the_file_any_size(options, tmp_path):
    check(old_onnx, options, True, tmp_path / "net.onnx")


@pytest.mark.parametrize("rows, columns", [(1, 1), (64, 64)])
def test_the_example_may_need_all_padding_or_none(rows, columns, tmp_path):
    needs_onnx()
    net, example = build(), torch.rand(1, 3, rows, columns)
    assert difference(trace(net, example, True, None), net, SIZES) == 0
    assert difference(old_onnx(net, example, True, tmp_path / "net.onnx"), net, SIZES) < 1e-4


@pytest.mark.slow
@needs_new
def test_torch_export_takes_any_size(tmp_path):
    assert check(export, {}, True, tmp_path) == 0


@pytest.mark.slow
@needs_new
@pytest.mark.parametrize("vary", [True, False], ids=["any size", "one size"])
@pytest.mark.parametrize("way", [trace, export, old_onnx, new_onnx])
@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
def test_every_way_takes_every_network(options, way, vary, tmp_path):
    check(way, options, vary, tmp_path / "net.onnx")


@pytest.mark.slow
@needs_new
@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
def test_opencv_4_reads_onnx_of_one_size(options, tmp_path):
    needs_onnx()
    cv2 = pytest.importorskip("cv2", reason="python -m pip install opencv-python-headless==4.11.*")
    if not cv2.__version__.startswith("4."):
        pytest.skip("OpenCV 5.0 refuses networks with gates or attention")
    net, path = build(**options), tmp_path / "net.onnx"
    new_onnx(net, torch.rand(1, 3, 64, 96), False, path)
    reader = cv2.dnn.readNetFromONNX(str(path))

    def found(x):
        reader.setInput(x.numpy())
        return torch.from_numpy(reader.forward())

    assert difference(found, net, [(1, 3, 64, 96)]) < 1e-4


# The page

def blocks():
    """The Python code of docs/export.md, block by block."""
    return re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)


@needs_new
def test_what_the_page_does_gives_what_the_network_says(tmp_path, monkeypatch):
    needs_onnx()
    monkeypatch.chdir(tmp_path)
    network = {"encoder": "efficientnet-lite0", "decoder_channels": (16, 16, 8, 8, 8)}
    save_model("model.pt", network, build().state_dict(), scale=4, tile=256, threshold=0.4,
               microns=0.5)
    pixels = np.random.default_rng(0).integers(0, 256, (45, 70, 3), np.uint8)
    Image.fromarray(pixels).save("tile.png")
    names = {}
    for block in blocks():
        exec(compile(block, str(PAGE), "exec"), names)

    net = load_model("model.pt")[0]
    probabilities = nn.Sequential(net, nn.Sigmoid())
    for found in (session("model.onnx"), session("old.onnx"), names["loaded"],
                  torch.jit.load("model.torchscript.pt")):
        assert difference(found, probabilities, SIZES) < 1e-4
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        wanted = probabilities(image)[0, 0]
    torch.testing.assert_close(torch.from_numpy(names["probability"]), wanted, atol=1e-4, rtol=0)
    assert (names["mask"] == (wanted >= 0.4).numpy()).mean() > 0.99
    assert json.loads(Path("model.json").read_text()) == load_model("model.pt")[1]

    two = torch.jit.load("torchscript_model.pt")(torch.cat([image, image / 2])).softmax(1)
    assert two.shape == (2, 2) and two[0, 1] == pytest.approx(wanted.max().item(), abs=1e-4)
    config = json.loads(Path("config.json").read_text())
    assert config["patch_size_pixels"] == 256 and config["spacing_um_px"] == 2
