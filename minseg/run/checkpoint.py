"""# Checkpoints

A checkpoint holds everything that a prediction needs, so nothing can be forgotten or mixed up: the
network's arguments (mean and standard deviation among them) and weights, the scale it saw and the
size of a pixel before scaling (micrometres, or None where the slides did not tell), the tile it
trained on, and the threshold. It holds tensors, numbers and strings only, and is loaded with
`weights_only=True`: a file from a stranger cannot run code.
"""

import pickle
from pathlib import Path

import torch
from torch import Tensor

from ..data.files import atomic
from ..unet import UNet


def save_model(path: str | Path, network: dict, state: dict, *, scale: int, tile: int,
               threshold: float, microns: float | None = None) -> None:
    """Writes a checkpoint: `network` are UNet's arguments, `state` its state dict."""
    save_progress(path, network=network, state=state, scale=scale, tile=tile, threshold=threshold,
                  microns=microns)


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
    """The network of a checkpoint, in eval mode, and its {scale, tile, threshold, microns}.
    ValueError names a file that is missing or is no checkpoint of this project."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file: --model takes the model.pt of a run")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        net = UNet(**checkpoint.pop("network"))
        net.load_state_dict(checkpoint.pop("state"))
        facts = {name: checkpoint[name] for name in ("scale", "tile", "threshold")}
        facts["microns"] = checkpoint.get("microns")
        if not (facts["scale"] >= 1 <= facts["tile"] and 0 <= facts["threshold"] <= 1):
            raise ValueError(f"it holds {facts}")
        if not all(value.isfinite().all() for value in net.state_dict().values()):
            raise ValueError("it holds weights that are not finite")
    except Exception as error:  # torch, zip and pickle have many
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"{path}: is no minseg checkpoint: --model takes the model.pt of a run "
                         f"({type(error).__name__}: {reason})")
    return net.eval().to(device), facts
