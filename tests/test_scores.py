import argparse
import json
import re

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from minseg import rle_encode
from minseg.crossval import count_levels
from minseg.files.masks import Item
from minseg.files.slides import Slide
from minseg.run import scores
from minseg.run.scores import (
    count_saved,
    count_saved_objects,
    save_fold,
    save_log,
    save_score,
    score,
    summarize,
)


def masks():
    """Of three images; the last has nothing to find."""
    for i in range(3):
        mask = np.zeros((40, 50), np.uint8)
        mask[5:20, 5 : 5 + 10 * (2 - i)] = 1
        yield mask


@pytest.fixture(params=["files", "runs"])
def items(tmp_path, request):
    """Three images of two groups, their masks in files or as run-length code."""
    generator, found = np.random.default_rng(0), []
    for i, (group, mask) in enumerate(zip("aab", masks())):
        paths = [tmp_path / f"{kind}{i}.png" for kind in ("image", "mask")]
        Image.fromarray(generator.integers(0, 255, (40, 50, 3), np.uint8)).save(paths[0])
        Image.fromarray(mask * np.uint8(255)).save(paths[1])
        if request.param == "runs":
            paths[1] = tmp_path / "train.csv"
        runs = rle_encode(mask) if request.param == "runs" else None
        found.append(Item(f"id{i}", *paths, group, runs))
    return found


def predicted(folder, items, levels):
    """Writes probabilities that are `levels` on the mask and 0 beside it; returns the counts."""
    (folder / "probabilities").mkdir(parents=True)
    counts = []
    for item, level, mask in zip(items, levels, masks()):
        tifffile.imwrite(folder / "probabilities" / f"{item.id}.tiff", mask * np.uint8(level))
        counts.append(count_levels(torch.from_numpy(mask * np.uint8(level)),
                                   torch.from_numpy(mask)))
    return counts


def test_outlines_can_be_seen_in_the_preview_of_large_images(tmp_path):
    mask, paths = np.zeros((1000, 1000), np.uint8), [tmp_path / "i.png", tmp_path / "m.png"]
    mask[300:700, 300:700] = 255
    Image.fromarray(np.full((1000, 1000, 3), 128, np.uint8)).save(paths[0])
    Image.fromarray(mask).save(paths[1])
    (tmp_path / "probabilities").mkdir()
    tifffile.imwrite(tmp_path / "probabilities/id.tiff", mask)
    counts = count_levels(torch.from_numpy(mask), torch.from_numpy(mask // 255))
    save_fold(tmp_path, [Item("id", *paths, "a")], [counts])
    row = np.asarray(Image.open(tmp_path / "preview.png"))[240].astype(int)
    near = (abs(row - (230, 159, 0)) < 80).all(1)
    assert 3 <= near.sum() <= 6  # two lines, left and right


def test_a_single_fold_is_scored_at_a_threshold_of_one_half(items, tmp_path, capsys):
    folder = tmp_path / "fold0"
    save_fold(folder, items, predicted(folder, items, [100] * 3))
    found = json.loads((folder / "score.json").read_text())
    assert found["thresholds"] == [0.5] and found["pooled_dice"] == 0
    assert found["images"] == {"id0": 0, "id1": 0, "id2": 1}
    assert found["groups"] == {"a": 0, "b": 1} and found["worst_group"] == "a"
    assert found["best_threshold"] == pytest.approx(99.5 / 255, abs=1e-4)
    assert Image.open(folder / "preview.png").width > 400
    out = capsys.readouterr().out
    assert "the worst first" in out and out.index("0.0000  a") < out.index("1.0000  b")
    assert ("pooled Dice 0.0000; mean of 2 groups 0.5000, standard deviation 0.7071; threshold "
            "0.5\n") in out
    assert "not scored" not in out

    other = tmp_path / "fold1"
    save_fold(other, items[:1], predicted(other, items[:1], [200]))
    assert re.search(r"pooled Dice [01]\.\d{4}; threshold 0.5\n", capsys.readouterr().out)


def test_without_any_positive_pixel_the_best_threshold_is_one_half(items):
    count = count_levels(torch.full((40, 50), 200, dtype=torch.uint8), torch.zeros(40, 50))
    found = score([count], items[2:])
    assert found["best_threshold"] == 0.5


def test_the_preview_shows_the_worst_and_the_best_with_prediction_and_label(
        items, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(scores, "contact_sheet", lambda path, pictures, **_: shown.extend(pictures))
    save_fold(tmp_path / "f", items, predicted(tmp_path / "f", items, [100, 200, 0]))
    assert [caption for _, caption in shown] == [
        "id0: Dice 0.000", "id1: Dice 1.000", "id2: Dice 1.000"]
    colours = [set(map(tuple, np.asarray(picture).reshape(-1, 3).tolist()))
               for picture, _ in shown]
    blue, orange = (0, 114, 178), (230, 159, 0)
    assert blue in colours[0] and orange not in colours[0]  # found nothing
    assert blue in colours[1] and orange in colours[1]  # the label's line is the wider one
    assert blue not in colours[2] and orange not in colours[2]


def test_of_many_images_the_four_worst_and_the_four_best_are_shown(tmp_path, monkeypatch):
    items = []
    for i in range(9):
        Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(tmp_path / f"{i}.png")
        items.append(Item(f"id{i}", tmp_path / f"{i}.png", tmp_path / "train.csv", "a", "1 20"))
    (tmp_path / "probabilities").mkdir()
    counts, target = [], np.zeros((40, 50), np.uint8)
    target[:20, 0] = 1
    for i, item in enumerate(items):
        found = np.zeros((40, 50), np.uint8)
        found[:i, 0] = 255  # the first finds nothing, each next one more
        tifffile.imwrite(tmp_path / "probabilities" / f"{item.id}.tiff", found)
        counts.append(count_levels(torch.from_numpy(found), torch.from_numpy(target)))
    shown, widths = [], []
    monkeypatch.setattr(scores, "contact_sheet", lambda path, pictures, **_: shown.extend(pictures))
    monkeypatch.setattr(scores, "draw_outlines", lambda *_: widths.append(_[-1]))
    save_fold(tmp_path, items, counts)
    assert widths == [1] * 8
    assert [caption.split(":")[0] for _, caption in shown] == [
        f"id{i}" for i in (0, 1, 2, 3, 5, 6, 7, 8)]


def test_previews_of_large_images_are_reduced(tmp_path, monkeypatch):
    monkeypatch.setattr(scores, "PREVIEW", 20)
    image = np.random.default_rng(0).integers(0, 200, (37, 61, 3), np.uint8)
    mask = np.zeros((37, 61), np.uint8)
    mask[8:30, 12:50] = 1
    Image.fromarray(image).save(tmp_path / "a.png")
    item = Item("a", tmp_path / "a.png", tmp_path / "train.csv", "a", rle_encode(mask))
    (tmp_path / "probabilities").mkdir()
    tifffile.imwrite(tmp_path / "probabilities" / "a.tiff", mask * np.uint8(255))
    shown = []
    monkeypatch.setattr(scores, "contact_sheet", lambda path, pictures, **_: shown.extend(pictures))
    save_fold(tmp_path, [item], [count_levels(*[torch.from_numpy(mask)] * 2)])
    assert shown[0][0].size == (16, 10)  # 61 x 37, 4 times smaller


def test_a_summary_scores_each_fold_at_the_threshold_of_the_others(items, tmp_path):
    for fold, level in ((0, 100), (1, 200)):
        folder, some = tmp_path / f"fold{fold}", slice(fold, fold + 1)
        (folder / "probabilities").mkdir(parents=True)
        mask = list(masks())[fold]
        tifffile.imwrite(folder / "probabilities" / f"id{fold}.tiff", mask * np.uint8(level))
        save_fold(folder, items[some], [count_levels(torch.from_numpy(mask * np.uint8(level)),
                                                     torch.from_numpy(mask))])
        (folder / "model.pt").touch()
    summarize(tmp_path, items[:2], [0, 1])
    found = json.loads((tmp_path / "summary.json").read_text())
    # every threshold from 1 to 200 suits fold 1; the nearest to a half finds nothing in fold 0
    assert found["thresholds"][0] == pytest.approx(127.5 / 255, abs=1e-3)
    assert found["images"] == {"id0": 0, "id1": 1} and found["folds"] == [0, 1]


def test_a_summary_counts_every_row_of_a_high_image(tmp_path):
    generator, items = np.random.default_rng(0), []
    counts = []
    for fold in (0, 1):
        mask = (generator.random((700, 30)) < 0.3).astype(np.uint8)
        levels = generator.integers(0, 256, (700, 30), np.uint8)
        items.append(Item(f"id{fold}", tmp_path / "no.png", tmp_path / "train.csv", f"g{fold}",
                          rle_encode(mask)))
        (tmp_path / f"fold{fold}" / "probabilities").mkdir(parents=True)
        (tmp_path / f"fold{fold}" / "model.pt").touch()
        tifffile.imwrite(tmp_path / f"fold{fold}" / "probabilities" / f"id{fold}.tiff", levels)
        counts.append(count_levels(torch.from_numpy(levels), torch.from_numpy(mask)))
    summarize(tmp_path, items, [0, 1])
    found = json.loads((tmp_path / "summary.json").read_text())
    assert found.pop("objects")["missed"] > 5000
    assert found == score(counts, items, [0, 1])


def test_an_image_that_is_entirely_void_has_no_score_and_does_not_change_means():
    items = [Item(name, None, None, f"group {name}") for name in "abc"]
    nothing = torch.zeros(2, 256, dtype=torch.int64)
    half = count_levels(torch.tensor([200, 200], dtype=torch.uint8), torch.tensor([1, 0]))
    found = score([half, nothing, half], items, [0, 0, 1])
    assert found["images"] == {"a": 2 / 3, "b": None, "c": 2 / 3}
    assert set(found["groups"]) == {"group a", "group c"} and found["mean_dice"] == 2 / 3
    with pytest.raises(ValueError, match="no held-out image of fold 1 has a labelled pixel"):
        score([half, half, nothing], items, [0, 0, 1])
    with pytest.raises(ValueError, match="no held-out image of fold 0 has a labelled pixel"):
        score([nothing], items[:1])


def test_objects_are_counted_and_void_pixels_are_left_out(tmp_path, capsys):
    label = np.zeros((300, 60), np.uint8)
    label[10:30, 10:30] = label[240:290, 10:50] = label[100:120, 5:25] = 1
    levels = np.where(label == 1, 200, 0).astype(np.uint8)
    levels[100:120] = 0  # missed
    levels[150:160, 10:20] = 200  # a false positive
    label[200:230], levels[200:225, :] = 255, 200  # nobody knows
    levels[210, 0] = 0
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 60, 3), np.uint8)).save(
        tmp_path / "a.png")
    Image.fromarray(label).save(tmp_path / "mask.png")
    item = Item("a", tmp_path / "a.png", tmp_path / "mask.png", "a")
    (tmp_path / "probabilities").mkdir()
    tifffile.imwrite(tmp_path / "probabilities" / "a.tiff", levels)
    count = count_saved(tmp_path, item)
    assert count.sum(1).tolist() == [270 * 60, 400 + 2000 + 400]
    save_fold(tmp_path, [item], [count])
    found = json.loads((tmp_path / "score.json").read_text())
    counts = {"found": 2, "missed": 1, "invented": 1, "split": 0}
    assert found["objects"] == {**counts, "f1": 2 / 3, "images": {"a": counts}}
    assert found["images"]["a"] == 2 * 2400 / (2400 + 100 + 2800)
    assert ("objects: 2 found, 1 missed, false positives: 1; split in two or more: 0; F1 0.6667"
            in capsys.readouterr().out)


def test_objects_of_exactly_the_threshold_are_found(items, tmp_path):
    predicted(tmp_path, items, [200] * 3)
    for threshold, found in ((199.5, 1), (200, 1), (200.5, 0)):
        counts = count_saved_objects(tmp_path, items[0], threshold / 255)
        assert (counts["found"], counts["missed"]) == (found, 1 - found)


def test_held_out_slides_are_decoded_once_until_they_change(items, tmp_path, monkeypatch):
    read, calls = Slide.read, []
    monkeypatch.setattr(Slide, "read", lambda *given: calls.append(given) or read(*given))
    args = argparse.Namespace(scale=2, microns=None, tile=16, batch=2, device="cpu", amp=False)
    net, (item, *_) = torch.nn.Conv2d(3, 1, 1), items

    def predicted_again(decoded, **options):
        calls.clear()
        [counts] = scores.predict(net, [item], args, **options)
        assert bool(calls) == decoded
        return counts.tolist()

    first = predicted_again(True, overlap=0)
    assert predicted_again(False, overlap=0) == first
    predicted_again(True, overlap=0, folder=tmp_path)  # which is done once in a run
    args.scale = 3
    predicted_again(True, overlap=0)
    args.scale = 2
    Image.fromarray(255 - np.asarray(Image.open(item.image).convert("RGB"))).save(item.image)
    assert predicted_again(True, overlap=0) != first
    monkeypatch.setattr(scores, "KEPT", 0)
    args.scale = 4
    assert predicted_again(True, overlap=0) == predicted_again(True, overlap=0)


def test_saved_files_are_read_once_until_they_change(items, tmp_path, monkeypatch):
    predicted(tmp_path, items, [200] * 3)
    path, read = tmp_path / "probabilities" / f"{items[0].id}.tiff", scores.read_saved
    calls = []
    monkeypatch.setattr(scores, "read_saved", lambda *given: calls.append(given) or read(*given))
    for threshold, found in ((0.5, 1), (0.5, 1), (0.9, 0)):
        assert count_saved_objects(tmp_path, items[0], threshold)["found"] == found
        counts = count_saved(tmp_path, items[0])
    assert len(calls) == 2  # once for each threshold
    tifffile.imwrite(path, np.zeros_like(tifffile.imread(path)))
    assert count_saved_objects(tmp_path, items[0], 0.5)["missed"] == 1
    assert count_saved(tmp_path, items[0])[0, 0] == counts[0].sum() and len(calls) == 3


def test_a_summary_names_a_prediction_that_is_missing_or_does_not_fit(items, tmp_path):
    folder = tmp_path / "fold0"
    predicted(folder, items, [100] * 3)
    (folder / "model.pt").touch()
    tifffile.imwrite(folder / "probabilities" / "id1.tiff", np.zeros((39, 50), np.uint8))
    if items[1].runs is None:  # run-length code fits where it stays inside
        with pytest.raises(ValueError, match="id1.tiff: does not fit its mask .* another --out"):
            summarize(tmp_path, items, [0, 0, 0])
    (folder / "probabilities" / "id1.tiff").unlink()
    with pytest.raises(ValueError, match="id1.tiff: is missing: .* another --out"):
        summarize(tmp_path, items, [0, 0, 0])
    assert not (tmp_path / "summary.json").exists()


def test_there_is_no_summary_until_every_fold_is_complete(items, tmp_path, capsys):
    predicted(tmp_path / "fold0", items, [100] * 3)
    (tmp_path / "fold0" / "model.pt").touch()
    summarize(tmp_path, items, [0, 1, 2])
    assert "fold1, fold2 still to come" in capsys.readouterr().out
    assert not (tmp_path / "summary.json").exists()


def test_the_log_is_a_table_and_a_picture(tmp_path):
    rows = [{"epoch": i + 1, "stage": 1, "loss": 1 / (i + 1), "held_out_dice": i / 10}
            for i in range(3)]
    save_log(tmp_path, rows, "title")
    assert (tmp_path / "log.csv").read_text().splitlines()[0] == "epoch,stage,loss,held_out_dice"
    assert Image.open(tmp_path / "curves.png").width == 1200


def test_the_ten_worst_groups_are_printed_and_how_many_others_there_are(tmp_path, capsys):
    counts = {"found": 2, "missed": 1, "invented": 3, "split": 1}
    for number in (1, 2, 10, 11):
        groups = {f"g{i}": (19 - i) / 20 for i in range(number)}
        save_score(tmp_path / "score.json", {
            "groups": groups, "pooled_dice": 0.5, "mean_dice": 0.25, "sd_dice": 0.125,
            "thresholds": [0.5, 0.25, 0.5], "images": {"a": 0.5, "b": None, "c": None}},
            {"a": counts, "b": counts})
        lines = capsys.readouterr().out.splitlines()[2:]
        worst = [f"  {(19 - i) / 20:.4f}  g{i}" for i in reversed(range(number))]
        others = ["  ... and 1 more"] * (number == 11)
        spread = f"mean of {number} groups 0.2500, standard deviation 0.1250; " * (number > 1)
        assert lines == [*worst[:10], *others, f"pooled Dice 0.5000; {spread}threshold 0.5, 0.25",
                         "not scored, since they are entirely void: b, c",
                         "objects: 4 found, 2 missed, false positives: 6; split in two or more: 2; "
                         "F1 0.5000"]


@pytest.mark.parametrize("void", [0, 1, 400])
def test_the_legend_tells_what_is_hatched_only_where_something_is(tmp_path, monkeypatch, void):
    legends = []
    monkeypatch.setattr(scores, "contact_sheet", lambda *_, legend: legends.append(legend))
    mask = np.zeros((20, 40), np.uint8)
    mask[5:9, 5:9], mask.ravel()[-void or 800 :] = 1, 255
    mask[0, 0] = 1
    for name, pixels in (("a.png", np.zeros((20, 40, 3), np.uint8)), ("mask.png", mask)):
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "probabilities").mkdir()
    tifffile.imwrite(tmp_path / "probabilities" / "a.tiff", np.zeros((20, 40), np.uint8))
    item = Item("a", tmp_path / "a.png", tmp_path / "mask.png", "a")
    save_fold(tmp_path, [item], [count_saved(tmp_path, item)])
    assert ["hatched: not labelled" in legend for legend in legends] == [void > 0]
