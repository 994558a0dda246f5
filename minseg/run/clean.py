"""# Deleting tiles that no run uses any more

    python -m minseg.run.clean runs

Slides are cut into `runs/tiles`, and every run in `runs` with the same settings reads them there. A
run uses its tiles until all its folds are complete. All other tiles can go: if a later run needs
them, `train.py` cuts them again. Whoever wants no more folds of a run deletes its folder first.

When an image or its mask has changed and is cut again, `train.py` itself deletes its old tiles.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path

from ..files.atomic import lock
from .report import Parser
from .tiles import CutSlide

NEW = 3600  # seconds: younger tiles may belong to a run that has not written its config.json yet


def used_tiles(runs: Path) -> set[str]:
    """The names of the files of tiles that the unfinished runs in a folder use. ValueError if one
    of them does not say which."""
    used: set[str] = set()
    for config in runs.glob("*/config.json"):
        if (config.parent / "summary.json").exists():
            continue
        try:
            used |= set(json.loads(config.read_text(encoding="utf-8"))["tiles"])
        except (ValueError, KeyError):
            raise ValueError(f"{config}: does not say which tiles the run uses: finish the run, or "
                             "delete its folder")
    return used


def clean(runs: Path) -> list[Path]:
    """Deletes the tiles in `runs`/tiles that no unfinished run uses, and returns their paths."""
    folder, used = runs / "tiles", used_tiles(runs)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder: name the folder that holds the runs")
    unused = [path for path in sorted(folder.glob("*.tiles")) if path.name not in used
              and time.time() - path.stat().st_mtime > NEW]
    for path in unused:
        path.with_suffix(".json").unlink(missing_ok=True)  # first, because it says that they exist
        path.unlink()
    return unused


def delete_superseded(cache: Path, slides: Sequence[CutSlide]) -> None:
    """Deletes the tiles of images that were cut again, because they or their masks had changed.
    `slides`: what `minseg.run.tiles.cut` returned. Tiles that a process is training on stay."""
    current = {slide.file for slide in slides}
    sources = {json.dumps(slide.source) for slide in slides}
    ids = {slide.source[0] for slide in slides}
    old = []
    for path in cache.glob("*.json"):
        if path.stem.rpartition("-")[0] in ids and f"{path.stem}.tiles" not in current:
            try:
                source = json.loads(path.read_text()).get("source")
            except (OSError, ValueError):  # another process was first; it is not one of ours
                continue
            old += [path] if json.dumps(source) in sources else []
    used = {name for run in cache.parent.glob("*/config.json") if old and in_training(run.parent)
            for name in json.loads(run.read_text()).get("tiles", [])}
    for path in old:
        if f"{path.stem}.tiles" not in used:
            path.unlink(missing_ok=True)  # first, because it says that the tiles exist
            path.with_suffix(".tiles").unlink(missing_ok=True)


def in_training(run: Path) -> bool:
    """Whether a process is training a fold of a run, or may be doing so."""
    for path in run.glob("fold*/.lock"):
        with open(path, "r+b") as file:
            if not lock(file):
                return True
    return False


def main(argv: list[str] | None = None) -> None:
    """Cleans the folder that the command line names."""
    parser = Parser(prog="clean", description="Delete the tiles that no unfinished run uses.")
    parser.add_argument("runs", type=Path, help="the folder that holds runs and tiles/")
    runs = parser.parse_args(argv).runs
    try:
        size = sum(path.stat().st_size for path in runs.glob("tiles/*.tiles"))
        deleted = clean(runs)
    except (ValueError, OSError) as error:
        parser.error(error)
    size -= sum(path.stat().st_size for path in runs.glob("tiles/*.tiles"))
    print(f"{runs / 'tiles'}: {len(deleted)} files deleted, {size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
