"""What several test files share."""

import pytest

from minseg import UNet
from minseg.efficientnet import SCALES


@pytest.fixture(scope="module")
def small_networks():
    """Lite0 with a quarter of its width and a third of its depth, under a narrow decoder: the same
    code with far fewer numbers, for tests of what goes on around a network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SCALES, "efficientnet-lite0", (0.25, 0.34, 0.2, 224))
        patch.setitem(UNet.__init__.__kwdefaults__, "decoder_channels", (16, 16, 8, 8, 8))
        yield
