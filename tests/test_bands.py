"""Results that come in bands: whole files or none, and pictures reduced on the way."""

import errno
import threading
import time

import numpy as np
import pytest
import tifffile

from minseg.files.slides import open_slide, shrink
from minseg.run.bands import write_tiff
from minseg.run.outputs import Thumbnail


@pytest.fixture(scope="module")
def image():
    """Smooth and noisy parts, so that compression has something to do."""
    generator = np.random.default_rng(0)
    image = np.zeros((611, 530), np.uint8)
    image[100:400, 50:300] = 255
    image[:, 400:] = generator.integers(0, 256, (611, 130))
    return image


def cut(image, seed=0):
    """The image in bands of odd heights, empty ones among them."""
    generator, y = np.random.default_rng(seed), 0
    while y < len(image):
        yield image[:0]
        rows = int(generator.choice([1, 3, 17, 111, 301]))
        yield image[y : y + rows]
        y += rows


def write(path, image, bands, **options):
    with write_tiff(path, *image.shape, **options) as put:
        for band in bands:
            put(band)


def within(seconds, work):
    """What `work()` raises; fails where it hangs."""
    errors = []

    def run():
        try:
            errors.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert errors, "it hangs"
    if errors[0]:
        raise errors[0]


@pytest.mark.parametrize("x, y", [(0.2527, 0.2527), (0.499, 0.25), (1 / 3, 0.1), (42.3, 0.001)])
def test_a_pixel_size_is_stated_to_five_digits(tmp_path, image, x, y):
    write(tmp_path / "a.tiff", image, cut(image), pixel_size=(x, y))
    assert open_slide(tmp_path / "a.tiff").pixel_size == pytest.approx((x, y), rel=1e-5)


@pytest.mark.parametrize("size", [(611, 530), (256, 256), (512, 300), (257, 1), (1, 257), (1, 1)])
@pytest.mark.parametrize("seed", [0, 1])
def test_bands_of_any_height_read_back_as_the_image(tmp_path, image, size, seed):
    image = image[: size[0], : size[1]]
    write(tmp_path / "a.tiff", image, cut(image, seed))
    read = tifffile.imread(tmp_path / "a.tiff")
    assert read.dtype == np.uint8 and read.shape == image.shape
    np.testing.assert_array_equal(read, image)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tiff"]


def test_one_band_and_one_band_a_row_are_the_same_file(tmp_path, image):
    write(tmp_path / "whole.tiff", image, [image], description="note")
    rows = (band for row in image[:, None] for band in (row, image[:0]))  # and empty ones between
    write(tmp_path / "rows.tiff", image, rows, description="note")
    write(tmp_path / "again.tiff", image, cut(image), description="note")
    first, second, third = (path.read_bytes() for path in sorted(tmp_path.iterdir()))
    assert first == second == third


def test_the_file_is_in_compressed_tiles_and_carries_its_description(tmp_path, image):
    text = '{"slide": "kidney.tiff", "threshold": 0.5}'
    write(tmp_path / "a.tiff", image, cut(image), description=text)
    with tifffile.TiffFile(tmp_path / "a.tiff") as tiff:
        assert len(tiff.pages) == 1
        page = tiff.pages[0]
        assert page.is_tiled and (page.tilelength, page.tilewidth) == (256, 256)
        assert page.compression.name in ("ADOBE_DEFLATE", "DEFLATE")
        assert page.photometric.name == "MINISBLACK"
        assert page.description == text
        assert "DateTime" not in page.tags  # else no two files were the same
    assert (tmp_path / "a.tiff").stat().st_size < image.size / 2


def test_without_a_description_there_is_none(tmp_path, image):
    write(tmp_path / "a.tiff", image, [image])
    with tifffile.TiffFile(tmp_path / "a.tiff") as tiff:
        assert tiff.pages[0].description == ""


def test_it_is_written_while_the_bands_come(tmp_path, image):
    wide = np.random.default_rng(0).integers(0, 256, (4096, 512), np.uint8)
    with write_tiff(tmp_path / "a.tiff", *wide.shape) as put:
        for y in range(0, 4096, 256):
            put(wide[y : y + 256])
        temporary, = tmp_path.iterdir()
        assert temporary.name != "a.tiff" and temporary.stat().st_size > 2048 * 512
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.tiff"), wide)


def test_the_file_is_not_there_before_the_last_band(tmp_path, image):
    (tmp_path / "a.tiff").write_text("old")
    with write_tiff(tmp_path / "a.tiff", *image.shape) as put:
        put(image[:600])
        assert (tmp_path / "a.tiff").read_text() == "old"
        put(image[600:])
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.tiff"), image)


@pytest.mark.parametrize("rows, missing", [(0, 256), (1, 255), (256, 256), (511, 1), (610, 1)])
def test_too_few_rows_are_an_error_and_no_file(tmp_path, image, rows, missing):
    with pytest.raises(ValueError, match=r"a\.tiff: \d+ rows are missing"):
        within(20, lambda: write(tmp_path / "a.tiff", image, [image[:rows]]))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("rows", [0, 300, 611])
def test_an_error_inside_the_block_comes_out_and_nothing_stays(tmp_path, image, rows, failure):
    (tmp_path / "other.tiff").write_text("other")

    def work():
        with write_tiff(tmp_path / "a.tiff", *image.shape) as put:
            put(image[:rows])
            raise failure("stop")

    with pytest.raises(failure, match="stop"):
        within(20, work)
    assert [path.name for path in tmp_path.iterdir()] == ["other.tiff"]


@pytest.mark.parametrize("after", [0, 1, 4, 9])
def test_a_disk_that_is_full_is_an_error_that_comes_out_and_does_not_hang(
        tmp_path, image, monkeypatch, after):
    def imwrite(file, tiles, **options):
        file.write_bytes(b"II")
        for _ in range(after):
            next(tiles)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tifffile, "imwrite", imwrite)
    with pytest.raises(OSError, match="No space left") as error:
        within(20, lambda: write(tmp_path / "a.tiff", image, image[:, None]))
    assert error.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_the_program_hears_of_a_full_disk_long_before_the_last_band(tmp_path, image, monkeypatch):
    def imwrite(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tifffile, "imwrite", imwrite)
    given = []

    def bands():
        for row in image[:, None]:
            given.append(row)
            time.sleep(0.001)
            yield row

    with pytest.raises(OSError):
        within(20, lambda: write(tmp_path / "a.tiff", image, bands()))
    assert len(given) < len(image) / 2


def test_a_folder_that_is_not_there_is_an_error_and_does_not_hang(tmp_path, image):
    with pytest.raises(OSError):
        within(20, lambda: write(tmp_path / "none" / "a.tiff", image, image[:, None]))


def test_bands_of_another_width_are_refused(tmp_path, image):
    with pytest.raises(ValueError):
        within(20, lambda: write(tmp_path / "a.tiff", image, [image[:100], image[100:, 1:]]))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", [1, 2, 7, 64, 1000])
@pytest.mark.parametrize("colours", [(), (3,)])
def test_a_thumbnail_of_bands_is_the_whole_image_shrunk(step, colours):
    image = np.random.default_rng(0).integers(0, 256, (331, 97, *colours), np.uint8)
    for seed in range(3):
        thumbnail = Thumbnail(step)
        for band in cut(image, seed):
            thumbnail.add(band)
        assert thumbnail.image().dtype == np.uint8
        np.testing.assert_array_equal(thumbnail.image(), shrink(image, step))


def test_a_thumbnail_can_be_looked_at_before_the_end_and_goes_on(image):
    thumbnail = Thumbnail(8)
    thumbnail.add(image[:101])
    np.testing.assert_array_equal(thumbnail.image(), shrink(image[:101], 8))
    thumbnail.add(image[101:])
    np.testing.assert_array_equal(thumbnail.image(), shrink(image, 8))


def test_a_thumbnail_keeps_no_band(image):
    thumbnail, wide = Thumbnail(100), np.zeros((50, 4000), np.uint8)
    for value in range(10):  # the caller may use the same memory again
        wide[:] = 10 * value
        thumbnail.add(wide)
    assert thumbnail.image()[:, 0].tolist() == [5, 25, 45, 65, 85]


def test_from_two_gibibytes_on_a_file_is_a_bigtiff(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(tifffile, "imwrite", lambda *_, **options: written.append(options))
    for height, width in ((2**16, 2**15), (2**16 + 1, 2**15), (2**15, 2**16 + 1)):
        with write_tiff(tmp_path / "a.tiff", height, width):
            pass
    assert [options["bigtiff"] for options in written] == [False, True, True]
