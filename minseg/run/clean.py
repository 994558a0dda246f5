"""# Deleting tiles that no run uses any more

    python -m minseg.run.clean runs

Slides are cut into `runs/tiles`, and every run in `runs` with the same settings reads them there. A
run uses its tiles until all its folds are complete. All other tiles can go: if a later run needs
them, `train.py` cuts them again. Whoever wants no more folds of a run deletes its folder first.
"""

import json
import time
from pathlib import Path

from .report import Parser

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
