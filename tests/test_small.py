"""lab/small.py: the recipe on small data sets."""

import json

import numpy as np
import pytest

from lab import small
from minseg.files.datasets import find_slides


def test_objects_at_the_border_lose_their_label_and_others_keep_it():
    mask = np.zeros((20, 30), np.uint8)
    mask[:5, 3:9] = mask[5:8, 25:] = mask[18:, 29:] = 255  # at the top, the right, and in a corner
    mask[10:13, 10:14] = 255
    wanted = np.zeros_like(mask)
    wanted[10:13, 10:14] = 255
    assert (small.without_border(mask) == wanted).all()
    assert mask[0, 3] == 255  # a copy


@pytest.mark.parametrize("name", ["one stain", "large"])
def test_a_set_has_five_images_in_groups_of_their_own(tmp_path, name, monkeypatch):
    monkeypatch.setitem(small.SETS, name, {**small.SETS[name], "size": 256})
    folder = small.make(name, tmp_path, None)
    items = find_slides(folder)
    assert len(items) == len({item.group for item in items}) == 5
    assert small.make(name, tmp_path, None) == folder and list(tmp_path.iterdir()) == [folder]


def lines_of(dice):
    """Lines of networks with the same Dice at each threshold. dice: contestant -> seed -> set ->
    images."""
    return {(name, who, 150, seed, fold): {"seconds": 10.0, "levels": {
                f"s{fold}": [[round(1000 * value), 1000]] * 63}}
            for who, seeds in dice.items() for seed, sets in enumerate(seeds)
            for name, images in sets.items() for fold, value in enumerate(images)}


def test_the_summary_has_the_mean_of_sets_and_their_worst_image_over_seeds():
    ours = [{"a": [.9, .5, .8, .8, .8], "b": [.9, .9, .9, .9, .4]},
            {"a": [.7, .7, .8, .8, .4], "b": [.9, .9, .9, .9, .6]}]
    theirs = [{"a": [.6] * 5, "b": [.5] * 5}] * 2
    lines = lines_of({"peers": theirs, "minseg": ours})
    args = small.parse(["--seeds", "2"])
    args.sets, args.contestants = ["a", "b"], [("peers", 150), ("minseg", 150)]
    peers, minseg = small.summarize(args, lines)["rows"]
    assert minseg["dice"] == pytest.approx((.76 + .8 + .68 + .84) / 4)
    # The lowest mean over seeds: image 1 of a with 0.6 (image 4 has 0.6, too), image 4 of b.
    assert minseg["worst"] == pytest.approx((.6 + .5) / 2)
    assert minseg["mean_difference"]["difference"] == pytest.approx(.77 - .55)
    assert minseg["worst_difference"]["difference"] == pytest.approx(.55 - .55)
    assert "mean_difference" not in peers


@pytest.mark.slow
@pytest.mark.usefixtures("small_networks")
def test_the_program_scores_each_image_of_each_set(tmp_path, monkeypatch):
    for name in small.PARTS["others"]:
        monkeypatch.setitem(small.SETS, name, {**small.SETS[name], "size": 700})
    command = ["--seeds", "1", "--steps", "1", "--contestants", "minseg", "--device", "cpu",
               "--weights", "none", "--batch", "2", "--out", str(tmp_path / "o"), "--docs",
               str(tmp_path)]
    small.main(command)  # without nuclei
    row, not_turned = json.loads((tmp_path / "results/small-others.json").read_text())["rows"]
    assert row["sets"].keys() == {"two stains", "large"} and row["steps"] == 1
    assert not_turned["contestant"] == small.NOT_TURNED
    assert len((tmp_path / "results/small-others.jsonl").read_text().splitlines()) == 10
    with pytest.raises(SystemExit):
        small.main([*command, "--lr", "1e-3"])


def test_published_lines_are_read_as_they_were_written(tmp_path):
    lines = lines_of({"minseg": [{"a": [.5] * 5}] * 2})
    path = tmp_path / "small.jsonl"
    path.write_text("".join(json.dumps({**line, **dict(zip(
        ("set", "contestant", "steps", "seed", "fold"), job))}) + "\n"
        for job, line in lines.items()))
    args, read = small.read_lines(path)
    assert read.keys() == lines.keys()
    assert (args.sets, args.contestants, args.seeds) == (["a"], [("minseg", 150)], 2)
