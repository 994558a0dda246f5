"""The files of a slide: names, previews, and the table."""

import csv
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from PIL import Image

from minseg import open_slide, rle_encode
from minseg.files.polygons import Polygons, read_polygons
from minseg.run.bands import write_tiff
from minseg.run.outputs import (
    Preview,
    carried_provenance,
    check_outputs,
    encode_finished,
    finished_slides,
    output_files,
    read_csv,
    refuse_data_folder,
    write_csv,
    write_outputs,
)

ORANGE = (230, 159, 0)


def slide(height, width, scale=1):
    return SimpleNamespace(full_height=height, full_width=width, scale=scale)


def test_each_slide_has_a_mask_and_a_preview_and_what_else_is_asked_for():
    args = SimpleNamespace(out=Path("o"), probabilities=False, geojson=False)
    assert output_files(Path("a/b.c.svs"), args) == [
        Path("o/b.c.tiff"), Path("o/b.c.preview.png")]
    args.probabilities = args.geojson = True
    assert output_files(Path("b.svs"), args)[2:] == [
        Path("o/b.probabilities.tiff"), Path("o/b.geojson")]


@pytest.mark.parametrize("height, width, scale, size", [
    (1600, 9, 1, (9, 1600)), (1601, 9, 1, (5, 801)), (9, 3200, 2, (1600, 5)),
    (9, 3201, 2, (801, 3)), (9, 4801, 3, (801, 2)), (12, 6401, 3, (1067, 2))])
def test_a_preview_has_1600_pixels_at_most(tmp_path, height, width, scale, size):
    preview = Preview(tmp_path / "gone.tif", slide(height, width, scale), None)
    assert preview.rows_suffice
    for y in range(0, height, 300 * scale):
        rows = min(300 * scale, height - y)
        preview.image.add(np.full((-(-rows // scale), -(-width // scale), 3), 7, np.uint8))
        preview.mask.add(np.zeros((rows, width), np.uint8))
    preview.save(tmp_path / "a.png", "a note")
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == size and (np.asarray(image) == 7).all()
    assert carried_provenance(tmp_path / "a.png") == "a note"


def test_a_preview_finer_than_the_networks_rows_is_read_from_the_slide(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 200, (40, 50, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "slide.png")
    preview = Preview(tmp_path / "slide.png", slide(40, 50, 4), None)
    assert not preview.rows_suffice
    preview.image.add(np.zeros((10, 13, 3), np.uint8))
    preview.mask.add(np.zeros((40, 50), np.uint8))
    preview.save(tmp_path / "a.png", "")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), pixels)


def test_a_pixel_of_a_preview_is_object_if_half_of_its_block_is(tmp_path):
    preview, mask = Preview(tmp_path, slide(8, 3000), None), np.zeros((8, 3000), np.uint8)
    mask[2, 10:12] = mask[4, 20] = mask[6:8, 30:32] = 255  # of blocks of 2 x 2
    preview.image.add(np.zeros((8, 3000, 3), np.uint8))
    preview.mask.add(mask)
    preview.save(tmp_path / "a.png", "")
    painted = (np.asarray(Image.open(tmp_path / "a.png")) == ORANGE).all(2)
    assert np.argwhere(painted).tolist() == [[1, 5], [3, 15]]


def test_the_code_of_a_mask_that_was_written_before_is_that_of_all_its_rows(tmp_path):
    mask = (np.random.default_rng(0).random((515, 300)) < 0.3) * np.uint8(255)
    with write_tiff(tmp_path / "a.tiff", *mask.shape) as write:
        write(mask)
    encoder = encode_finished(tmp_path / "a.tiff")
    assert encoder.encode() == rle_encode(mask)
    assert (encoder.height, encoder.width) == mask.shape


def test_a_table_is_extended_but_never_contradicted(tmp_path):
    path, long = tmp_path / "a.csv", "1 2 " * 100_000
    write_csv(path, [("a", long)])
    assert read_csv(path) == {"a": long}
    write_csv(path, [("b", ""), ("a", long)])
    assert path.read_text().splitlines()[:2] == ["id,predicted", "b,"]
    for rows in ([("a", "1 3"), ("b", "")], [("b", "")]):
        with pytest.raises(ValueError, match="it exists already, with other content"):
            write_csv(path, rows)
    assert read_csv(path) == {"b": "", "a": long}
    assert csv.field_size_limit() == 2**31 - 1  # the most that Windows takes
    for text in ("", "id,encoding\na,1 2\n", "id,predicted\na\n"):
        path.write_text(text)
        assert read_csv(path) is None
        with pytest.raises(ValueError, match="exists already"):
            write_csv(path, [("a", "1 2")])
    with pytest.raises(ValueError, match="cannot be written: No such file"):
        write_csv(tmp_path / "gone" / "a.csv", [])


def test_masks_are_not_written_among_slides_or_images(tmp_path):
    def refused(out, *slides):
        try:
            refuse_data_folder(SimpleNamespace(out=tmp_path / out, slides=slides))
        except ValueError as error:
            return "give a folder of its own" in str(error)
        return False

    for folder in ("slides", "d/images", "d/masks", "e/images", "f/train", "g/train", "masks"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "f/train.csv").touch()
    assert refused("slides", tmp_path / "x/a.tif", tmp_path / "slides/a.tif")
    assert not refused("masks", tmp_path / "slides/a.tif")
    assert refused("d/images") and refused("f/train")
    assert not refused("d/masks") and not refused("e/images") and not refused("g/train")


def test_a_file_of_another_program_carries_no_provenance(tmp_path):
    (tmp_path / "a.geojson").write_text("{}")
    (tmp_path / "a.png").write_bytes(b"")
    Image.new("L", (3, 3)).save(tmp_path / "b.png")
    for name in ("a.geojson", "a.png", "b.png", "gone.tiff"):
        assert carried_provenance(tmp_path / name) is None
    with write_tiff(tmp_path / "a.tiff", 9, 9, "a note") as write:
        write(np.zeros((9, 9), np.uint8))
    assert carried_provenance(tmp_path / "a.tiff") == "a note"


@pytest.fixture
def segmented(tmp_path):
    """Writes the outputs of a small slide. Also the ensemble, the arguments, the probabilities."""
    generator, path = np.random.default_rng(0), tmp_path / "a.png"
    Image.fromarray(generator.integers(0, 200, (40, 50, 3), np.uint8)).save(path)
    probability = (generator.integers(0, 256, (40, 50)) / 255).astype(np.float32)
    probability[0, :3] = 0.5, 0.4999, 0.5  # at the threshold is positive
    ensemble = SimpleNamespace(hashes=["h"], threshold=0.5, scale=1, tile=32, white=None,
                               label="gland", resample=False, sizes={})
    args = SimpleNamespace(out=tmp_path / "o", slides=[path], probabilities=True, geojson=True,
                           rle=None, min_area=0, overlap=0.5, window="linear", tta=False,
                           skip_flat=False, amp=False)
    args.out.mkdir()

    def run(in_between=lambda: None):
        with write_outputs(path, open_slide(path), ensemble, args) as outputs:
            for y in range(0, 40, 16):
                rows = min(16, 40 - y)
                read = outputs.preview.watching(outputs.slide.read)
                assert read(y, 0, rows, 50).shape == (rows, 50, 3)
                outputs.write(probability[y : y + rows])
            in_between()
        return outputs.encoder

    return run, ensemble, args, probability


def test_all_files_of_a_slide_show_the_same_objects(segmented):
    run, ensemble, args, probability = segmented
    for label in ("gland", None):
        ensemble.label = label
        encoder, mask = run(), probability >= 0.5
        assert encoder.encode() == rle_encode(mask)
        assert np.array_equal(tifffile.imread(args.out / "a.tiff"), mask * 255)
        assert np.array_equal(tifffile.imread(args.out / "a.probabilities.tiff"),
                              np.floor(probability * 255 + 0.5))
        with Image.open(args.out / "a.preview.png") as image:
            painted = (np.asarray(image) == ORANGE).all(2)
        assert image.size == (50, 40) and painted.any() and mask[painted].all()
        polygons = read_polygons(args.out / "a.geojson")
        assert np.array_equal(Polygons(polygons, 40, 50).window(0, 0, 40, 50), mask)
        assert {each.name for each in polygons} == {label or "object"}
        assert finished_slides(ensemble, args) == set(args.slides)
        check_outputs(ensemble, args)


def test_files_are_recognised_by_slide_and_settings_and_others_refused(segmented):
    run, ensemble, args, _ = segmented
    run()
    args.min_area = 9
    assert finished_slides(ensemble, args) == set()
    with pytest.raises(ValueError, match="a.geojson: exists already, made in another way"):
        check_outputs(ensemble, args)
    args.geojson = False  # in no other file the smallest area counts
    assert finished_slides(ensemble, args) == set(args.slides)
    ensemble.threshold = 0.6
    with pytest.raises(ValueError, match="a.tiff: exists already, made in another way"):
        check_outputs(ensemble, args)
    ensemble.threshold = 0.5
    (args.out / "a.preview.png").unlink()
    assert finished_slides(ensemble, args) == set()
    check_outputs(ensemble, args)
    args.slides[0].unlink()
    check_outputs(ensemble, args)  # it was done before it was moved away
    ensemble.threshold = 0.6
    with pytest.raises(ValueError, match="a.png: no such file, and .* was made in another way"):
        check_outputs(ensemble, args)
    args.slides *= 2
    with pytest.raises(ValueError, match="a.png and .*a.png would both write it"):
        check_outputs(ensemble, args)


def test_a_slide_that_changes_meanwhile_leaves_no_files(segmented):
    run, _, args, _ = segmented
    with pytest.raises(ValueError, match="a.png: has changed while it was segmented"):
        run(lambda: Image.new("RGB", (50, 40)).save(args.slides[0]))
    assert list(args.out.iterdir()) == []
    for change in (lambda path: path.chmod(0o600), lambda path: path.touch()):  # of the same bytes
        run(partial(change, args.slides[0]))
        assert len(list(args.out.iterdir())) == 4
        for file in args.out.iterdir():
            file.unlink()


def test_the_table_is_no_other_file_and_no_table_of_other_slides(segmented, tmp_path):
    _, ensemble, args, _ = segmented
    for taken in (args.slides[0], args.out, args.out / "a.tiff", tmp_path):
        args.rle = taken
        with pytest.raises(ValueError, match="is the path of another file"):
            check_outputs(ensemble, args)
    args.rle = tmp_path / "table.csv"
    check_outputs(ensemble, args)
    for rows, refused in (([("a", "1 2")], False), ([("b", "")], True)):
        write_csv(args.rle, rows)
        if refused:
            with pytest.raises(ValueError, match="table.csv: exists already: move it away"):
                check_outputs(ensemble, args)
        else:
            check_outputs(ensemble, args)
        args.rle.unlink()
