import functools

import pytest
import torch

from minseg import EfficientNet, load_weights
from minseg.efficientnet import SCALES
from minseg.pretrained import FAMILIES, adapt_stem, names
from minseg.weights import tell_size

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


@functools.cache
def random_encoder(name="efficientnet-b0", **arguments):
    """An encoder whose every tensor is random: no two are alike. No test changes it."""
    torch.manual_seed(0)
    encoder = EfficientNet(name, **arguments)
    for value in encoder.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) + 0.5)
        else:
            value.fill_(7)
    return encoder


def checkpoint(encoder, family):
    """What `family` would publish if it had trained this encoder."""
    modules = names(encoder, family)
    return {f"{modules[module]}.{part}": value.clone()
            for module, part, value in ((*key.rsplit(".", 1), value)
                                        for key, value in encoder.state_dict().items())}


@functools.cache
def untouched():
    """A B0 without classes that refuses all that it is given, and so stays as it is."""
    return EfficientNet(num_classes=0)


def refusal(encoder, *arguments):
    """The one line of the ValueError; the encoder is as it was."""
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    settings = encoder.padding, encoder.bn_eps
    with pytest.raises(ValueError) as error:
        load_weights(encoder, *arguments)
    assert all(torch.equal(before[key], value) for key, value in encoder.state_dict().items())
    assert settings == (encoder.padding, encoder.bn_eps)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("family, first, squeeze, last, classifier", [
    ("torchvision", "features.1.0.block.0.0", "features.5.1.block.2.fc2", "features.7.0.block.3.1",
     "classifier.1"),
    ("timm", "blocks.0.0.conv_dw", "blocks.4.1.se.conv_expand", "blocks.6.0.bn3", "classifier"),
    ("timm-tf", "blocks.0.0.conv_dw", "blocks.4.1.se.conv_expand", "blocks.6.0.bn3", "classifier"),
    ("lukemelas", "_blocks.0._depthwise_conv", "_blocks.9._se_expand", "_blocks.15._bn2", "_fc")])
def test_each_module_has_the_name_that_its_family_gave_it(family, first, squeeze, last, classifier):
    found = names(EfficientNet(num_classes=0), family)
    assert found["blocks.0.branch.0"] == first
    assert found["blocks.9.branch.6.expand"] == squeeze
    assert found["blocks.15.branch.8"] == last
    assert found["head.6"] == classifier
    assert len(set(found.values())) == len(found)


def test_each_layer_of_a_block_has_its_name():
    rows = {"branch.0": ("block.0.0", "conv_pw", "_expand_conv"),
            "branch.1": ("block.0.1", "bn1", "_bn0"),
            "branch.3": ("block.1.0", "conv_dw", "_depthwise_conv"),
            "branch.4": ("block.1.1", "bn2", "_bn1"),
            "branch.6.reduce": ("block.2.fc1", "se.conv_reduce", "_se_reduce"),
            "branch.6.expand": ("block.2.fc2", "se.conv_expand", "_se_expand"),
            "branch.7": ("block.3.0", "conv_pwl", "_project_conv"),
            "branch.8": ("block.3.1", "bn3", "_bn2")}
    begins = {"torchvision": "features.3.1.", "timm": "blocks.2.1.", "lukemelas": "_blocks.4."}
    encoder = EfficientNet(num_classes=0)
    for column, (family, begin) in enumerate(begins.items()):
        found = names(encoder, family)
        for ours, theirs in rows.items():
            assert found.pop(f"blocks.4.{ours}") == begin + theirs[column]
        assert not [name for name in found if name.startswith("blocks.4.")]


@pytest.mark.parametrize("name, family", [
    *(("efficientnet-b0", family) for family in FAMILIES if family != "lite"),
    *(("efficientnet-lite0", family) for family in ("timm", "timm-tf", "lite")),
    ("efficientnet-b1", "torchvision"), ("efficientnet-lite2", "lite")])
def test_every_tensor_arrives(name, family):
    trained, encoder = random_encoder(name), EfficientNet(name)
    load_weights(encoder, checkpoint(trained, family), family)
    found = encoder.state_dict()
    for key, value in trained.state_dict().items():
        assert torch.equal(found[key], value), key


@pytest.mark.parametrize("name, family, padding, bn_eps, statistics", [
    ("efficientnet-b0", "torchvision", "symmetric", 1e-5, IMAGENET),
    ("efficientnet-b5", "torchvision", "symmetric", 1e-3, IMAGENET),
    ("efficientnet-b0", "timm", "symmetric", 1e-5, IMAGENET),
    ("efficientnet-lite0", "timm", "symmetric", 1e-5, IMAGENET),
    ("efficientnet-b0", "timm-tf", "same", 1e-3, IMAGENET),
    ("efficientnet-lite0", "timm-tf", "same", 1e-3, HALF),
    ("efficientnet-b0", "lukemelas", "same", 1e-3, IMAGENET),
    ("efficientnet-lite0", "lite", "same", 1e-3, ((127 / 255,) * 3, (128 / 255,) * 3))])
def test_each_family_sets_its_padding_epsilon_and_statistics(name, family, padding, bn_eps,
                                                             statistics):
    other = "same" if padding == "symmetric" else "symmetric"
    encoder = EfficientNet(name, num_classes=0, padding=other, bn_eps=1e-2).eval()
    assert load_weights(encoder, checkpoint(encoder, family), family) == statistics
    assert (encoder.padding, encoder.bn_eps) == (padding, bn_eps)
    built = EfficientNet(name, num_classes=0, padding=padding, bn_eps=bn_eps).eval()
    built.load_state_dict(encoder.state_dict())
    x = torch.rand(1, 3, 32, 47)
    for ours, theirs in zip(encoder.features(x), built.features(x)):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["efficientnet-b0", "efficientnet-lite0"])
def test_keys_tell_the_family_but_for_timms_two(name):
    encoder = EfficientNet(name, num_classes=0)
    for family in (("lite",) if "lite" in name else ("torchvision", "lukemelas")):
        load_weights(encoder, checkpoint(encoder, family))
        assert encoder.padding == FAMILIES[family][1]
    state = checkpoint(encoder, "timm")
    assert state.keys() == checkpoint(encoder, "timm-tf").keys()
    assert 'family="timm" or "timm-tf"' in refusal(encoder, state)


@pytest.mark.parametrize("name, file, padding, statistics", [
    ("efficientnet-b0", "efficientnet_b0_ra-3dd342df.pth", "symmetric", IMAGENET),
    ("efficientnet-b0", "efficientnet_b0.ra4_e3600_r224_in1k.pth", "symmetric", HALF),
    ("efficientnet-b0", "tf_efficientnet_b0_aa-827b6e33.pth", "same", IMAGENET),
    ("efficientnet-b0", "tf_efficientnet_b0_ap-f262efe1.pth", "same", HALF),
    ("efficientnet-b0", "tf_efficientnet_b0.ap_in1k.pth", "same", HALF),
    ("efficientnet-b0", "adv-efficientnet-b0-b64d5a18.pth", "same", HALF),
    ("efficientnet-b0", "efficientnet-b0-355c32eb.pth", "same", IMAGENET),
    ("efficientnet-lite0", "tf_efficientnet_lite0-0aa007d2.pth", "same", HALF)])
def test_a_files_name_tells_what_its_keys_do_not(name, file, padding, statistics, tmp_path):
    encoder = EfficientNet(name, num_classes=0)
    torch.save(checkpoint(encoder, "timm" if "_" in file else "lukemelas"), tmp_path / file)
    assert load_weights(encoder, tmp_path / file) == statistics
    assert encoder.padding == padding
    assert load_weights(encoder, str(tmp_path / file)) == statistics


def test_a_stem_for_one_channel_sees_grey_as_the_three_saw_it():
    trained = random_encoder(num_classes=0).eval()
    encoder = EfficientNet(in_channels=1, num_classes=0).eval()
    mean, std = load_weights(encoder, checkpoint(trained, "lukemelas"))
    assert mean == pytest.approx((0.449,)) and std == pytest.approx((0.226,))
    grey = torch.randn(1, 1, 32, 32)
    torch.testing.assert_close(encoder.stem(grey), trained.stem(grey.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize("channels", [2, 4, 7])
def test_a_stem_for_other_channels_repeats_red_green_and_blue(channels):
    weight = torch.rand(8, 3, 3, 3)
    adapted = adapt_stem(weight, channels)
    for i in range(channels):
        torch.testing.assert_close(adapted[:, i], weight[:, i % 3] * 3 / channels)
    encoder = EfficientNet(in_channels=channels, num_classes=0).eval()
    mean, std = load_weights(encoder, checkpoint(EfficientNet(num_classes=0), "lukemelas"))
    assert mean == (IMAGENET[0] * 3)[:channels] and std == (IMAGENET[1] * 3)[:channels]
    assert torch.isfinite(encoder.features(torch.rand(1, channels, 32, 32))[-1]).all()


def test_the_head_of_a_checkpoint_is_left_where_there_is_none():
    trained, encoder = random_encoder(), EfficientNet(num_classes=0)
    state = checkpoint(trained, "torchvision")
    load_weights(encoder, state)
    headless = {key: value for key, value in state.items()
                if not key.startswith(("features.8", "classifier"))}
    load_weights(encoder, headless)
    assert torch.equal(encoder.stem[0].weight, trained.stem[0].weight)
    assert "features.8.0.weight is missing" in refusal(EfficientNet(), headless)


def test_weights_from_before_batches_were_counted_load_too():
    trained, encoder = random_encoder(), EfficientNet()
    state = {key: value for key, value in checkpoint(trained, "lukemelas").items()
             if not key.endswith("num_batches_tracked")}
    load_weights(encoder, state)
    assert torch.equal(encoder.head[6].bias, trained.head[6].bias)
    assert encoder.stem[1].num_batches_tracked == 0


def test_what_is_missing_left_over_or_of_the_wrong_shape_is_named_and_nothing_loaded():
    state = checkpoint(random_encoder(), "torchvision")
    weight = state.pop("features.1.0.block.0.1.running_var")
    state["features.1.0.block.0.1.weight"] = torch.ones(5)
    state["features.9.bias"] = weight
    state["classifier.1.weight"] = state["classifier.1.weight"][:10]
    text = refusal(EfficientNet(), state)
    assert "features.1.0.block.0.1.running_var is missing" in text
    assert "features.1.0.block.0.1.weight is (5,), not (32,)" in text
    assert "classifier.1.weight is (10, 1280), not (1000, 1280)" in text and "1 more" in text
    del state["features.9.bias"]
    assert "more" not in refusal(EfficientNet(), state)
    state = checkpoint(random_encoder(), "torchvision")
    assert "features.9.bias is left over" in refusal(
        EfficientNet(), {**state, "features.9.bias": weight})
    for key in ("features.0.1.weight", "features.1.0.block.0.0.weight"):  # also of a depthwise one
        del state[key]
        assert f"{key} is missing" in refusal(EfficientNet(), state)


@pytest.mark.parametrize("spoil", [
    lambda w: w.to("meta"), lambda w: w.to_sparse(), lambda w: w * torch.nan,
    lambda w: w.to(torch.complex64)])
def test_tensors_without_finite_numbers_are_refused_before_any_is_loaded(spoil):
    for key in ("features.0.0.weight", "features.7.0.block.0.0.weight"):
        state = checkpoint(random_encoder(num_classes=0), "torchvision")
        state[key] = spoil(state[key])
        assert f"{key} holds no finite numbers" in refusal(untouched(), state)


def test_weights_rounded_to_integers_are_refused():
    state = checkpoint(random_encoder(), "torchvision")
    state["features.8.1.bias"] = state["features.8.1.bias"].to(torch.int8)
    assert refusal(EfficientNet(), state) == (
        "state dict: does not fit efficientnet-b0: features.8.1.bias is torch.int8, not "
        "torch.float32")


def test_half_precision_stems_are_adapted_in_full():
    state = checkpoint(random_encoder(num_classes=0), "torchvision")
    encoder = EfficientNet(in_channels=1, num_classes=0)
    half = state["features.0.0.weight"].half()
    load_weights(encoder, {**state, "features.0.0.weight": half})
    torch.testing.assert_close(encoder.stem[0].weight.data, half.float().sum(1, keepdim=True))


def test_each_size_is_told_from_the_others(on_meta):
    for name in SCALES:
        encoder = on_meta(name, num_classes=0)
        family = "lite" if "lite" in name else "torchvision"
        modules = names(encoder, family)
        state = {f"{modules[key.rsplit('.', 1)[0]]}.{key}": value
                 for key, value in encoder.state_dict().items()}
        assert tell_size(state) == name
    assert tell_size({"weight": torch.ones(3)}) is None
