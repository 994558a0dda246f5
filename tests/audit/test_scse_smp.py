"""SCSE against segmentation_models.pytorch's, weights copied across."""

import pytest
import torch

from minseg import SCSE

modules = pytest.importorskip(
    "segmentation_models_pytorch.base.modules",
    reason="needs segmentation-models-pytorch: python -m pip install -e '.[audit]'")


@pytest.mark.parametrize("channels", [16, 32, 64])
def test_it_is_the_same_in_value_and_gradients(channels):
    torch.manual_seed(0)
    theirs, ours = modules.SCSEModule(channels), SCSE(channels)
    with torch.no_grad():
        theirs.cSE[1].bias.add_(0.5)  # no hidden channel is dead here: the gradient says something
    values = list(theirs.state_dict().values())
    ours.load_state_dict(dict(zip(ours.state_dict(), values, strict=True)))  # in order
    x, direction = torch.randn(2, channels, 12, 10), torch.randn(2, channels, 12, 10)
    results = []
    for module in (ours, theirs):
        image = x.clone().requires_grad_()
        out = module(image)
        (out * direction).sum().backward()
        results.append([out, image.grad, *(p.grad for p in module.parameters())])
    assert all(result.any() for result in results[1])
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_theirs_fails_below_16_channels_where_ours_keeps_one_hidden_channel():
    with pytest.raises(RuntimeError, match="at least 1"):
        modules.SCSEModule(8)(torch.randn(1, 8, 4, 4))
    assert SCSE(8)(torch.randn(1, 8, 4, 4)).shape == (1, 8, 4, 4)
