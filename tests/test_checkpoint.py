"""A checkpoint gives back the network and what it was trained for, and runs no code."""

import copy
import errno
import io
import os
import shutil
from pathlib import Path

import pytest
import torch
from torch import nan as NAN

from minseg import UNet
from minseg.run import checkpoint as checkpoint_file
from minseg.run.checkpoint import load_ensemble, load_model, save_model

NETWORK = {"encoder": "efficientnet-lite0", "decoder_channels": [16, 8, 8, 8, 4],
           "mean": [0.7, 0.5, 0.6], "std": [0.1, 0.2, 0.3]}
FACTS = {"scale": 2, "tile": 96, "threshold": 0.45, "microns": 0.65, "white": 4095,
         "label": "glomerulus", "turn": True, "resample": False}
UNKNOWN = {"microns": None, "white": None, "label": None, "turn": False, "resample": False}

pytestmark = pytest.mark.usefixtures("small_networks")


@pytest.fixture(scope="module")
def net(small_networks):
    torch.manual_seed(0)
    net = UNet(**NETWORK)
    for norm in net.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):  # statistics as training would leave them
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 2)
    return net.eval()


@pytest.fixture(scope="module")
def saved(net, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model.pt"
    save_model(path, NETWORK, net.state_dict(), **FACTS)
    return path


@pytest.fixture(scope="module")
def checkpoint(saved):
    """What the file holds: tests change copies of it."""
    return torch.load(saved, weights_only=True)


@pytest.fixture
def path(saved, tmp_path):
    """A copy of the file, for one test."""
    return Path(shutil.copy(saved, tmp_path))


def refused(path):
    """The error's text: one line that names the file and says what --model takes."""
    with pytest.raises(ValueError) as error:
        load_model(path)
    text = str(error.value)
    assert text.startswith(f"{path}: ") and "--model takes the model.pt of a run" in text
    assert "\n" not in text and len(text) < len(str(path)) + 250
    return text


def test_a_loaded_network_gives_the_same_logits(path, net):
    images = torch.rand(1, 3, 33, 40, generator=torch.Generator().manual_seed(1))
    loaded, _ = load_model(str(path))
    assert not loaded.training
    assert all(not part.training for part in loaded.modules())
    with torch.inference_mode():
        assert torch.equal(loaded(images), net(images))


def test_mean_and_deviation_come_back(path):
    loaded, _ = load_model(path)
    assert torch.equal(loaded.mean.flatten(), torch.tensor(NETWORK["mean"]))
    assert torch.equal(loaded.std.flatten(), torch.tensor(NETWORK["std"]))


def test_scale_tile_threshold_and_the_other_facts_come_back(path):
    assert load_model(path)[1] == FACTS


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_old_checkpoint_without_microns_white_or_label_has_none_and_does_not_turn(
        path, checkpoint, name):
    old = {key: value for key, value in checkpoint.items() if key != name}  # as they were before
    torch.save(old, path)
    assert load_model(path)[1] == {**FACTS, name: UNKNOWN[name]}


@pytest.mark.parametrize("wrap", [
    torch.nn.DataParallel, torch.compile, lambda net: torch.nn.DataParallel(torch.compile(net)),
    torch.optim.swa_utils.AveragedModel], ids=["parallel", "compiled", "both", "averaged"])
def test_the_state_of_a_wrapped_network_is_that_of_the_network(path, net, wrap):
    state = wrap(net).state_dict()
    assert all(key.startswith(("module.", "_orig_mod.", "n_averaged")) for key in state)
    save_model(path, NETWORK, state, **FACTS)
    loaded, facts = load_model(path)
    assert facts == FACTS
    assert loaded.state_dict().keys() == net.state_dict().keys()
    for key, value in net.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value.cpu()), key


def test_a_prefix_that_some_names_lack_is_refused(path, net):
    state = {("module." if "head" in key else "") + key: value
             for key, value in net.state_dict().items()}
    save_model(path, NETWORK, state, **FACTS)
    assert 'RuntimeError: Error(s) in loading state_dict for UNet: Missing key(s)' in refused(path)


def test_saving_again_replaces_the_checkpoint_and_leaves_no_other_file(path, net):
    save_model(path, NETWORK, net.state_dict(), scale=4, tile=64, threshold=0.3)
    assert load_model(path)[1] == {"scale": 4, "tile": 64, "threshold": 0.3, **UNKNOWN}
    assert [file.name for file in path.parent.iterdir()] == ["model.pt"]


def test_equal_weights_and_facts_give_equal_bytes_in_every_folder_and_process(
        path, net, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 12345)  # temporary files are named after it
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "network.pt"
    save_model(other, NETWORK, copy.deepcopy(net).state_dict(), **FACTS)
    assert other.read_bytes() == path.read_bytes()


def test_a_full_disk_is_an_error_that_names_the_file_and_the_old_checkpoint_stays(
        path, net, monkeypatch):
    class Full(io.FileIO):
        def write(self, data):
            if self.tell() + len(data) > 1000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    before = path.read_bytes()
    monkeypatch.setattr(checkpoint_file, "open", lambda file, mode: Full(file, mode),
                        raising=False)
    with pytest.raises(OSError, match="No space left on device") as error:
        save_model(path, NETWORK, net.state_dict(), **FACTS)
    assert error.value.errno == errno.ENOSPC and error.value.filename == str(path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["model.pt"]


def test_saving_leaves_the_arguments_as_they_were(tmp_path, net):
    network, state = dict(NETWORK), net.state_dict()
    names = list(state)
    save_model(tmp_path / "model.pt", network, state, **FACTS)
    load_model(tmp_path / "model.pt")
    assert network == NETWORK and list(state) == names


class Trap:
    """Unpickling it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_checkpoint_with_code_in_it_is_refused_and_does_not_run_it(
        tmp_path, path, checkpoint):
    sprung = tmp_path / "sprung"
    torch.save({**checkpoint, "more": Trap(sprung)}, path)
    refused(path)
    assert not sprung.exists()
    torch.load(path, weights_only=False)["more"].close()
    assert sprung.exists()  # so the trap works


def test_a_missing_file_is_refused(tmp_path):
    assert "no such file" in refused(tmp_path / "model.pt")
    assert "no such file" in refused(tmp_path)


@pytest.mark.parametrize("content", [b"", b"this is no checkpoint\nbut two lines\n", b"\x80\x02."])
def test_a_file_of_something_else_is_refused(tmp_path, content):
    (tmp_path / "model.pt").write_bytes(content)
    assert "is not a minseg checkpoint" in refused(tmp_path / "model.pt")


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert "is not a minseg checkpoint" in refused(path)


def test_a_bare_state_dict_or_tensor_or_list_is_refused(tmp_path, net):
    for thing in (net.state_dict(), torch.zeros(3), [1, 2]):
        torch.save(thing, tmp_path / "model.pt")
        assert "is not a minseg checkpoint" in refused(tmp_path / "model.pt")


@pytest.mark.parametrize("change, word", [
    ({"network": {"encoder": "resnet50"}}, "resnet50"),
    ({"network": {"colour": 3}}, "colour"),
    ({"network": {**NETWORK, "encoder": "efficientnet-b1"}}, "RuntimeError"),
    ({"network": {**NETWORK, "in_channels": 1, "mean": [0.5], "std": [0.5]}}, "1 channels and 1"),
    ({"network": {**NETWORK, "classes": 2}}, "3 channels and 2 classes, not 3 and 1"),
    ({"state": {}}, "RuntimeError"),
], ids=["unknown encoder", "unknown argument", "another encoder's weights", "one channel",
        "two classes", "no weights"])
def test_a_network_that_does_not_fit_is_refused(path, checkpoint, change, word):
    torch.save({**checkpoint, **change}, path)
    assert word in refused(path)


@pytest.mark.parametrize("name", ["network", "state", "scale", "tile", "threshold"])
def test_a_checkpoint_that_lacks_something_is_refused_with_its_name(path, checkpoint, name):
    torch.save({key: value for key, value in checkpoint.items() if key != name}, path)
    assert f"KeyError: '{name}'" in refused(path)


@pytest.mark.parametrize("name, value", [
    ("scale", 0), ("scale", 1.5), ("scale", True), ("scale", "x"), ("scale", None),
    ("tile", 0), ("tile", 64.0), ("tile", True), ("tile", None), ("tile", [64]),
    ("threshold", NAN), ("threshold", 2.0), ("threshold", -0.1), ("threshold", True),
    ("threshold", None), ("threshold", "0.5"), ("threshold", torch.tensor(0.5)),
    ("microns", 0), ("microns", -1.0), ("microns", NAN), ("microns", float("inf")),
    ("microns", "0.5"), ("microns", True),
    ("white", 0), ("white", 4095.0), ("white", True), ("white", "4095"), ("white", NAN),
    ("label", 3), ("label", ["nuclei"]), ("label", False), ("turn", None), ("turn", 1),
    ("resample", None), ("resample", 1)])
def test_a_fact_of_another_type_or_out_of_range_is_refused_with_its_value(
        path, checkpoint, name, value):
    torch.save({**checkpoint, name: value}, path)
    assert refused(path).endswith(f"(ValueError: it holds {{'{name}': {value!r}}})")


@pytest.mark.parametrize("name, value", [
    ("scale", 1), ("tile", 1), ("threshold", 0), ("threshold", 1), ("threshold", 1.0),
    ("microns", 1), ("microns", 0.25), ("white", 1), ("white", 65535), ("label", "")])
def test_facts_at_the_edge_are_read(path, checkpoint, name, value):
    torch.save({**checkpoint, name: value}, path)
    assert load_model(path)[1] == {**FACTS, name: value}


def test_a_checkpoint_without_mean_and_deviation_gets_the_defaults_of_unet(path, net):
    network = {name: NETWORK[name] for name in ("encoder", "decoder_channels")}
    save_model(path, network, net.state_dict(), **FACTS)
    loaded, _ = load_model(path)
    assert torch.equal(loaded.mean, UNet(**network).mean)
    assert torch.equal(loaded.std, UNet(**network).std)


@pytest.mark.parametrize("change", [
    {"mean": [0.7, NAN, 0.6]}, {"mean": [123.7, 116.3, 103.5]}, {"mean": [0.7, 0.5, -0.1]},
    {"mean": [0.7, 1.5, 0.6]},
    {"std": [0.1, 0.2, 0.0]}, {"std": [0.1, NAN, 0.3]}, {"std": [58.4, 57.1, 57.4]},
    {"std": [0.1, -0.2, 0.3]}])
def test_mean_and_deviation_that_are_not_those_of_pixels_in_0_1_are_refused(path, net, change):
    network = {**NETWORK, **change}
    save_model(path, network, net.state_dict(), **FACTS)
    name, = change
    assert f"(ValueError: its {name} is not one of pixels in [0, 1]: " in refused(path)


@pytest.mark.filterwarnings("ignore:Casting complex values")
@pytest.mark.parametrize("spoil", [
    lambda w: w * NAN, lambda w: w.to(torch.int8), lambda w: w.to(torch.complex64)])
def test_weights_that_are_not_finite_or_not_floats_are_refused(path, net, spoil):
    state = {**net.state_dict(), "head.weight": spoil(net.state_dict()["head.weight"])}
    save_model(path, NETWORK, state, **FACTS)
    assert refused(path).endswith(
        "(ValueError: it holds weights that are not finite or not floats: head.weight)")


def test_weights_of_half_precision_are_read_as_floats(path, net):
    state = {key: value.half() if value.is_floating_point() else value
             for key, value in net.state_dict().items()}
    save_model(path, NETWORK, state, **FACTS)
    for key, value in load_model(path)[0].state_dict().items():
        assert torch.equal(value, state[key].to(value.dtype)), key


@pytest.mark.parametrize("turns", [(True, True), (True, False), (False, False)])
def test_networks_together_turn_their_tiles_only_if_all_were_scored_so(net, tmp_path, turns):
    paths = [tmp_path / f"{k}.pt" for k in range(2)]
    for path, turn in zip(paths, turns):
        save_model(path, NETWORK, net.state_dict(), **{**FACTS, "turn": turn})
    assert load_ensemble(paths).turn is all(turns)
