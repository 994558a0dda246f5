"""The network in another program: ONNX Runtime and a file of torch.export give the mask that it
gives here. docs/export.md says how to export it, tests/test_export.py tries every network."""

import numpy as np
import pytest
import torch
from programs import need

from minseg.data.synthetic import synthetic_slide
from minseg.run.checkpoint import load_model

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def net(model):
    """The network with its sigmoid, and the threshold of a mask."""
    net, facts = load_model(model)
    net = torch.nn.Sequential(net, torch.nn.Sigmoid()).eval().requires_grad_(False)
    return net, facts["threshold"]


@pytest.mark.parametrize("way", ["ONNX Runtime: ONNX", "torch.export: PT2"])
def test_the_same_mask(way, net, tmp_path, record):
    need("onnx", "onnxruntime", "onnxscript")
    import onnxruntime

    net, threshold = net
    example, vary = torch.rand(2, 3, 96, 96), dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    image = synthetic_slide(2, 140, 190)[0].transpose(2, 0, 1)[None] / np.float32(255)
    if way.startswith("ONNX"):
        torch.onnx.export(net, (example,), tmp_path / "a.onnx", dynamo=True, external_data=False,
                          dynamic_shapes=(vary,), input_names=["image"])
        session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
        there = session.run(None, {"image": image})[0]
    else:
        torch.export.save(torch.export.export(net, (example,), dynamic_shapes=(vary,)),
                          tmp_path / "a.pt2")
        loaded = torch.export.load(tmp_path / "a.pt2").module(check_guards=False)
        there = loaded(torch.from_numpy(image)).numpy()
    here = net(torch.from_numpy(image)).numpy()
    assert 0.1 < (here >= threshold).mean() < 0.9
    unsure = abs(here - threshold) < 1e-5  # where rounding may decide
    assert ((there >= threshold) == (here >= threshold))[~unsure].all() and unsure.mean() < 1e-3
    difference = abs(there - here).max()
    assert difference < 1e-5
    record("networks", way, seen="the same mask; probabilities equal up to 1e-5")
