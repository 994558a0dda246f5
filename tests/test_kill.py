"""Programs that are killed leave whole files only, and end as if nothing had happened."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from minseg import UNet, rle_encode
from minseg.run.checkpoint import save_model
from minseg.synthetic import synthetic_slide, write_slides

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="needs kill -9")]
ROOT = Path(__file__).resolve().parent.parent
KILLS = 10
CUT = """
import sys
from pathlib import Path
from minseg.files.datasets import find_slides
from minseg.run.tiles import cut

for item in find_slides(sys.argv[1]):
    cut(item, Path(sys.argv[2]), scale=2, tile=64, stride=32, margin=8)
"""


def begin(arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # sums in one order: the same bytes
    return subprocess.Popen([sys.executable, *map(str, arguments)], cwd=ROOT, env=environment,
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(arguments):
    """Runs to the end; returns the seconds that it took."""
    start = time.monotonic()
    process = begin(arguments)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0 and errors == "", errors
    return time.monotonic() - start


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def survives_kills(arguments, folder):
    """`arguments(place)` is a command that writes into the folder `place`. Kills it ten times at
    work, in a new place each time, and starts it again there."""
    seconds = finish(arguments(folder / "undisturbed"))
    idle = finish(arguments(folder / "undisturbed"))  # all is done: so long takes the beginning
    wanted = contents(folder / "undisturbed")
    assert not [name for name in wanted if name.startswith(".")]
    fractions = random.Random(0)
    killed, partial, halves = 0, 0, 0
    for kill in range(KILLS):
        place = folder / f"killed{kill}"
        process = begin(arguments(place))
        try:
            process.wait(0.9 * idle + fractions.random() * (seconds - 0.9 * idle))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        found = contents(place) if place.exists() else {}
        whole = {name for name in found if not name.startswith(".")}
        assert all(found[name] == wanted[name] for name in whole)
        partial += 0 < len(whole) < len(wanted)
        halves += len(whole) < len(found)

        finish(arguments(place))
        found = contents(place)
        assert found.keys() == wanted.keys()  # so nothing temporary is left
        assert all(found[name] == wanted[name] for name in wanted)
        shutil.rmtree(place)
    # it was hit at work, between files and inside one
    assert killed >= KILLS / 2 and partial >= 2 and halves >= 2, (killed, partial, halves)


def test_cutting_that_is_killed_leaves_whole_files_and_ends_the_same(tmp_path):
    data = tmp_path / "data"
    (data / "train").mkdir(parents=True)
    image, mask = (np.tile(a, [6, 5] + [1] * (a.ndim - 2)) for a in synthetic_slide(0, 600, 500))
    lines = ["id,encoding"]
    for i in range(3):
        tifffile.imwrite(data / "train" / f"slide{i}.tiff", image, compression="zlib",
                         tile=(256, 256))
        lines.append(f"slide{i},{rle_encode(np.roll(mask, 9 * i, 0))}")
    (data / "train.csv").write_text("\n".join(lines) + "\n")

    def arguments(place):
        place.mkdir(exist_ok=True)
        return ["-c", CUT, data, place]

    survives_kills(arguments, tmp_path)


def test_inference_that_is_killed_leaves_whole_files_and_ends_the_same(tmp_path):
    torch.manual_seed(0)
    net = UNet("efficientnet-lite0")
    with torch.no_grad():
        net.head.bias -= net.eval()(torch.rand(1, 3, 64, 64)).median()
    save_model(tmp_path / "model.pt", {"encoder": "efficientnet-lite0"}, net.state_dict(), scale=2,
               tile=128, threshold=0.5)
    image, slides = np.tile(synthetic_slide(0, 600, 500)[0], (2, 2, 1)), []
    for i in range(3):
        slides.append(tmp_path / f"slide{i}.tiff")
        tifffile.imwrite(slides[-1], np.roll(image, 100 * i, 1), compression="zlib",
                         tile=(256, 256))
    survives_kills(lambda place: ["infer.py", *slides, "--model", tmp_path / "model.pt", "--out",
                                  place, "--rle", place / "submission.csv"], tmp_path)
    for i in range(3):
        assert 0 < tifffile.imread(tmp_path / "undisturbed" / f"slide{i}.tiff").mean() < 255


TRAIN = ("import sys, train\nfrom minseg.run import loop\n"
         "loop.SAVE_EVERY = loop.SAVE_AFTER_EPOCH = 0\n"
         "train.main(sys.argv[1:])")


def test_training_that_is_killed_twenty_times_ends_with_the_same_weights(tmp_path):
    data = tmp_path / "slides"
    write_slides(data, 4, seed=1, height=300, width=256)

    def arguments(place):
        return ["-c", TRAIN, "--data", data, "--out", place, "--device", "cpu", "--resume",
                *"--encoder efficientnet-lite0 --scale 2 --tile 64 --epochs 2 --batch 4 "
                 "--negatives 1".split()]

    seconds = finish(arguments(tmp_path / "undisturbed"))
    wanted = torch.load(tmp_path / "undisturbed" / "fold0" / "model.pt", weights_only=True)
    times, killed, halves = random.Random(0), 0, 0
    place = tmp_path / "killed"
    while killed < 20:
        process = begin(arguments(place))
        try:
            process.wait(seconds * times.uniform(0.3, 0.9))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        halves += any(place.glob("fold0/.resume*"))
        done = (place / "fold0" / "model.pt").exists()
        if done or killed == 20:
            finish(arguments(place))
            found = torch.load(place / "fold0" / "model.pt", weights_only=True)
            assert found["threshold"] == wanted["threshold"]
            assert all(torch.equal(found["state"][key], value)
                       for key, value in wanted["state"].items())
            assert {path.name for path in place.rglob(".*")} == {".lock"}
            shutil.rmtree(place)
    assert halves >= 3  # at times while a checkpoint was being written
