"""The network in another program: ONNX Runtime gives the mask that the network gives here.
docs/export.md says how to export it, and tests/test_export.py tries every network and way."""

import numpy as np
import pytest
import torch
from programs import need

from minseg import UNet
from minseg.efficientnet import SCALES
from minseg.synthetic import synthetic_slide

pytestmark = pytest.mark.filterwarnings("ignore")


def small_network(image):
    """A network with its sigmoid, which finds about half of the pixels of an image."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SCALES, "efficientnet-lite0", (0.25, 0.01, 0.2, 224))
        torch.manual_seed(0)
        net = UNet("efficientnet-lite0", decoder_channels=(16, 16, 8, 8, 8)).eval()
    with torch.no_grad():
        net.head.bias -= net(torch.from_numpy(image)).median()
    return torch.nn.Sequential(net, torch.nn.Sigmoid()).eval().requires_grad_(False)


def test_onnx_runtime_gives_the_same_mask(tmp_path, record):
    need("onnx", "onnxruntime", "onnxscript")
    import onnxruntime

    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 9):
        pytest.skip("the exporter takes any size from PyTorch 2.9 on")
    image = synthetic_slide(2, 140, 190)[0].transpose(2, 0, 1)[None] / np.float32(255)
    net, vary = small_network(image), dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    torch.onnx.export(net, (torch.rand(2, 3, 70, 45),), tmp_path / "a.onnx", dynamo=True,
                      external_data=False, dynamic_shapes=(vary,), input_names=["image"])
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    there, here = session.run(None, {"image": image})[0], net(torch.from_numpy(image)).numpy()
    unsure = abs(here - 0.5) < 1e-5  # where rounding may decide
    assert 0.1 < (here >= 0.5).mean() < 0.9 and unsure.mean() < 1e-3
    assert np.array_equal((there >= 0.5)[~unsure], (here >= 0.5)[~unsure])
    assert abs(there - here).max() < 1e-5
    record("networks", "ONNX Runtime: ONNX file", seen="the same mask; probabilities within 1e-5")
