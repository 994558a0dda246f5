"""# Checkpoints

A checkpoint (`model.pt`) holds everything that a prediction needs, so nothing can be forgotten or
mixed up: the network's arguments (mean and standard deviation among them) and its weights; the
scale it was trained at, and the size of a pixel before scaling in micrometres; the tile it was
trained on; the threshold; the value of white in 16-bit slides; and the class that it finds. The
size, white and class are None where nobody stated them. It holds only tensors, numbers and strings,
and is loaded with `weights_only=True`, so a stranger's file cannot run code.
"""

import hashlib
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.files import atomic
from ..pretrained import without_prefixes
from ..unet import UNet
from .errors import warn


def save_model(path: str | Path, network: dict, state: dict, *, scale: int, tile: int,
               threshold: float, microns: float | None = None, white: int | None = None,
               label: str | None = None) -> None:
    """Writes a checkpoint. `network`: the arguments of `UNet`; `state`: its state dict; `microns`:
    the size of a pixel before scaling; `white`: the value of white in 16-bit slides; `label`: the
    class that is found."""
    save_progress(path, network=network, state=state, scale=scale, tile=tile, threshold=threshold,
                  microns=microns, white=white, label=label)


def save_progress(path: str | Path, **parts: Any) -> None:
    """Writes tensors, numbers, strings, and lists and dicts of them. OSError on a full disk."""
    with atomic(path) as temporary:
        try:
            torch.save(parts, temporary)
        except RuntimeError as error:  # this is what torch makes of a full disk
            raise OSError(f"{path}: cannot be written: {' '.join(str(error).split())[:80]}")


def load_progress(path: str | Path) -> dict | None:
    """What `save_progress` wrote; None where there is no file. ValueError names a damaged file."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        if getattr(error, "filename", None):  # it cannot be opened; torch's own errors have no name
            raise
        raise ValueError(f"{path}: is damaged: delete the folder and start the fold again")


def restore(path: Path, states: dict[str, Any], areas: Tensor, length: int) -> dict | None:
    """Loads into `states` (name: network, optimizer ...) what training saved under these names.
    Returns the rest of the file, or None where there is no file. ValueError where the run was
    trained on other tiles, as `areas` and `length` (steps per epoch) tell."""
    saved = load_progress(path)
    if saved is None:
        return None
    if not torch.equal(saved["areas"], areas) or saved["length"] != length:
        raise ValueError(f"{path}: was trained on other tiles: the data have changed since: give "
                         "another --out")
    for name, part in states.items():
        state = saved.pop(name)
        if state:  # the state of a scaler that was off is empty
            part.load_state_dict(state)
    return saved


def load_model(path: str | Path, device: str | torch.device = "cpu") -> tuple[UNet, dict]:
    """The network of a checkpoint, in eval mode, and its {scale, tile, threshold, microns, white,
    label}; the last three are None where the file does not tell. Prefixes of wrappers (`module.`,
    `_orig_mod.`) are taken off the names of weights. ValueError names a file that is missing or is
    not a checkpoint of this project."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file: --model takes the model.pt of a run")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        net = UNet(**checkpoint.pop("network"))
        channels, classes = net.mean.numel(), net.head.out_channels
        if (channels, classes) != (3, 1):  # infer.py reads colour slides and writes one mask
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
    except Exception as error:  # torch, zip and pickle raise many kinds
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"{path}: is no minseg checkpoint: --model takes the model.pt of a run "
                         f"({type(error).__name__}: {reason})")
    return net.eval().to(device), facts


@dataclass
class Ensemble:
    """Networks whose probabilities are averaged, and what they were trained for."""

    nets: list[UNet]
    hashes: list[str]  # of the checkpoint files: outputs record which networks made them
    scale: int  # slides are read this many times smaller
    tile: int  # pixels, after scaling
    threshold: float  # probability from which a pixel is positive
    microns: float | None  # size of a pixel before scaling
    white: int | None  # value of white in 16-bit slides
    label: str | None  # the class that is found


def load_ensemble(paths: Sequence[Path], *, tile: int | None = None,
                  threshold: float | None = None, white: int | None = None) -> Ensemble:
    """The networks of checkpoints that were trained for the same thing. `tile`, `threshold` and
    `white` take the place of what the checkpoints say (the threshold: the mean of theirs).
    ValueError names checkpoints that do not go together."""
    nets, facts = zip(*(load_model(path) for path in paths))
    path, first = paths[0], facts[0]
    labels = {fact["label"]: path for path, fact in zip(paths, facts) if fact["label"]}
    if len(labels) > 1:
        raise ValueError(", ".join(f"{path}: finds {label}" for label, path in labels.items())
                         + ": run them one by one")
    for other, fact in zip(paths, facts):
        if fact["scale"] != first["scale"]:
            raise ValueError(f"{other}: has scale {fact['scale']}, {path} has {first['scale']}: "
                             "run them one by one")
        if not white and fact["white"] != first["white"]:
            raise ValueError(f"{other}: was trained with --white {fact['white']}, {path} with "
                             f"{first['white']}: choose with --white")
        if not tile and fact["tile"] != first["tile"]:
            raise ValueError(f"{other}: has tile {fact['tile']}, {path} has {first['tile']}: "
                             "choose with --tile")
    if tile and tile != first["tile"]:
        warn(f"--tile {tile}: {path} was trained on tiles of {first['tile']}")
    if threshold is None:
        threshold = sum(fact["threshold"] for fact in facts) / len(facts)
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in paths]
    return Ensemble(list(nets), hashes, first["scale"], tile or first["tile"], threshold,
                    first["microns"], white or first["white"], next(iter(labels), None))


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
