"""# config.json: what a run was made from, and with

The folds of a run may be trained in several sessions, by several processes and machines, over
weeks. One score is only worth something if all of them had the same settings and the same data. So
config.json keeps the settings, and what was in each image, each mask and the encoder's initial
weights (`minseg.files.atomic.content`). Where these files lie does not matter; what is in them
does.
"""

import argparse
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..efficientnet import EfficientNet
from ..files.atomic import atomic, content
from ..files.masks import Item
from ..pretrained import load_weights
from ..processes import by_first
from .checkpoint import read_resume_file
from .errors import whole_hundredths
from .report import environment, some
from .tiles import CutSlide, Tiles, differences, made_from_now

# Options that decide where and how fast a run is trained, but not its result. config.json does not
# hold them, and they may differ from fold to fold and when a run is resumed.
NOT_IN_CONFIG = ("out", "fold", "device", "resume", "workers", "compile", "checkpoint_activations",
                 "command", "close")
# How train.py trains where no option says so: to be raised whenever that changes, so that folds of
# one run are never trained in two ways. Before it was counted, it was 1.
DEFAULTS = 2
# Entries of config.json that `check_settings` does not compare: places, which are free, how the
# last fold was started, and what `check_made_from` and `prepare` compare.
NOT_COMPARED = ("data", "tiles", "fold_of", "made_with", "made_from", "closed")


@dataclass(frozen=True)
class Data:
    """The images, their folds and tiles, and which folds to train."""

    items: list[Item]
    folds: list[int]  # the fold of each image
    tiles: Tiles
    chosen: Sequence[int]  # the folds to train
    slides: list[CutSlide]
    microns: float | None  # that of --microns, else of a pixel, if the slides state one
    config: dict  # the content of config.json

    def held_out(self, fold: int) -> list[Item]:
        """The images that are scored, not trained on, in a fold."""
        return [item for item, other in zip(self.items, self.folds) if other == fold]


def settings(args: argparse.Namespace, **settled: Any) -> dict:
    """The settings that all folds of a run share, for config.json. `settled` holds values that
    replace those of `args`: of options that were not given, or that named a file."""
    return {name: str(value.resolve()) if isinstance(value, Path) else value
            for name, value in {**vars(args), **settled, "defaults": DEFAULTS}.items()
            if name not in NOT_IN_CONFIG}


def check_settings(args: argparse.Namespace, config: dict) -> dict:
    """Returns the settings in the config.json of existing folds; {} if there are none. ValueError
    if they were trained with other settings. A run that is resumed may change its learning rate and
    its precision."""
    path = args.out / "config.json"
    if not any(args.out.glob("fold*")) or not path.exists():
        if any(args.out.glob("fold*/*.pt")):
            raise ValueError(f"{path}: is missing, so nobody can tell what the networks beside it "
                             "were made from: give another --out")
        return {}
    try:
        existing = json.loads(path.read_text())
    except ValueError:
        existing = {}
    if existing.setdefault("defaults", 1) != DEFAULTS:
        raise ValueError(f"{args.out}: holds a run of another version of minseg, which trains in "
                         "another way: go on with that one, or give another --out")
    config = json.loads(json.dumps(config))  # a tuple becomes a list, as in the file
    may_differ = {*NOT_COMPARED, *(("lr", "amp") if args.resume else ())}
    args.close = args.resume and args.epochs < existing.get("epochs", 0)
    if args.close:
        may_differ.add("epochs")
    if config["weights"] and existing.get("weights") and "made_from" in existing:
        may_differ.add("weights")  # the same content may lie elsewhere, see `check_made_from`
    names = [name for name in {**existing, **config}
             if existing.get(name) != config.get(name) and name not in may_differ]
    if names:
        raise ValueError(f"{args.out}: holds a run with other settings (--"
                         + ", --".join(name.replace("_", "-") for name in sorted(names))
                         + "): give another --out")
    return existing


def note_weights(args: argparse.Namespace) -> dict | None:
    """What the initial weights of the encoder are: the content of their file, and what follows from
    its name. ValueError if they do not fit the encoder."""
    if not args.weights:
        return None
    encoder = EfficientNet(args.encoder, num_classes=0)
    statistics = load_weights(encoder, args.weights)
    file = {} if args.weights == "imagenet" else content(args.weights)
    return {**file, "mean": list(statistics[0]), "std": list(statistics[1]),
            "padding": encoder.padding, "bn_eps": encoder.bn_eps}


def check_made_from(out: Path, images: dict, weights: dict | None, existing: dict) -> None:
    """ValueError names the files that are not what an existing run was made from: `images`, the
    result of `minseg.run.tiles.made_from` for each ID, and, unless they are None, `weights`, that
    of `note_weights`. `existing`: the run's config.json."""
    if "made_from" not in existing:
        if existing:
            print(f"{out / 'config.json'} is of an older version, and does not say what was in the "
                  "images, masks and weights: they are not compared")
        return
    before = existing["made_from"]
    names = differences(images, before["images"])
    if weights and {**weights, "modified": 0} != {**before["weights"], "modified": 0}:
        names.append("--weights")
    if names:
        raise ValueError(f"{out}: holds a run that was made from other files: changed since: "
                         f"{some(names)}: put back what was there, or give another --out")


def close_early(args: argparse.Namespace, chosen: Sequence[int],
                planned: float) -> dict[str, float]:
    """How many epochs each fold has done that is to be closed before all that were `planned` are
    done. ValueError if they are fewer than --epochs: another schedule would be another run."""
    closed = {}
    for fold in chosen:
        folder = args.out / f"fold{fold}"
        if (folder / "model.pt").exists():
            continue
        saved = read_resume_file(folder / "resume.pt")
        if saved is None or not saved["step"]:
            raise ValueError(f"{folder}: nothing is saved that --epochs {args.epochs:g} could "
                             f"close: go on with --epochs {planned:g}, or name one --fold")
        done = whole_hundredths(saved["step"] / saved["steps_per_epoch"])
        if args.epochs > done:
            raise ValueError(f"{folder}: --epochs {args.epochs:g}: {done:g} of {planned:g} epochs "
                             f"are done: --epochs {done:g} closes the fold, {planned:g} goes on")
        closed[folder.name] = done
    return closed


@by_first
def check_unchanged(out: Path, data: Data) -> None:
    """ValueError names images and masks that have changed since the program was started: a network
    must not be scored on other files than the one before it."""
    now = {item.id: made_from_now(item, slide) for item, slide in zip(data.items, data.slides)}
    if names := differences(now, data.config["made_from"]["images"]):
        raise ValueError(f"{out}: {some(names)} changed while the program was running: put back "
                         "what was there and go on with --resume, or give another --out")


@by_first
def begin_fold(args: argparse.Namespace, data: Data, fold: int) -> None:
    """Writes config.json into a run's folder, with the command and the environment of the fold that
    is about to be trained, and deletes scores that it will replace. ValueError if the data have
    changed meanwhile."""
    check_unchanged(args.out, data)
    made_with = {"command": shlex.join(["python", "train.py", *args.command]),
                 **environment(args.device)}
    with atomic(args.out / "config.json") as temporary:
        temporary.write_text(json.dumps({**data.config, "made_with": made_with}, indent=2) + "\n")
    for scores in (args.out / "summary.json", args.out / f"fold{fold}" / "score.json"):
        scores.unlink(missing_ok=True)
