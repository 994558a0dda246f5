import csv
import io
import json
import logging
import os
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch.nn import functional as F

import infer
from minseg import UNet, predict_image, rle_decode, rle_encode
from minseg.files.polygons import Polygons, read_polygons
from minseg.files.slides import open_slide, shrink
from minseg.run import options, outputs
from minseg.run.checkpoint import load_ensemble, load_model, save_model
from minseg.synthetic import synthetic_slide

pytestmark = pytest.mark.usefixtures("small_networks")
NETWORK = {"encoder": "efficientnet-lite0", "decoder_channels": [16, 16, 8, 8, 8]}


@pytest.fixture(scope="module")
def model(small_networks, tmp_path_factory):
    """A network that finds what is dark, in smooth patches: any would do."""
    torch.manual_seed(0)
    net = UNet(**NETWORK)
    with torch.no_grad():
        logits = net.eval()(torch.rand(1, 3, 64, 64))
        net.head.bias -= logits.median()
    path = tmp_path_factory.mktemp("model") / "model.pt"
    save_model(path, NETWORK, net.state_dict(), scale=2, tile=64,
               threshold=0.5)
    return path


@pytest.fixture(scope="module")
def drawn_slides(tmp_path_factory):
    """Two slides that every test copies: files that other tests do not touch."""
    folder = tmp_path_factory.mktemp("slides")
    for i, size in enumerate([(301, 255), (128, 190)]):
        Image.fromarray(synthetic_slide(i, *size)[0]).save(folder / f"kidney{i}.png")
    return folder


@pytest.fixture
def slides(drawn_slides, tmp_path):
    return [shutil.copy(path, tmp_path) for path in map(str, sorted(drawn_slides.iterdir()))]


def rows_of(table):
    with open(table, newline="") as file:
        return list(csv.DictReader(file))


def test_mask_preview_and_csv_agree(model, slides, tmp_path):
    out, table = tmp_path / "out", tmp_path / "tables" / "submission.csv"
    infer.main([*slides, "--model", str(model), "--out", str(out), "--rle", str(table)])
    rows = rows_of(table)
    assert [row["id"] for row in rows] == ["kidney0", "kidney1"]
    for row, slide in zip(rows, slides):
        image = np.asarray(Image.open(slide))
        mask = tifffile.imread(out / f"{row['id']}.tiff")
        assert mask.shape == image.shape[:2] and mask.dtype == np.uint8
        assert set(np.unique(mask)) == {0, 255}
        np.testing.assert_array_equal(rle_decode(row["predicted"], *mask.shape), mask // 255)
        assert row["predicted"] == rle_encode(mask)
        preview = np.asarray(Image.open(out / f"{row['id']}.preview.png"))
        painted = (preview == (230, 159, 0)).all(2)
        assert preview.shape == image.shape and painted.any()
        assert (mask[painted] == 255).all()  # the outline lies on the mask
        assert (preview[~painted] == image[~painted]).all()
    assert not [p for p in out.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("turn", [False, True])
def test_the_mask_is_the_networks_blended_prediction_at_the_models_scale(
        model, slides, tmp_path, turn):
    net, _ = load_model(model)
    save_model(tmp_path / "model.pt", NETWORK, net.state_dict(), scale=2, tile=64, threshold=0.5,
               turn=turn)
    infer.main([slides[0], "--model", str(tmp_path / "model.pt"), "--out", str(tmp_path / "o"),
                "--overlap", "0.25", "--window", "hann", "--threshold", "0.45"])
    small = open_slide(slides[0], 2)
    small = small.read(0, 0, small.height, small.width)
    with torch.inference_mode():
        probability = predict_image(lambda t: net(t.float() / 255).sigmoid(), small, tile=64,
                                    stride=48, window="hann", turn=turn)[0]
    large = F.interpolate(probability[None, None], scale_factor=2, mode="bilinear")
    wanted = (large[0, 0, :301, :255] >= 0.45).numpy()
    assert (wanted == (tifffile.imread(tmp_path / "o" / "kidney0.tiff") > 0)).mean() > 0.999


@pytest.fixture(scope="module")
def models(small_networks, tmp_path_factory):
    """Three networks of different weights: two of one scale and tile, one of others."""
    folder, paths = tmp_path_factory.mktemp("models"), []
    for i, (scale, tile, threshold) in enumerate([(2, 64, 0.4), (2, 64, 0.7), (1, 32, 0.5)]):
        torch.manual_seed(i)
        net = UNet(**NETWORK)
        with torch.no_grad():
            net.head.bias -= net.eval()(torch.rand(1, 3, 64, 64)).median()
        paths.append(str(folder / f"model{i}.pt"))
        save_model(paths[-1], NETWORK, net.state_dict(), scale=scale,
                   tile=tile, threshold=threshold)
    return paths


def naive(models, slide, views):
    """Mean probability of the models over the views of each whole tile, enlarged."""
    small = open_slide(slide, 2)
    small = small.read(0, 0, small.height, small.width)
    nets = [load_model(model)[0] for model in models]

    def predict(tiles):
        answers = []
        for net in nets:
            for turn, flip in views:
                view = tiles.rot90(turn, (2, 3))
                answer = net((view.flip(2) if flip else view).float() / 255).sigmoid()
                answers.append((answer.flip(2) if flip else answer).rot90(-turn, (2, 3)))
        return torch.stack(answers).mean(0)

    with torch.inference_mode():
        probability = predict_image(predict, small, tile=64, stride=32)[0]
    large = F.interpolate(probability[None, None], scale_factor=2, mode="bilinear")
    return large[0, 0, :301, :255].numpy()


@pytest.mark.parametrize("tta", [False, True])
def test_checkpoints_are_averaged_over_all_views_and_cut_at_their_mean_threshold(
        models, slides, tmp_path, tta):
    infer.main([slides[0], "--model", *models[:2], "--out", str(tmp_path / "o"), "--probabilities",
                *["--tta"] * tta])
    views = [(turn, flip) for turn in range(4) for flip in (False, True)] if tta else [(0, False)]
    wanted = naive(models[:2], slides[0], views)
    written = tifffile.imread(tmp_path / "o" / "kidney0.probabilities.tiff")
    assert written.dtype == np.uint8
    np.testing.assert_allclose(written, wanted * 255, atol=0.6)
    mask = tifffile.imread(tmp_path / "o" / "kidney0.tiff") > 0
    assert (mask == (wanted >= (0.4 + 0.7) / 2)).mean() > 0.999
    assert (mask == (wanted >= 0.4)).mean() < 0.999  # so the mean of thresholds shows


@pytest.mark.parametrize("options, tiles", [
    ("--batch 8", 8), ("--batch 8 --tta", 1), ("--batch 20 --tta", 2), ("--batch 3 --tta", 1)])
def test_all_views_together_are_about_a_batch(
        model, slides, tmp_path, monkeypatch, options, tiles):
    def recording(*arguments, batch, **more):
        batches.append(batch)
        return predict_slide(*arguments, batch=batch, **more)

    batches, predict_slide = [], infer.predict_slide
    monkeypatch.setattr(infer, "predict_slide", recording)
    monkeypatch.setattr(infer, "predictor", lambda *a, **b: lambda tiles: tiles[:, :1] / 255)
    start(slides[1:], model, tmp_path / "o", *options.split())
    assert batches == [tiles]


def test_checkpoints_of_different_scale_or_tile_are_not_mixed_up(models, slides, tmp_path, capsys):
    usual = (slides[0], "--out", tmp_path / "o", "--model")
    line = fails(capsys, 2, *usual, models[0], models[2])
    assert "model2.pt: has scale 1" in line and "model0.pt has 2" in line
    net, facts = load_model(models[0])
    other = tmp_path / "other.pt"
    save_model(other, NETWORK, net.state_dict(), **{**facts, "tile": 96})
    assert "--tile" in fails(capsys, 2, *usual, models[0], other)
    infer.main([str(a) for a in (*usual, models[0], other, "--tile", "64")])
    assert (tmp_path / "o" / "kidney0.tiff").exists()


def test_no_slide_takes_the_name_of_anothers_probabilities(model, slides, tmp_path, capsys):
    shutil.copy(slides[0], tmp_path / "kidney0.probabilities.png")
    line = fails(capsys, 2, slides[0], tmp_path / "kidney0.probabilities.png", "--model", model,
                 "--out", tmp_path / "o", "--probabilities")
    assert "kidney0.probabilities.tiff" in line and not (tmp_path / "o").exists()


def fails(capsys, code, *arguments):
    capsys.readouterr()
    with pytest.raises(SystemExit) as error:
        infer.main([str(a) for a in arguments])
    assert error.value.code == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_bad_input_is_one_line_and_nothing_is_written(model, slides, tmp_path, capsys):
    out = tmp_path / "out"
    usual = ("--model", model, "--out", out)
    missing = ("--model", tmp_path / "no.pt", "--out", out)
    assert "no such file" in fails(capsys, 2, slides[0], *missing)
    (tmp_path / "text.pt").write_text("hello")
    assert "text.pt" in fails(capsys, 2, slides[0], "--model", tmp_path / "text.pt", "--out", out)
    line = fails(capsys, 2, slides[0], slides[0], *usual)
    assert "kidney0.tiff" in line and "would both write it" in line
    for option, value in (("overlap", "1"), ("tile", "0"), ("batch", "0"), ("threshold", "1.5")):
        line = fails(capsys, 2, slides[0], *usual, f"--{option}", value)
        assert f"--{option} {value}" in line
    assert "--device" in fails(capsys, 2, slides[0], *usual, "--device", "meta")
    nested = ("--model", model, "--out", tmp_path / "p" / "x", "--rle", tmp_path / "p")
    assert "another file" in fails(capsys, 2, slides[0], *nested)
    places = out, out / "kidney0.tiff", out / ".." / "out" / "kidney0.preview.png", slides[0]
    for place in places:
        assert "another file" in fails(capsys, 2, slides[0], *usual, "--rle", place)
    assert "--window" in fails(capsys, 2, slides[0], *usual, "--window", "bartlett")
    assert not out.exists()
    assert "gone.png" in fails(capsys, 2, tmp_path / "gone.png", *usual)
    assert list(out.iterdir()) == []


def test_each_bad_slide_is_one_line_and_the_others_finish(model, slides, tmp_path, capsys):
    strips = tmp_path / "truncated.tiff"
    tifffile.imwrite(strips, synthetic_slide(0, 300, 255)[0], compression="zlib", rowsperstrip=20)
    strips.write_bytes(strips.read_bytes()[:60_000])
    (tmp_path / "empty.tiff").write_bytes(b"")
    (tmp_path / "text.tiff").write_text("not a slide")
    (tmp_path / "half.png").write_bytes(Path(slides[0]).read_bytes()[:10_000])
    tifffile.imwrite(tmp_path / "five.tiff", np.zeros((90, 80, 5), np.uint8))
    names = ["truncated.tiff", "empty.tiff", "text.tiff", "half.png", "five.tiff", "gone.tiff"]
    bad = [tmp_path / name for name in names]
    out, table = tmp_path / "out", tmp_path / "submission.csv"
    with pytest.raises(SystemExit) as error:
        start([bad[0], slides[0], *bad[1:5], slides[1], bad[5]], model, out, "--rle", table)
    assert error.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6, lines
    assert all(f"{path}: " in line for path, line in zip(bad, lines)), lines
    assert {p.name for p in out.iterdir()} == {
        f"kidney{i}{end}" for i in range(2) for end in (".tiff", ".preview.png")}
    assert [row["id"] for row in rows_of(table)] == ["kidney0", "kidney1"]


def test_a_slide_that_needs_too_much_memory_is_one_line_and_the_others_finish(
        model, slides, tmp_path, capsys, monkeypatch):
    def segment(path, *rest):
        if path.name == "kidney0.png":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return segmented(path, *rest)

    segmented = infer.segment
    monkeypatch.setattr(infer, "segment", segment)
    monkeypatch.setattr(sys, "argv", ["somewhere/infer.py"])  # the program that the line names
    with pytest.raises(SystemExit) as error:
        infer.main([*slides, "--model", str(model), "--out", str(tmp_path / "out")])
    line = f"infer.py: {slides[0]}: out of memory: lower --batch or --tile\n"
    assert error.value.code == 1 and capsys.readouterr().err == line
    assert (tmp_path / "out" / "kidney1.tiff").exists()


def test_libraries_add_no_lines_of_their_own_to_that_of_a_bad_slide(
        model, tmp_path, capfd, monkeypatch, recwarn):
    tifffile.imwrite(tmp_path / "whole.tiff", np.zeros((300, 255, 3), np.uint8), compression="zlib",
                     rowsperstrip=20)
    (tmp_path / "tags.tiff").write_bytes((tmp_path / "whole.tiff").read_bytes()[:200])
    (tmp_path / "header.tiff").write_bytes(b"II*\0\x08\0\0\0")
    bad = [tmp_path / "tags.tiff", tmp_path / "header.tiff"]
    monkeypatch.setattr(logging.root, "handlers", [])  # pytest's: without them logs go to stderr
    logging.getLogger("any").warning("a library's line")
    assert capfd.readouterr().err == "a library's line\n"  # so such lines would be seen
    with pytest.raises(SystemExit) as error:
        start(bad, model, tmp_path / "o")
    lines = capfd.readouterr().err.splitlines()
    assert error.value.code == 1 and len(lines) == 2, lines
    assert all(str(path) in line for path, line in zip(bad, lines))
    assert not [w for w in recwarn if issubclass(w.category, (UserWarning, RuntimeWarning))]


def test_a_slide_that_breaks_off_in_its_middle_leaves_nothing(model, slides, tmp_path, capsys):
    image = np.random.default_rng(0).integers(0, 256, (600, 200, 3), np.uint8)
    tifffile.imwrite(tmp_path / "a.tiff", image, compression="zlib", rowsperstrip=20)
    with tifffile.TiffFile(tmp_path / "a.tiff") as tiff:
        offset = tiff.pages[0].dataoffsets[20]
    content = bytearray((tmp_path / "a.tiff").read_bytes())
    content[offset : offset + 400] = b"\xff" * 400
    (tmp_path / "a.tiff").write_bytes(content)
    out = tmp_path / "out"
    assert "a.tiff" in fails(capsys, 1, tmp_path / "a.tiff", slides[1], "--model", model,
                             "--out", out)
    assert {p.name for p in out.iterdir()} == {"kidney1.tiff", "kidney1.preview.png"}


def start(slides, model, out, *more):
    infer.main([str(a) for a in (*slides, "--model", model, "--out", out, *more)])


def contents(*places):
    """Name, time of change and bytes of every file."""
    files = [p for place in places for p in (place.rglob("*") if place.is_dir() else [place])]
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in files if p.is_file()}


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    """A folder of two slides and a run over them: copy it."""
    folder = tmp_path_factory.mktemp("finished")
    for i, size in enumerate([(300, 130), (128, 190)]):
        Image.fromarray(synthetic_slide(i, *size)[0]).save(folder / f"kidney{i}.png")
    start(sorted(folder.glob("*.png")), model, folder / "out", "--rle", folder / "submission.csv")
    return folder


@pytest.fixture
def again(finished, tmp_path):
    """The same run, in a folder of the test's own: slides, folder of results, table."""
    folder = tmp_path / "again"
    shutil.copytree(finished, folder)
    return sorted(folder.glob("*.png")), folder / "out", folder / "submission.csv"


@pytest.fixture
def segmented(monkeypatch):
    """The names of the slides that go through the network."""
    names, segment = [], infer.segment

    def recording(path, *arguments):
        names.append(path.name)
        return segment(path, *arguments)

    monkeypatch.setattr(infer, "segment", recording)
    return names


def test_a_second_start_does_nothing_for_slides_that_are_done(
        model, again, tmp_path, segmented, capsys):
    slides, out, table = again
    before = contents(out)
    start(slides, model, out)
    start(slides, model, out, "--rle", tmp_path / "other.csv")
    assert contents(out) == before and not segmented
    assert (tmp_path / "other.csv").read_bytes() == table.read_bytes()
    printed = capsys.readouterr()
    assert printed.err == "" and printed.out.count("complete already") == 4


def test_slides_that_are_done_need_not_be_there_any_more(model, again, segmented):
    slides, out, table = again
    before = contents(out, table)
    slides[0].unlink()
    start(slides, model, out)
    assert contents(out, table) == before and not segmented


def test_a_second_start_does_only_what_is_missing(model, again, segmented):
    slides, out, table = again
    wanted = contents(out, table)
    for name in ("kidney1.tiff", "kidney0.preview.png"):
        (out / name).unlink()
        table.unlink()
        before = contents(out)
        start(slides, model, out, "--rle", table)
        assert segmented.pop() == name.split(".")[0] + ".png" and not segmented
        other = "kidney0" if "1" in name else "kidney1"
        found = contents(out, table)
        assert {p: c for p, (_, c) in found.items()} == {p: c for p, (_, c) in wanted.items()}
        assert all(found[p] == before[p] for p in before if p.name.startswith(other))


def test_a_preview_alone_is_made_anew_by_the_same_settings_and_refused_by_others(
        model, again, segmented, capsys):
    slides, out, table = again
    table.unlink()
    (out / "kidney1.tiff").unlink()  # as a run leaves it that was killed between the two
    before = contents(out)
    line = fails(capsys, 2, slides[1], "--model", model, "--out", out, "--threshold", "0.3")
    assert "kidney1.preview.png" in line and "made in another way" in line
    assert contents(out) == before and not segmented
    start(slides, model, out)
    assert segmented == ["kidney1.png"] and (out / "kidney1.tiff").exists()


@pytest.mark.parametrize("options", [
    ["--threshold", "0.3"], ["--tile", "32"], ["--overlap", "0.25"], ["--window", "hann"],
    ["--tta"], ["--skip-flat"], ["--amp"]], ids=lambda options: options[0])
def test_results_of_other_settings_are_refused_and_stay(model, again, capsys, options):
    slides, out, table = again
    before = contents(out, table)
    capsys.readouterr()
    with pytest.raises(SystemExit) as error:
        start(slides, model, out, *options)
    line = capsys.readouterr().err.splitlines()[-1]
    assert error.value.code == 2 and "kidney0.tiff: exists already, made in another way" in line
    assert contents(out, table) == before


def test_results_of_another_network_or_slide_are_refused_and_stay(model, again, tmp_path, capsys):
    slides, out, table = again
    before = contents(out, table)
    net, facts = load_model(model)
    net.head.bias.data += 1
    save_model(tmp_path / "model.pt", NETWORK, net.state_dict(), **facts)
    line = fails(capsys, 2, *slides, "--model", tmp_path / "model.pt", "--out", out)
    assert "made in another way" in line and contents(out, table) == before
    with open(slides[0], "r+b") as file:  # the same size, other pixels
        file.seek(-20_000, 2)
        file.write(b"other")
    line = fails(capsys, 2, *slides, "--model", model, "--out", out)
    assert "kidney0.tiff: exists already, made in another way" in line
    assert contents(out, table) == before
    slides[0].unlink()  # or mistyped: then all the rest is compared
    line = fails(capsys, 2, slides[0], "--model", tmp_path / "model.pt", "--out", out, "--rle",
                 tmp_path / "other.csv")
    assert "kidney0.png: no such file, and " in line and "correct the path" in line
    assert contents(out, table) == before and not (tmp_path / "other.csv").exists()


def test_a_slide_that_changed_between_the_sampled_blocks_is_not_taken_for_the_same(
        model, tmp_path, capsys, segmented):
    image = np.zeros((1200, 1300, 3), np.uint8)
    slide, out = tmp_path / "a.tif", tmp_path / "out"
    tifffile.imwrite(slide, image, photometric="rgb", metadata=None)
    start([slide], model, out)
    size, offset = slide.stat().st_size, 2**16 + 1000  # between the first block and the second
    assert offset < (size - 2**16) // 15
    shutil.copyfile(slide, tmp_path / "copy.tif")  # later
    shutil.move(tmp_path / "copy.tif", slide)
    start([slide], model, out)
    assert segmented == ["a.tif"]  # the copy was not segmented again
    with open(slide, "r+b") as file:
        file.seek(offset)
        file.write(b"other")
    line = fails(capsys, 2, slide, "--model", model, "--out", out)
    assert "a.tiff: exists already, made in another way" in line


def test_a_name_that_the_terminal_cannot_show_is_printed_with_escapes(
        model, slides, tmp_path, monkeypatch):
    slide = tmp_path / "切片.png"
    shutil.copy(slides[0], slide)
    with io.TextIOWrapper(io.BytesIO(), "cp1252") as printed:
        monkeypatch.setattr(sys, "stdout", printed)
        start([slide], model, tmp_path / "out")
        assert b"\\u5207\\u7247.tiff" in printed.buffer.getvalue()
    assert (tmp_path / "out" / "切片.tiff").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are Unicode")
def test_a_name_that_is_not_unicode_is_read_but_cannot_stand_in_the_table(
        model, slides, tmp_path, capsys):
    slide = Path(os.fsdecode(os.fsencode(tmp_path) + b"/L\xf6we.png"))
    shutil.copy(slides[0], slide)
    line = fails(capsys, 2, slide, "--model", model, "--out", tmp_path / "o", "--rle",
                 tmp_path / "table.csv")
    assert "its name is not UTF-8" in line and not (tmp_path / "o").exists()
    start([slide], model, tmp_path / "o")
    assert (tmp_path / "o" / f"{slide.stem}.tiff").exists()


def test_probabilities_that_are_not_numbers_stop_with_slide_rows_and_remedy(
        model, slides, tmp_path, capsys, monkeypatch):
    def spoilt(*arguments, **options):
        def predict(tiles):
            probabilities = torch.zeros(len(tiles), 1, *tiles.shape[2:])
            probabilities[:, :, 20:30, :5] = torch.nan
            return probabilities
        return predict

    monkeypatch.setattr(infer, "predictor", spoilt)
    monkeypatch.setattr(options, "has_bfloat16", lambda: True)  # or a second line
    out = tmp_path / "out"
    line = fails(capsys, 2, slides[0], "--model", model, "--out", out, "--amp")
    assert "kidney0.png: in rows 39 to 60 the network" in line and "not numbers (NaN)" in line
    assert "compute in 32 (infer.py: without --amp" in line and not list(out.iterdir())


def test_models_of_different_pixel_size_are_named_in_any_order(model, tmp_path, capsys):
    net, facts = load_model(model)
    for size in (0.25, 0.27, 0.5, None):
        save_model(tmp_path / f"{size}.pt", NETWORK, net.state_dict(), **{**facts, "microns": size})
    for sizes, named in (((0.25, 0.5), True), ((0.5, None, 0.25), True), ((0.25, 0.27), False),
                         ((None, 0.5), False), ((0.5, None), False)):
        ensemble = load_ensemble([tmp_path / f"{size}.pt" for size in sizes])
        assert ensemble.microns == (0 if named else min(filter(None, sizes)))
        err = capsys.readouterr().err
        assert ("0.25.pt was trained at 0.25 µm per pixel, " in err) == named
        assert ("run them one by one" in err) == named


def test_what_does_not_change_the_result_may_change_between_starts(model, again, segmented):
    slides, out, _ = again
    moved = out.parent / "moved.pt"
    shutil.copy(model, moved)
    start(slides[::-1], moved, out, "--batch", "3")
    assert not segmented


@pytest.mark.parametrize("name", ["kidney0.tiff", "kidney0.preview.png"])
@pytest.mark.parametrize("kind", ["text", "empty", "short", "header", "image", "folder"])
def test_a_file_that_is_not_ours_is_refused_and_stays(model, slides, tmp_path, capsys, name, kind):
    out = tmp_path / "out"
    out.mkdir()
    if kind == "image":
        Image.fromarray(np.zeros((301, 255), np.uint8)).save(out / name)
    elif kind == "folder":
        (out / name).mkdir()
    else:
        (out / name).write_bytes({"text": b"mine", "empty": b"", "short": b"II",
                                  "header": b"II*\0\x08\0\0\0"}[kind])
    before = contents(out)
    assert name in fails(capsys, 2, *slides, "--model", model, "--out", out)
    assert contents(out) == before and len(list(out.iterdir())) == 1


def test_a_table_is_refused_while_slides_wait_and_must_be_equal_after(
        model, again, segmented, capsys):
    slides, out, table = again
    usual = (*slides, "--model", model, "--out", out, "--rle", table)
    before = contents(table)
    start(slides, model, out, "--rle", table)  # equal
    assert contents(table).keys() == before.keys()
    assert table.read_bytes() == before[table][1] and not segmented

    text = table.read_text()
    table.write_text(text + "kidney2,1 1\n")
    before = contents(out, table)
    line = fails(capsys, 1, *usual)
    assert "submission.csv" in line and "other content" in line
    assert contents(out, table) == before and not segmented

    (out / "kidney1.tiff").unlink()
    before = contents(out, table)
    assert "submission.csv: exists already" in fails(capsys, 2, *usual)  # of other slides
    assert contents(out, table) == before and not segmented
    table.write_text("my own table")
    assert "submission.csv: exists already" in fails(capsys, 2, *usual)
    table.write_text("\n".join(text.splitlines()[:2]) + "\n")  # kidney0 alone
    start(slides, model, out, "--rle", table)
    assert table.read_text() == text and segmented == ["kidney1.png"]


def test_a_slide_that_changes_while_it_is_segmented_fails_and_leaves_nothing(
        model, slides, tmp_path, capsys, monkeypatch):
    def change(tiles):
        if not changed:
            with open(slides[0], "ab") as file:
                file.write(b"more")
            changed.append(1)
        return torch.zeros(len(tiles), 1, *tiles.shape[2:])

    changed, out = [], tmp_path / "out"
    monkeypatch.setattr(infer, "predictor", lambda *_, **__: change)
    line = fails(capsys, 1, *slides, "--model", model, "--out", out, "--rle", tmp_path / "t.csv")
    assert "kidney0.png: has changed while it was segmented: give the same command again" in line
    assert sorted(path.name for path in out.iterdir()) == ["kidney1.preview.png", "kidney1.tiff"]
    start(slides, model, out, "--rle", tmp_path / "t.csv")  # the table of one slide was ours
    assert len(rows_of(tmp_path / "t.csv")) == 2


def test_probabilities_asked_for_later_are_made_by_going_through_the_slide_again(
        model, again, segmented):
    slides, out, _ = again
    start(slides[:1], model, out, "--probabilities")
    assert segmented == ["kidney0.png"] and (out / "kidney0.probabilities.tiff").exists()
    start(slides[:1], model, out, "--probabilities")
    assert segmented == ["kidney0.png"]


def test_files_carry_the_settings_that_made_them(model, again):
    slides, out, _ = again
    with tifffile.TiffFile(out / "kidney0.tiff") as tiff:
        note = json.loads(tiff.pages[0].description)
    with Image.open(out / "kidney0.preview.png") as preview:
        assert json.loads(preview.info["Description"]) == note
    assert note["slide"] == "kidney0.png" and note["bytes"] == slides[0].stat().st_size
    assert (note["threshold"], note["scale"], note["tile"], note["overlap"], note["tta"]) == (
        0.5, 2, 64, 0.5, False)


def test_a_tile_other_than_in_training_is_one_line_of_warning(model, slides, tmp_path, capsys):
    start(slides[1:], model, tmp_path / "a", "--tile", "48")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "--tile 48" in lines[0] and "trained on tiles of 64" in lines[0]
    assert (tmp_path / "a" / "kidney1.tiff").exists()
    start(slides[1:], model, tmp_path / "b", "--tile", "64")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("microns, warned", [
    (0.5, False), (0.525, False), (0.475, False), (0.56, True), (0.44, True), (None, False)])
def test_a_slide_of_another_resolution_than_the_models_is_one_line_of_warning(
        model, tmp_path, capsys, microns, warned):
    net, facts = load_model(model)
    save_model(tmp_path / "model.pt", NETWORK, net.state_dict(),
               **{**facts, "microns": 0.5})
    tags = {} if microns is None else dict(resolution=(25400 / microns,) * 2, resolutionunit=2)
    tifffile.imwrite(tmp_path / "a.tiff", synthetic_slide(0, 100, 90)[0], **tags)
    start([tmp_path / "a.tiff"], tmp_path / "model.pt", tmp_path / "known")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == warned, lines
    if warned:
        assert "a.tiff" in lines[0] and str(microns) in lines[0] and "0.5" in lines[0]
    assert (tmp_path / "known" / "a.tiff").exists()
    if microns == 0.44:
        start([tmp_path / "a.tiff"], model, tmp_path / "unknown")  # which says nothing of microns
        line, = capsys.readouterr().err.splitlines()
        assert "a.tiff: states the size of its pixels, but the model none" in line


def test_glass_is_skipped_if_asked_for(model, tmp_path):
    image = synthetic_slide(0, 200, 500)[0]
    image[:, 200:] = 244
    Image.fromarray(image).save(tmp_path / "a.png")
    start([tmp_path / "a.png"], model, tmp_path / "all", "--probabilities")
    start([tmp_path / "a.png"], model, tmp_path / "some", "--probabilities", "--skip-flat")
    everywhere, some = (tifffile.imread(tmp_path / name / "a.probabilities.tiff")
                        for name in ("all", "some"))
    # tiles of 64 at scale 2: from 200 + 128 on nothing but glass is in any tile
    assert everywhere[:, 340:].min() > 0 and not some[:, 340:].any()
    np.testing.assert_array_equal(some[:, :100], everywhere[:, :100])
    assert not tifffile.imread(tmp_path / "some" / "a.tiff")[:, 340:].any()


def test_mixed_precision_gives_nearly_the_same(model, slides, tmp_path):
    start(slides[1:], model, tmp_path / "full", "--probabilities")
    start(slides[1:], model, tmp_path / "mixed", "--probabilities", "--amp")
    full, mixed = (tifffile.imread(tmp_path / name / "kidney1.probabilities.tiff").astype(int)
                   for name in ("full", "mixed"))
    assert 0 < abs(full - mixed).max() < 20 and abs(full - mixed).mean() < 3


def test_slides_of_three_strips_and_in_planes_give_the_mask_of_the_same_pixels_as_png(
        model, tmp_path):
    image = synthetic_slide(0, 301, 255)[0]
    Image.fromarray(image).save(tmp_path / "png.png")
    tifffile.imwrite(tmp_path / "strips.tiff", image, compression="zlib", rowsperstrip=101)
    tifffile.imwrite(tmp_path / "planes.tiff", image.transpose(2, 0, 1).copy(),
                     photometric="rgb", planarconfig="separate", tile=(64, 64))
    with tifffile.TiffFile(tmp_path / "strips.tiff") as tiff:
        assert len(tiff.pages[0].dataoffsets) == 3
    start([tmp_path / name for name in ("png.png", "strips.tiff", "planes.tiff")], model,
          tmp_path / "out")
    masks = [tifffile.imread(tmp_path / "out" / f"{name}.tiff")
             for name in ("png", "strips", "planes")]
    assert 0 < masks[0].mean() < 255
    np.testing.assert_array_equal(masks[1], masks[0])
    np.testing.assert_array_equal(masks[2], masks[0])


def test_previews_of_large_slides_are_reduced(model, slides, tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "PREVIEW", 50)
    start(slides[:1], model, tmp_path / "out")  # 301 x 255, at scale 2 151 x 128
    image = np.asarray(Image.open(slides[0]))
    preview = np.asarray(Image.open(tmp_path / "out" / "kidney0.preview.png"))
    small = shrink(shrink(image, 2), 4)
    found = shrink(tifffile.imread(tmp_path / "out" / "kidney0.tiff"), 8) >= 128
    painted = (preview == (230, 159, 0)).all(2)
    assert preview.shape == small.shape == (38, 32, 3) and painted.any()
    assert found[painted].all() and (preview[~painted] == small[~painted]).all()


# Polygons


def drawn(path, mask):
    """The features of a file, and the mask that they draw."""
    content = json.loads(path.read_text())
    assert content["type"] == "FeatureCollection"
    return content["features"], Polygons(read_polygons(path), *mask.shape).window(0, 0, *mask.shape)


def test_polygons_drawn_as_a_mask_give_the_mask(model, slides, tmp_path):
    infer.main([slides[0], "--model", str(model), "--out", str(tmp_path / "o"), "--geojson",
                "--probabilities"])
    mask = tifffile.imread(tmp_path / "o" / "kidney0.tiff")
    features, again = drawn(tmp_path / "o" / "kidney0.geojson", mask)
    np.testing.assert_array_equal(again * 255, mask)
    measured = [each["properties"]["measurements"] for each in features]
    assert sum(each["Area px^2"] for each in measured) == np.count_nonzero(mask)
    probability = tifffile.imread(tmp_path / "o" / "kidney0.probabilities.tiff")[mask > 0] / 255
    mean = sum(each["Area px^2"] * each["Mean probability"] for each in measured)
    assert mean / np.count_nonzero(mask) == pytest.approx(probability.mean(), abs=0.003)
    assert {each["properties"]["classification"]["name"] for each in features} == {"object"}


def test_specks_are_left_out_of_the_polygons_and_areas_are_in_micrometres(tmp_path):
    torch.manual_seed(0)
    net = UNet(**NETWORK)
    with torch.no_grad():
        net.head.bias -= net.eval()(torch.rand(1, 3, 64, 64)).median()
    save_model(tmp_path / "m.pt", NETWORK, net.state_dict(), scale=1, tile=64, threshold=0.5,
               label="glomerulus")
    tifffile.imwrite(tmp_path / "a.tif", synthetic_slide(0, 301, 255)[0], photometric="rgb",
                     resolution=(20_000, 20_000), resolutionunit="CENTIMETER")
    found = []
    for area in (0, 200):
        out = tmp_path / str(area)
        infer.main([str(tmp_path / "a.tif"), "--model", str(tmp_path / "m.pt"), "--out", str(out),
                    "--geojson", "--min-area", str(area)])
        found.append(drawn(out / "a.geojson", tifffile.imread(out / "a.tiff"))[0])
    everything, large = found
    areas = [each["properties"]["measurements"]["Area µm^2"] * 4 for each in everything]
    assert 0 < len(large) == sum(area >= 200 for area in areas) < len(everything)
    assert large[0]["properties"]["classification"]["name"] == "glomerulus"


@pytest.mark.parametrize("turned", [1, 6])
def test_outputs_state_the_pixel_size_of_the_slide_and_differ_in_nothing_else(
        model, tmp_path, turned):
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    for name, tags in (("known", dict(resolution=(20_000, 40_000), resolutionunit=3)),
                       ("unknown", dict(resolution=(96, 96), resolutionunit=2)), ("none", {})):
        (tmp_path / name).mkdir()
        tifffile.imwrite(tmp_path / name / "a.tif", image, photometric="rgb", metadata=None,
                         extratags=[(274, 3, 1, turned, True)], **tags)
        start([tmp_path / name / "a.tif"], model, tmp_path / f"{name}-out", "--probabilities")
    across, down = (20_000, 40_000) if turned == 1 else (40_000, 20_000)
    for file in ("a.tiff", "a.probabilities.tiff"):
        pages = {}
        for name in ("known", "unknown", "none"):
            with tifffile.TiffFile(tmp_path / f"{name}-out" / file) as tiff:
                [pages[name]] = tiff.pages
                pages[name] = {tag.name: tag.value for tag in tiff.pages[0].tags}, tiff.asarray()
        known, unknown, none = (pages[name][0] for name in pages)
        assert known["XResolution"] == (across, 1) and known["YResolution"] == (down, 1)
        assert known["ResolutionUnit"] == 3  # centimetre
        assert unknown["XResolution"] == none["XResolution"] == (1, 1)  # tifffile's "unknown"
        assert unknown["ResolutionUnit"] == none["ResolutionUnit"] == 1
        differ = {tag for tag in known if known[tag] != none[tag]}
        assert known.keys() == none.keys()
        assert differ - {"ImageDescription"} == {"XResolution", "YResolution", "ResolutionUnit"}
        assert np.array_equal(pages["known"][1], pages["none"][1])
        assert open_slide(tmp_path / "known-out" / file).pixel_size == (1e4 / across, 1e4 / down)
        assert open_slide(tmp_path / "none-out" / file).pixel_size is None


def test_polygons_of_other_settings_are_not_overwritten(model, slides, tmp_path, capsys):
    command = [slides[0], "--model", str(model), "--out", str(tmp_path / "o"), "--geojson"]
    infer.main(command)
    before = (tmp_path / "o" / "kidney0.geojson").read_bytes()
    infer.main(command)
    assert "complete already" in capsys.readouterr().out
    assert (tmp_path / "o" / "kidney0.geojson").read_bytes() == before
    with pytest.raises(SystemExit):
        infer.main([*command, "--threshold", "0.4"])
    assert "exists already, made in another way" in capsys.readouterr().err


def test_a_smallest_area_changes_no_other_file(model, slides, tmp_path, capsys):
    command = [slides[0], "--model", str(model), "--out", str(tmp_path / "o")]
    infer.main(command)
    mask = (tmp_path / "o" / "kidney0.tiff").read_bytes()
    infer.main([*command, "--geojson", "--min-area", "20"])
    assert (tmp_path / "o" / "kidney0.tiff").read_bytes() == mask
    with pytest.raises(SystemExit):
        infer.main([*command, "--geojson"])
    assert "kidney0.geojson: exists already, made in another way" in capsys.readouterr().err


def test_a_smallest_area_needs_polygons(model, slides, tmp_path, capsys):
    with pytest.raises(SystemExit):
        infer.main([slides[0], "--model", str(model), "--out", str(tmp_path), "--min-area", "9"])
    assert capsys.readouterr().err.endswith(
        ": --min-area 9: needs pixels from 0 up, and --geojson\n")


def test_models_of_different_classes_are_not_averaged(tmp_path, slides, capsys):
    for name in ("glomerulus", "cortex"):
        save_model(tmp_path / f"{name}.pt", NETWORK, UNet(**NETWORK).state_dict(), scale=1, tile=64,
                   threshold=0.5, label=name)
    with pytest.raises(SystemExit):
        infer.main([slides[0], "--model", str(tmp_path / "glomerulus.pt"),
                    str(tmp_path / "cortex.pt"), "--out", str(tmp_path / "o")])
    assert "cortex.pt: finds cortex: run them one by one" in capsys.readouterr().err


# What a file does not say


def test_white_comes_from_the_model_or_the_command_line(tmp_path, capsys):
    torch.manual_seed(0)
    state, maps = UNet(**NETWORK).state_dict(), []
    save_model(tmp_path / "old.pt", NETWORK, state, scale=1, tile=64, threshold=0.5)
    save_model(tmp_path / "new.pt", NETWORK, state, scale=1, tile=64, threshold=0.5, white=4095)
    image = synthetic_slide(0, 128, 128)[0]
    Image.fromarray(image).save(tmp_path / "plain.png")
    tifffile.imwrite(tmp_path / "deep.tif", (image * (4095 / 255)).round().astype(np.uint16),
                     photometric="rgb")
    for name, model, *given in (("plain.png", "old"), ("deep.tif", "new"), ("deep.tif", "old"),
                                  ("deep.tif", "old", "--white", "4095")):
        out = tmp_path / f"{len(maps)}"
        infer.main([str(tmp_path / name), "--model", str(tmp_path / f"{model}.pt"), "--out",
                    str(out), "--probabilities", *given])
        maps.append(tifffile.imread(next(out.glob("*.probabilities.tiff"))))
        assert ("looks dark" in capsys.readouterr().err) == (len(maps) == 3)
    assert np.array_equal(maps[0], maps[1]) and np.array_equal(maps[0], maps[3])
    assert not np.array_equal(maps[0], maps[2])
    models = [tmp_path / "old.pt", tmp_path / "new.pt"]
    line = fails(capsys, 2, tmp_path / "deep.tif", "--model", *models, "--out", tmp_path / "5")
    assert "new.pt: was trained with --white 4095" in line and "choose with --white" in line
    # What was made with another white is not taken for the same.
    line = fails(capsys, 2, tmp_path / "deep.tif", "--model", models[0], "--out", tmp_path / "2",
                 "--probabilities", "--white", "4095")
    assert "made in another way" in line


def test_an_out_that_holds_slides_or_the_images_of_a_data_set_is_refused(
        model, slides, tmp_path, capsys):
    remedy = "give a folder of its own for the masks"
    line = fails(capsys, 2, slides[0], "--model", model, "--out", tmp_path)
    assert line.endswith(f"--out {tmp_path}: holds the slide {slides[0]}: {remedy}")
    (tmp_path / "link").symlink_to(tmp_path)
    assert "holds the slide" in fails(capsys, 2, slides[0], "--model", model, "--out",
                                      tmp_path / "link")
    data, other = tmp_path / "data", tmp_path / "other"
    for folder in (data / "images", data / "masks", other / "train"):
        folder.mkdir(parents=True)
    (other / "train.csv").touch()
    for out in (data / "images", other / "train"):
        line = fails(capsys, 2, slides[0], "--model", model, "--out", out)
        assert line.endswith(f"--out {out}: holds the images of a data set: {remedy}")
        assert not list(out.iterdir())
    infer.main([slides[0], "--model", str(model), "--out", str(data / "predicted")])


def test_progress_names_the_slide_and_tells_the_time_left_for_all(
        model, slides, tmp_path, monkeypatch, capsys):
    lines = []
    monkeypatch.setattr(infer.Progress, "step", lambda progress, count, text: lines.append(
        (count / progress.total, text)))
    infer.main([*slides, "--model", str(model), "--out", str(tmp_path / "out")])
    assert sum(share for share, _ in lines) == pytest.approx(1)
    assert [text for _, text in lines] == sorted(text for _, text in lines)
    assert {text for _, text in lines} == {"kidney0, slide 1 of 2", "kidney1, slide 2 of 2"}


def test_a_cpu_without_bfloat16_and_a_missing_compiler_are_named(
        model, slides, tmp_path, monkeypatch, capsys):
    command = [slides[0], "--model", model, "--out", tmp_path / "out", "--device", "cpu"]
    monkeypatch.setattr(options.shutil, "which", lambda name: None)
    line = fails(capsys, 2, *command, "--compile")
    assert "--compile: there is no C++ compiler" in line and not (tmp_path / "out").exists()
    for supported in (True, False):
        monkeypatch.setattr(options, "has_bfloat16", lambda: supported)
        infer.main([*map(str, command), "--amp"])
        assert ("many times slower" in capsys.readouterr().err) != supported


def test_a_folder_and_a_format_that_is_not_read_are_named_with_a_remedy(
        model, tmp_path, capsys):
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "a.png").touch()
    line = fails(capsys, 2, tmp_path / "slides", "--model", model, "--out", tmp_path / "out")
    assert line.endswith(f"slides: is a folder: name its files, as in {tmp_path / 'slides'}/*.png")
    (tmp_path / "a.mrxs").write_bytes(bytes(2000))
    line = fails(capsys, 2, tmp_path / "a.mrxs", "--model", model, "--out", tmp_path / "out")
    assert "a.mrxs: 3DHISTECH MIRAX is not supported: save it as TIFF (docs/formats.md): " in line
    (tmp_path / "other.pt").write_text("not a model")
    line = fails(capsys, 2, tmp_path / "a.mrxs", "--model", tmp_path / "other.pt", "--out",
                 tmp_path / "out")
    assert "other.pt: is not a minseg checkpoint" in line and "weights_only" not in line


def test_a_pixel_at_the_threshold_is_positive(tmp_path):
    net = UNet(**NETWORK)
    torch.nn.init.zeros_(net.head.weight)
    torch.nn.init.zeros_(net.head.bias)  # a probability of exactly 1/2 everywhere
    save_model(tmp_path / "m.pt", NETWORK, net.state_dict(), scale=1, tile=64, threshold=0.5)
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(tmp_path / "a.png")
    start([tmp_path / "a.png"], tmp_path / "m.pt", tmp_path / "o")
    assert (tifffile.imread(tmp_path / "o" / "a.tiff") == 255).all()


def test_started_as_a_program_it_runs_and_ctrl_c_ends_it_in_one_line(monkeypatch, capsys):
    path = infer.__file__
    monkeypatch.setattr(sys, "argv", ["infer.py", "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(path, run_name="__main__")
    assert not end.value.code and "Segment slides of any size" in capsys.readouterr().out

    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(options, "infer_options", interrupted)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(path, run_name="__main__")
    assert end.value.code == 130 and capsys.readouterr().err == "\ninfer.py: stopped\n"
