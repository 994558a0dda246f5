"""What is checked before the first step, each check by itself."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from minseg.files.masks import Item
from minseg.run import prepare
from minseg.run.prepare import (
    check_folds,
    check_labels,
    check_stages,
    class_name,
    draw_synthetic_slides,
    leave_out,
    make_folds,
    make_sampler,
    mask_options,
    number_of_folds,
    read_ids,
    training_tiles,
)

SLIDE = SimpleNamespace(height=10, width=10, positive=5, void=0)


def changed(**change):
    return SimpleNamespace(**{**vars(SLIDE), **change})


def items(groups, **options):
    return [Item(f"a{i}", Path(f"i/a{i}.png"), Path(f"m/a{i}.png"), group, **options)
            for i, group in enumerate(groups)]


def tiles(*areas):
    """One tile of each image, with so many positive pixels."""
    return SimpleNamespace(mask_area=torch.tensor(areas),
                           places=[(i, 0, 0) for i in range(len(areas))])


@pytest.mark.parametrize("groups, number, fold, wanted", [
    ("ab", None, None, 2), ("abcde", None, None, 5), ("abcdef", None, 4, 5),
    ("abcdef", 6, 5, 6), ("aabb", 2, 1, 2), ("abc", 2, 0, 2)])
def test_there_are_five_folds_or_as_many_as_groups(groups, number, fold, wanted):
    assert number_of_folds(Path("d"), items(groups), number, fold) == wanted


@pytest.mark.parametrize("groups, number, fold, words", [
    ("aaa", None, None, "^d: is all one group"), ("abc", 1, None, "--folds 1: with 3 groups it is"),
    ("abc", 4, None, "--folds 4: with 3 groups it is 2 to 3"),
    ("abc", 3, 3, "--fold 3: with 3 folds it is 0 to 2"), ("abc", 3, -1, "--fold -1: with 3 fold")])
def test_folds_that_cannot_be_are_refused(groups, number, fold, words):
    with pytest.raises(ValueError, match=words):
        number_of_folds(Path("d"), items(groups), number, fold)


def test_masks_need_something_to_find_and_something_beside_it():
    half = changed(void=94)
    assert sorted(make_folds(items("ab"), [SLIDE, half], tiles(5, 5), 2, "--scale 1")) == [0, 1]
    full = changed(positive=100)
    assert sorted(make_folds(items("ab"), [full, SLIDE], tiles(100, 5), 2, "--scale 1")) == [0, 1]
    for masks, change, areas, words in (
            ({}, {"positive": 0}, (0, 0), "^m: no mask has a positive pixel"),
            ({"runs": ""}, {"positive": 0}, (0, 0), "^m/a0.png: no mask has"),
            ({}, {"void": 95}, (5, 5), "^m: every labelled pixel is positive"),
            ({}, {}, (0, 0), "^m: nothing positive is left at --scale 4")):
        with pytest.raises(ValueError, match=words):
            make_folds(items("ab", **masks), [changed(**change)] * 2, tiles(*areas), 2,
                       "--scale 4")


def test_a_fold_needs_something_to_learn_from_and_something_to_score():
    folder, nothing, void = Path("d"), changed(positive=0), changed(void=100)
    check_folds(folder, [SLIDE] * 3, tiles(5, 5, 0), [0, 1, 1], [0, 1], "")
    check_folds(folder, [SLIDE, SLIDE, void], tiles(5, 5, 0), [0, 1, 1], [0, 1], "")
    check_folds(folder, [SLIDE, changed(void=94)], tiles(5, 5), [0, 1], [0, 1], "")
    for facts, areas, chosen, words in (
            ([SLIDE, SLIDE], (5, 0), [0], "outside fold 0 nothing positive is left at --scale 2"),
            ([SLIDE, SLIDE, nothing], (5, 0, 0), [0], "outside fold 0 nothing positive is left at"),
            ([SLIDE, nothing], (5, 0), [0], "outside fold 0 no mask has a positive pixel"),
            ([SLIDE, nothing], (5, 0), [1, 0], "outside fold 0 no mask has a positive pixel"),
            ([SLIDE, void], (5, 5), [1], "all images of fold 1 are void: nothing to score")):
        with pytest.raises(ValueError, match=f"^d: {words}"):
            check_folds(folder, facts, tiles(*areas), [0, 1, 1][: len(facts)], chosen,
                        "--scale 2")


ARGS = {"batch": 4, "accumulate": 1, "negatives": "all", "seed": 3, "epochs": 1.0, "then": "bce"}


@pytest.mark.parametrize("epochs, then, refused", [
    (0.5, "bce", False), (0.49, "bce", False), (0.3, "bce", True), (0.3, None, False)])
def test_two_stages_need_a_step_each(epochs, then, refused):
    args = SimpleNamespace(**{**ARGS, "epochs": epochs, "then": then})  # of four steps an epoch
    work = tiles(*range(32)), [k % 2 for k in range(32)], [0, 1]
    if refused:
        with pytest.raises(ValueError, match="^--then bce: fold 0 is trained for one step only"):
            check_stages(args, *work)
    else:
        check_stages(args, *work)


def test_classes_are_named_only_where_there_are_polygons(tmp_path):
    drawn = Item("a", tmp_path / "a.png", tmp_path / "a.geojson", "g")
    check_labels([drawn, *items("g")])
    with pytest.raises(ValueError, match="a0.png: --label names classes of polygons, and a0 has"):
        check_labels(items("g", labels=("a",)))
    assert class_name(items("g")) is None and class_name(items("g", labels=("a", "b"))) == "a, b"
    assert class_name([*items("g", labels=("a",)), *items("g", runs="")]) is None
    square = '{{"type": "Feature", "properties": {{"classification": "{}"}}, "geometry": ' \
        '{{"type": "Polygon", "coordinates": [[[0, 0], [9, 0], [9, 9], [0, 0]]]}}}}'
    drawn.mask.write_text(f"[{', '.join(map(square.format, ('z', 'b', 'Region*', 'c')))}]")
    assert class_name([drawn]) == "b, c, z"
    assert class_name([Item("a", drawn.image, drawn.mask, "g", ignore=("b",))]) == "c, z"


@pytest.mark.parametrize("text, found", [
    ("a1\na0.png\n", ["a0", "a1"]), ("id\nm/a1.png\n\n", ["a1"]), ("ID,why\na1,dark\n", ["a1"]),
    ("", []), ("a0\na0\n", ["a0"])])
def test_ids_that_are_left_out_may_be_names_or_paths_of_files(tmp_path, text, found):
    (tmp_path / "list").write_text(text)
    assert read_ids(tmp_path / "list", items("ggg")) == found
    assert [item.id for item in leave_out(items("ggg"), found)] == [
        name for name in ("a0", "a1", "a2") if name not in found]
    assert len(leave_out(items("ggg"), None)) == 3


@pytest.mark.parametrize("data, words", [
    (None, "no such file: --exclude takes a list of IDs"),
    (b"a\xff\xfeb\x80", "is not a text file: --exclude takes a list of IDs"),
    (b"a9\nb\na8\nc\n", "names a8, a9, b: no image has that ID"),
    (b"a0\na1\n", "leaves no image: keep only the IDs")])
def test_a_list_that_names_no_image_or_all_is_refused(tmp_path, data, words):
    if data is not None:
        (tmp_path / "list").write_bytes(data)
    with pytest.raises(ValueError, match=words):
        read_ids(tmp_path / "list", items("gg"))


def test_synthetic_slides_are_drawn_once_also_by_two_programs_at_a_time(
        tmp_path, monkeypatch, capsys):
    calls = []

    def write(folder, count, **options):
        calls.append((folder, count, options))
        if len(calls) > 1:  # the other program was first, or the disk is full
            if len(calls) == 2:
                folder.mkdir()
            raise ValueError("exists already")
        folder.mkdir()

    monkeypatch.setattr(prepare, "write_slides", write)
    for name in ("runs/a", "runs/a", "b"):
        assert draw_synthetic_slides(tmp_path / name, seed=1) == tmp_path / name
    assert calls == [(tmp_path / "runs/a", 20, {"seed": 1}), (tmp_path / "b", 20, {"seed": 1})]
    assert capsys.readouterr().out.splitlines() == [
        f"drawing 20 synthetic slides in {tmp_path / name}" for name in ("runs/a", "b")]
    with pytest.raises(ValueError, match="exists already"):
        draw_synthetic_slides(tmp_path / "c")


def test_options_that_say_how_to_read_masks_are_passed_on():
    assert mask_options({}) == {"labels": (), "ignore": (), "white": None}
    assert mask_options({"label": ["a"], "ignore": ["b"], "white": 7, "tile": 1}) == {
        "labels": ["a"], "ignore": ["b"], "white": 7}


@pytest.mark.parametrize("count, batch, accumulate, steps, micro, each", [
    (11, 4, 1, 2, 1, 4), (12, 4, 1, 3, 1, 4), (3, 4, 2, 1, 1, 3), (11, 2, 2, 2, 2, 2),
    (11, 2, 9, 1, 5, 2), (1, 8, 8, 1, 1, 1)])
def test_an_epoch_has_as_many_whole_steps_as_its_tiles_fill(
        count, batch, accumulate, steps, micro, each):
    args = SimpleNamespace(**{**ARGS, "batch": batch, "accumulate": accumulate})
    train_on = training_tiles(tiles(*[5] * (count + 2)), [1, 0, 1] + [0] * (count - 1), 1)
    assert train_on.tolist() == [1, *range(3, count + 2)]
    numbers_of = make_sampler(args, tiles(*[5] * (count + 2)), train_on)
    drawn = [numbers_of(epoch) for epoch in (0, 0, 1)]
    assert all(each_epoch.shape == (steps, micro, each) for each_epoch in drawn)
    assert len(set(drawn[0].flatten().tolist())) == drawn[0].numel()
    assert set(drawn[0].flatten().tolist()) <= set(train_on.tolist())
    assert torch.equal(drawn[0], drawn[1])
    assert count == 1 or not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("negatives, share", [
    ("all", 0.2), (1.0, 0.5), (2.0, 1 / 3), ("balanced", 0.5)])
def test_an_epoch_draws_as_many_tiles_without_objects_as_asked_for(negatives, share):
    areas = torch.tensor(([0] * 4 + [7]) * 40)
    args = SimpleNamespace(**{**ARGS, "batch": 1, "negatives": negatives})
    drawn = make_sampler(args, tiles(*areas), torch.arange(200))(0).flatten()
    assert (areas[drawn] > 0).float().mean().item() == pytest.approx(share, abs=0.01)
    assert math.isclose(len(drawn), 40 / share, abs_tol=1)
