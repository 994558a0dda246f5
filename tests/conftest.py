"""What several test files share."""

import functools
import gc
import os

import pytest
import torch
from torch.nn import init

import minseg
from minseg import efficientnet

# The tensors of the tests are too small for a second thread to pay: waiting for it takes longer
# than the work, and many times longer on a busy machine.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the programs that tests start


def pytest_collection_finish():
    """Modules and tests stay until the end: the garbage collector need not look at them again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def small_networks():
    """Lite0 with a quarter of its width and a third of its depth, under a narrow decoder: the same
    code with far fewer numbers, for tests of what goes on around a network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(efficientnet.SCALES, "efficientnet-lite0", (0.25, 0.34, 0.2, 224))
        patch.setitem(minseg.UNet.__init__.__kwdefaults__, "decoder_channels", (16, 16, 8, 8, 8))
        yield


@pytest.fixture(scope="session")
def on_meta():
    """Builds an encoder without memory for its weights, and without drawing them: the meta device
    is slow at that. The same arguments give the same encoder, so no test may change it."""
    def unchanged(tensor, *args, **kwargs):
        return tensor

    @functools.cache
    def build(name, **options):
        with pytest.MonkeyPatch.context() as patch, torch.device("meta"):
            for name_of_init in ("kaiming_uniform_", "normal_", "ones_", "uniform_", "zeros_"):
                patch.setattr(init, name_of_init, unchanged)
            return minseg.EfficientNet(name, **options).eval()

    return build
