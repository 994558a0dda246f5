"""# Checkpoints

A checkpoint holds everything that a prediction needs, so nothing can be forgotten or mixed up: the
network's arguments (mean and standard deviation among them) and weights, the scale it saw and the
size of a pixel before scaling (micrometres, or None where the slides did not tell), the tile it
trained on, the threshold, the value that is white in 16-bit slides, or None, and the class that the
network finds, or None. It holds tensors, numbers and strings only, and is loaded with
`weights_only=True`: a file from a stranger cannot run code.
"""

import pickle
from pathlib import Path

import torch
from torch import Tensor

from ..data.files import atomic
from ..pretrained import without_prefixes
from ..unet import UNet


def save_model(path: str | Path, network: dict, state: dict, *, scale: int, tile: int,
               threshold: float, microns: float | None = None, white: int | None = None,
               label: str | None = None) -> None:
    """Writes a checkpoint: `network` are UNet's arguments, `state` its state dict, `white` is the
    value that is white in 16-bit slides, or None, and `label` the class that is found, or None."""
    save_progress(path, network=network, state=state, scale=scale, tile=tile, threshold=threshold,
                  microns=microns, white=white, label=label)


def save_progress(path: str | Path, **parts) -> None:
    """Writes tensors, numbers, strings, and lists and dicts of them."""
    with atomic(path) as temporary:
        try:
            torch.save(parts, temporary)
        except RuntimeError as error:  # what torch makes of a full disk
            raise OSError(f"{path}: cannot be written: {' '.join(str(error).split())[:80]}")


def load_progress(path: str | Path) -> dict | None:
    """What `save_progress` wrote, None where it wrote nothing. ValueError names a damaged file."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        if getattr(error, "filename", None):  # it cannot be opened; torch's own errors have no name
            raise
        raise ValueError(f"{path}: is damaged: delete the folder and start the fold again")


def put_back(path: Path, kept: dict, areas: Tensor, length: int) -> dict | None:
    """Gives what is `kept` (name: network, optimiser ...) the states that training saved there;
    returns the rest of it, None where there is nothing. ValueError where it was trained on other
    tiles: `areas` and `length` (steps an epoch) tell."""
    before = load_progress(path)
    if before is None:
        return None
    if not torch.equal(before["areas"], areas) or before["length"] != length:
        raise ValueError(f"{path}: was trained on other tiles: the data have changed since: give "
                         "another --out")
    for name, part in kept.items():
        state = before.pop(name)
        if state:  # a scaler that was off has nothing to say
            part.load_state_dict(state)
    return before


def load_model(path: str | Path, device: str | torch.device = "cpu") -> tuple[UNet, dict]:
    """The network of a checkpoint, in eval mode, and its {scale, tile, threshold, microns, white,
    label}, the last three None where it does not tell. Takes prefixes of wrappers (`module.`,
    `_orig_mod.`) off the state. ValueError names a file that is missing or is no checkpoint of this
    project."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file: --model takes the model.pt of a run")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        net = UNet(**checkpoint.pop("network"))
        channels, classes = net.mean.numel(), net.head.out_channels
        if (channels, classes) != (3, 1):  # all that runs a network counts on it
            raise ValueError(f"its network is for {channels} channels and {classes} classes, not 3 "
                             "and 1")
        for name in ("mean", "std"):
            values = getattr(net, name).flatten()
            if not (values.min() >= 0 and values.max() <= 1 and (name == "mean" or values.all())):
                raise ValueError(f"its {name} is not one of pixels in [0, 1]: {values.tolist()}")
        state = without_prefixes(checkpoint.pop("state"))
        net.load_state_dict(state)
        facts = {name: checkpoint[name] for name in ("scale", "tile", "threshold")}
        facts |= {name: checkpoint.get(name) for name in ("microns", "white", "label")}
        check_facts(facts)
        for name, value in net.state_dict().items():
            cast = value.is_floating_point() and not state[name].is_floating_point()
            if cast or not value.isfinite().all():
                raise ValueError(f"it holds weights that are not finite or not floats: {name}")
    except Exception as error:  # torch, zip and pickle have many
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"{path}: is no minseg checkpoint: --model takes the model.pt of a run "
                         f"({type(error).__name__}: {reason})")
    return net.eval().to(device), facts


def check_facts(facts: dict) -> None:
    """ValueError says which of a checkpoint's facts are of a wrong type or out of range."""
    def count(value):
        return type(value) is int and value >= 1  # True is no count

    def number(value, highest):
        return type(value) in (int, float) and 0 <= value <= highest

    right = {"scale": count, "tile": count, "threshold": lambda value: number(value, 1),
             "microns": lambda value: value is None or (number(value, 1e6) and value > 0),
             "white": lambda value: value is None or count(value),
             "label": lambda value: value is None or type(value) is str}
    wrong = {name: value for name, value in facts.items() if not right[name](value)}
    if wrong:
        raise ValueError(f"it holds {wrong}")
