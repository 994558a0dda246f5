"""# Checkpoints

A checkpoint (`model.pt`) holds everything that a prediction needs, so that nothing can be forgotten
or mixed up: the network's arguments (mean and standard deviation among them) and its weights; the
scale of its training images, and the size of a pixel before scaling in micrometres, or, with
`--microns`, scale 1 and the size that all slides are brought to; the side of its training tiles;
the threshold; the value of white in 16-bit slides; and the class that it finds. The size of a
pixel, white and the class are None if they are not known. A checkpoint holds only
tensors, numbers and strings, and is loaded with `weights_only=True`, so a file from a stranger
cannot run code.
"""

import hashlib
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files.atomic import atomic
from ..files.datasets import stated_sizes
from ..files.slides import Slide, open_slide
from ..pretrained import without_prefixes
from ..processes import by_first
from ..unet import UNet
from .errors import warn


@by_first
def save_model(path: str | Path, network: dict, state: dict, *, scale: int, tile: int,
               threshold: float, microns: float | None = None, white: int | None = None,
               label: str | None = None, turn: bool = False, resample: bool = False) -> None:
    """Writes a checkpoint. `network`: the arguments of `UNet`; `state`: its state dict; `microns`:
    the size of a pixel before scaling; `white`: the value of white in 16-bit slides; `label`: the
    class that the network finds; `turn`: whether it was scored with turned tiles (`minseg.tiling`);
    `resample`: whether slides are brought to `microns` (`minseg.files.resample`)."""
    write_checkpoint(path, network=network, state=state, scale=scale, tile=tile,
                     threshold=threshold, microns=microns, white=white, label=label, turn=turn,
                     resample=resample)


def write_checkpoint(path: str | Path, **entries: Any) -> None:
    """Writes a model.pt or a resume.pt: a dict of tensors, numbers, strings, and lists and dicts of
    them. Equal entries give equal bytes. OSError if the disk is full."""
    # Given a path, torch.save would put the name of the temporary file into the file.
    with atomic(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(entries, file)
        except RuntimeError as error:  # torch turns a full disk into this
            if isinstance(error.__context__, OSError):
                raise OSError(error.__context__.errno, error.__context__.strerror, str(path))
            raise


def read_resume_file(path: str | Path) -> dict | None:
    """The content of a resume.pt; None if there is no file. ValueError names a damaged file."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        if getattr(error, "filename", None):  # the file cannot be opened, but may be intact
            raise
        raise ValueError(f"{path}: is damaged: delete the folder and start the fold again")


def restore(path: Path, states: dict[str, Any], mask_area: Tensor,
            steps_per_epoch: int) -> dict | None:
    """Loads the states in a resume.pt into the objects of the same names in `states` (network,
    optimizer, ...). Returns the other entries of the file, or None if there is no file. ValueError
    if the run was trained on other tiles: with another `mask_area`, or other `steps_per_epoch`."""
    saved = read_resume_file(path)
    if saved is None:
        return None
    if (not torch.equal(saved["mask_area"], mask_area)
            or saved["steps_per_epoch"] != steps_per_epoch):
        raise ValueError(f"{path}: was trained on other tiles: the data have changed since: give "
                         "another --out")
    for name, restored in states.items():
        state = saved.pop(name)
        if state:  # the state of a disabled loss scaler is empty
            restored.load_state_dict(state)
    return saved


def load_model(path: str | Path, device: str | torch.device = "cpu") -> tuple[UNet, dict]:
    """The network of a checkpoint, in eval mode, and its {scale, tile, threshold, microns, white,
    label, turn, resample}. Where the file does not state them, microns, white and label are None;
    `turn`, whether tiles are turned (`minseg.tiling`), and `resample`, whether slides are brought
    to `microns`, are False. The prefixes that wrappers add
    to the names of weights (`module.`, `_orig_mod.`) are removed. ValueError names a file that is
    missing or is not a checkpoint of this project."""
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
        facts |= {name: checkpoint.get(name, False) for name in ("turn", "resample")}
        check_facts(facts)
        for name, value in net.state_dict().items():
            cast = value.is_floating_point() and not state[name].is_floating_point()
            if cast or not value.isfinite().all():
                raise ValueError(f"it holds weights that are not finite or not floats: {name}")
    except Exception as error:  # torch, zipfile and pickle raise errors of many kinds
        reason = " ".join(str(error).split())[:120]
        detail = f"{type(error).__name__}: {reason}"
        if isinstance(error, (pickle.UnpicklingError, EOFError)):
            detail = "it was not written by torch.save, or holds more than tensors and numbers"
        raise ValueError(f"{path}: is not a minseg checkpoint: --model takes the model.pt of a run "
                         f"({detail})")
    return net.eval().to(device), facts


@dataclass
class Ensemble:
    """Networks whose probabilities are averaged, and the settings that they share."""

    nets: list[UNet]
    hashes: list[str]  # of the checkpoint files; outputs record which networks made them
    scale: int  # slides are read this many times smaller
    tile: int  # pixels, after scaling
    threshold: float  # probability from which a pixel is positive
    microns: float | None  # size of a pixel before scaling, see `resample`; 0 if they disagree
    white: int | None  # value of white in 16-bit slides
    label: str | None  # the class that the networks find
    turn: bool = False  # whether all of them were scored with turned tiles (see `minseg.tiling`)
    resample: bool = False  # whether slides are brought to `microns`, instead of scaled
    sizes: dict[Path, float] = field(default_factory=dict)  # of pixels, which slides.csv states

    def open(self, path: str | Path) -> Slide:
        """A slide as the networks want it."""
        return open_slide(path, self.scale, self.white, pixel_size=self.sizes.get(Path(path)),
                          microns=self.microns if self.resample else None)


def load_ensemble(paths: Sequence[str | Path], *, tile: int | None = None,
                  threshold: float | None = None, white: int | None = None,
                  slides: Sequence[Path] = ()) -> Ensemble:
    """The networks of one or more checkpoints, which must agree in class, scale, tile and white. A
    warning names sizes of a pixel that do not. `tile`, `threshold` and `white` override the
    checkpoints' own. The default threshold is the mean of theirs. `slides` are those to predict,
    whose slides.csv is read. ValueError names checkpoints that do not agree."""
    files = list(map(Path, paths))
    nets, facts = zip(*(load_model(path) for path in files))
    path, first = files[0], facts[0]
    labels = {fact["label"]: path for path, fact in zip(files, facts) if fact["label"]}
    if len(labels) > 1:
        raise ValueError(", ".join(f"{path}: finds {label}" for label, path in labels.items())
                         + ": run them one by one")
    for other, fact in zip(files, facts):
        if fact["scale"] != first["scale"]:
            raise ValueError(f"{other}: has scale {fact['scale']}, {path} has {first['scale']}: "
                             "run them one by one")
        if fact["resample"] != first["resample"] or (
                fact["resample"] and fact["microns"] != first["microns"]):
            raise ValueError(" and ".join(
                f"{each} was trained with " + (f"--microns {of['microns']:g}" if of["resample"]
                                               else f"--scale {of['scale']}")
                for each, of in ((other, fact), (path, first))) + ": run them one by one")
        if not white and fact["white"] != first["white"]:
            raise ValueError("{}: was trained with --white {}, {} with {}: choose with --white"
                             .format(other, fact["white"] or "not given", path,
                                     first["white"] or "none"))
        if not tile and fact["tile"] != first["tile"]:
            raise ValueError(f"{other}: has tile {fact['tile']}, {path} has {first['tile']}: "
                             "choose with --tile")
    for path, fact in zip(files, facts):
        if tile and tile != fact["tile"]:
            warn(f"--tile {tile}: {path} was trained on tiles of {fact['tile']}")
            break
    sizes = {fact["microns"]: path for path, fact in zip(files, facts) if fact["microns"]}
    agree = not sizes or max(sizes) <= 1.1 * min(sizes)
    if not agree:
        warn(", ".join(f"{path} was trained at {size:.3g} µm per pixel"
                       for size, path in sorted(sizes.items()))
             + ": no slide suits them all: better run them one by one")
    if threshold is None:
        threshold = sum(fact["threshold"] for fact in facts) / len(facts)
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in files]
    return Ensemble(list(nets), hashes, first["scale"], tile or first["tile"], threshold,
                    min(sizes, default=None) if agree else 0, white or first["white"],
                    min(labels, default=None), all(fact["turn"] for fact in facts),
                    first["resample"], stated_sizes(slides))


def check_facts(facts: dict) -> None:
    """ValueError lists those of a checkpoint's facts that are of a wrong type or out of range."""
    def count(value):
        return type(value) is int and value >= 1  # `True` is an int, too, but not a count

    def number(value, highest):
        return type(value) in (int, float) and 0 <= value <= highest

    is_valid = {"scale": count, "tile": count, "threshold": lambda value: number(value, 1),
                "microns": lambda value: value is None or (number(value, 1e6) and value > 0),
                "white": lambda value: value is None or count(value),
                "label": lambda value: value is None or type(value) is str,
                "turn": lambda value: type(value) is bool,
                "resample": lambda value: value is False or (value is True and facts["microns"])}
    invalid = {name: value for name, value in facts.items() if not is_valid[name](value)}
    if invalid:
        raise ValueError(f"it holds {invalid}")
