"""A checkpoint gives back the network and what it was trained for, and runs no code."""

import pytest
import torch

from minseg import UNet
from minseg.run.checkpoint import load_model, save_model

NETWORK = {"encoder": "efficientnet-lite0", "decoder_channels": [16, 8, 8, 8, 4],
           "mean": [0.7, 0.5, 0.6], "std": [0.1, 0.2, 0.3]}
FACTS = {"scale": 2, "tile": 96, "threshold": 0.45, "microns": 0.65}


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    net = UNet(**NETWORK)
    for norm in net.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):  # statistics as training would leave them
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 2)
    return net.eval()


@pytest.fixture
def path(tmp_path, net):
    save_model(tmp_path / "model.pt", NETWORK, net.state_dict(), **FACTS)
    return tmp_path / "model.pt"


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


def test_scale_tile_threshold_and_size_of_a_pixel_come_back(path):
    assert load_model(path)[1] == FACTS


def test_a_checkpoint_that_does_not_know_the_size_of_a_pixel_says_none(path):
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["microns"]  # as checkpoints were before
    torch.save(checkpoint, path)
    assert load_model(path)[1] == {**FACTS, "microns": None}


def test_saving_again_replaces_the_checkpoint_and_leaves_no_other_file(path, net):
    save_model(path, NETWORK, net.state_dict(), scale=4, tile=64, threshold=0.3)
    assert load_model(path)[1] == {"scale": 4, "tile": 64, "threshold": 0.3, "microns": None}
    assert [file.name for file in path.parent.iterdir()] == ["model.pt"]


def test_a_full_disk_is_an_error_that_names_the_file_and_the_old_checkpoint_stays(
        path, net, monkeypatch):
    def full(checkpoint, file):
        file.write_bytes(b"half of")
        raise RuntimeError("[enforce fail at inline_container.cc:668]\n. unexpected pos 64 vs 0")

    before = path.read_bytes()
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="model.pt: cannot be written: .*unexpected pos") as error:
        save_model(path, NETWORK, net.state_dict(), **FACTS)
    assert "\n" not in str(error.value)
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


def test_a_checkpoint_with_code_in_it_is_refused_and_does_not_run_it(tmp_path, path):
    sprung = tmp_path / "sprung"
    checkpoint = torch.load(path, weights_only=True)
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
    assert "is no minseg checkpoint" in refused(tmp_path / "model.pt")


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert "is no minseg checkpoint" in refused(path)


def test_a_bare_state_dict_or_tensor_or_list_is_refused(tmp_path, net):
    for thing in (net.state_dict(), torch.zeros(3), [1, 2]):
        torch.save(thing, tmp_path / "model.pt")
        assert "is no minseg checkpoint" in refused(tmp_path / "model.pt")


@pytest.mark.parametrize("change, word", [
    ({"network": {"encoder": "resnet50"}}, "resnet50"),
    ({"network": {"colour": 3}}, "colour"),
    ({"network": {**NETWORK, "encoder": "efficientnet-b1"}}, "RuntimeError"),
    ({"state": {}}, "RuntimeError"),
], ids=["unknown encoder", "unknown argument", "another encoder's weights", "no weights"])
def test_a_network_that_does_not_fit_is_refused(path, change, word):
    torch.save({**torch.load(path, weights_only=True), **change}, path)
    assert word in refused(path)


@pytest.mark.parametrize("name", ["network", "state", "scale", "tile", "threshold"])
def test_a_checkpoint_that_lacks_something_is_refused_with_its_name(path, name):
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint[name]
    torch.save(checkpoint, path)
    assert f"KeyError: '{name}'" in refused(path)


@pytest.mark.parametrize("facts", [dict(threshold=float("nan")), dict(threshold=2.0), dict(tile=0),
                                   dict(tile=None), dict(scale="x")])
def test_facts_out_of_range_are_refused_with_the_file(tmp_path, facts):
    path = tmp_path / "model.pt"
    save_model(path, {"encoder": "efficientnet-lite0"}, UNet("efficientnet-lite0").state_dict(),
               **{"scale": 1, "tile": 64, "threshold": 0.5, **facts})
    with pytest.raises(ValueError, match="model.pt: is no minseg checkpoint"):
        load_model(path)
