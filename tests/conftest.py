"""What several test files share."""

import os

import pytest
import torch

from minseg import UNet
from minseg.efficientnet import SCALES

# The tensors of the tests are too small for a second thread to pay: waiting for it takes longer
# than the work, and many times longer on a busy machine.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the programs that tests start


@pytest.fixture(scope="module")
def small_networks():
    """Lite0 with a quarter of its width and a third of its depth, under a narrow decoder: the same
    code with far fewer numbers, for tests of what goes on around a network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SCALES, "efficientnet-lite0", (0.25, 0.34, 0.2, 224))
        patch.setitem(UNet.__init__.__kwdefaults__, "decoder_channels", (16, 16, 8, 8, 8))
        yield
