"""Slides of any magnification at one size of pixel: areas, exact weights, windows to the bit."""

import itertools

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from minseg.files.masks import Item
from minseg.files.resample import Axis, Scaling, block_for, factors_for, whole_weights
from minseg.files.slides import open_slide, shrink
from minseg.run.bands import enlarge
from minseg.run.outputs import Preview
from minseg.run.tiles import CountingReader, cut

HEIGHT, WIDTH = 211, 173
FACTORS = (0.3, 0.55, 0.97, 1, 1.5, 1.98, 2, 3.2, 3.957, 7.9, 16.3, 500)


def noise(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def naive(array, factor, size):
    """The definition, along the first axis, in floating-point numbers."""
    pixels = np.arange(len(array))
    result = []
    for i in range(size):
        if factor < 1:  # between two centres
            place = min(max((i + 0.5) * factor - 0.5, 0), len(array) - 1)
            weights = np.maximum(0, 1 - abs(pixels - place))
        else:  # how much of each pixel lies between the edges; the last one reaches the end
            low, high = i * factor, len(array) if i + 1 == size else (i + 1) * factor
            weights = np.clip(np.minimum(pixels + 1, high) - np.maximum(pixels, low), 0, None)
        result.append(np.tensordot(weights / weights.sum(), array, (0, 0)))
    return np.array(result)


def write_slide(path, image, microns, **options):
    resolution = tuple(1e4 / size for size in np.broadcast_to(microns, 2))
    tifffile.imwrite(path, image, resolution=resolution, resolutionunit="CENTIMETER",
                     photometric="rgb", **options)
    return path


@pytest.mark.parametrize("rows, columns", [*zip(FACTORS, FACTORS), (1.5, 0.7), (2.25, 9.1)])
def test_a_scaled_pixel_is_the_mean_of_the_area_that_it_covers(rows, columns):
    image = noise(HEIGHT, WIDTH)
    scaling = Scaling(HEIGHT, WIDTH, (rows, columns), 1)
    assert abs(scaling.height * rows - HEIGHT) < rows or scaling.height == 1
    expected = naive(image.astype(float), rows, scaling.height)
    expected = naive(expected.swapaxes(0, 1), columns, scaling.width).swapaxes(0, 1)
    read = scaling.read(lambda y, x, h, w: image[y : y + h, x : x + w], 0, 0,
                        scaling.height, scaling.width)
    assert read.dtype == np.uint8 and read.shape == expected.shape
    assert abs(read - expected).max() < (0.75 if max(rows, columns) < 20 else 3)
    assert abs(read.mean() - expected.mean()) < 0.15


@pytest.mark.parametrize("factor", FACTORS)
def test_weights_are_whole_numbers_with_one_sum_and_equal_in_every_window(factor):
    axis = Axis(1000, factor)
    first, weights = axis.taps(0, axis.size)
    whole = whole_weights(weights)
    assert (whole.sum(1) == 2048).all()
    assert abs(whole / 2048 - weights).max() <= 1 / 2048
    for start, stop in itertools.pairwise(sorted({0, 1, axis.size // 3, axis.size})):
        some_first, some = axis.taps(start, stop)
        some = whole_weights(some)
        assert (some_first == first[start:stop]).all()
        assert (some == whole[start:stop, : some.shape[1]]).all()
        assert not whole[start:stop, some.shape[1] :].any()


@pytest.mark.parametrize("microns", [0.1, 0.3, 0.5, 0.83, 2.4, 90.0])
@pytest.mark.parametrize("kind", ["tiles", "strips", "pyramid", "png", "grey", "oblong"])
def test_a_window_is_the_same_part_of_the_whole_to_the_bit(tmp_path, monkeypatch, kind, microns):
    image, stated = noise(HEIGHT, WIDTH), None
    monkeypatch.setattr("minseg.files.resample.MOST", 5000)  # several pieces to a window
    path = tmp_path / "a.tif"
    if kind == "png":
        path, stated = tmp_path / "a.png", 0.25
        Image.fromarray(image).save(path)
    elif kind == "pyramid":
        with tifffile.TiffWriter(path) as tiff:
            for level, scale in enumerate((1, 2, 4)):
                tiff.write(shrink(image, scale), tile=(32, 32), photometric="rgb",
                           **({"subifds": 2, "resolution": (4e4, 4e4), "resolutionunit": 3}
                              if level == 0 else {"subfiletype": 1}))
    elif kind == "grey":
        tifffile.imwrite(path, image[..., 0], resolution=(4e4, 4e4), resolutionunit=3)
    else:
        write_slide(path, image, (0.25, 0.3) if kind == "oblong" else 0.25,
                    **({"tile": (32, 32), "compression": "zlib"} if kind == "tiles" else
                       {"rowsperstrip": 16}))
    slide = open_slide(path, microns=microns, pixel_size=stated)
    whole = slide.read_all()
    assert whole.shape == (slide.height, slide.width, 3)
    assert abs(slide.width * microns / 0.25 - WIDTH) <= max(microns / 0.25, 0.02 * WIDTH)
    generator = np.random.default_rng(1)
    for _ in range(20):
        (y0, y1), (x0, x1) = (np.sort(generator.integers(0, size + 1, 2))
                              for size in (slide.height, slide.width))
        window = slide.read(y0, x0, y1 - y0, x1 - x0)
        assert np.array_equal(window, whole[y0:y1, x0:x1])


@pytest.mark.parametrize("times", [1, 3, 4])
@pytest.mark.parametrize("size", [0.25, 0.25003, 0.2498, 1 / 3])
def test_a_whole_number_of_pixels_is_that_scale_to_the_byte(tmp_path, times, size):
    path = write_slide(tmp_path / "a.tif", noise(HEIGHT, WIDTH), size, tile=(32, 32))
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[20:90, 30:99] = 255
    Image.fromarray(mask).save(tmp_path / "m.png")
    item = Item("a", path, tmp_path / "m.png", "g")
    microns = times * round(size, 2) if size != 1 / 3 else times / 3
    slide, scaled = open_slide(path, microns=microns), open_slide(path, times)
    assert slide.scale == times and np.array_equal(slide.read_all(), scaled.read_all())
    options = {"tile": 16, "stride": 8, "margin": 4}
    one = cut(item, tmp_path, microns=microns, **options)
    other = cut(item, tmp_path, scale=times, **options)
    assert one.file != other.file and one.places == other.places and one.area == other.area
    assert (tmp_path / one.file).read_bytes() == (tmp_path / other.file).read_bytes()
    map = torch.rand(1, slide.height, slide.width)
    assert torch.equal(*(torch.cat([band for _, band in enumerate_bands(each, map)], 1)
                         for each in (slide, scaled)))


def enumerate_bands(slide, map, rows=7):
    """What `enlarge` makes of a map that comes in bands: the bands without their places."""
    bands = enumerate(map.split(rows, 1))
    return enumerate(band for _, band in enlarge(slide, ((i * rows, band) for i, band in bands)))


@pytest.mark.parametrize("size, factors", [
    ((0.25, 0.25), (4, 4)), ((0.2527, 0.2527), (3.957, 3.957)), ((0.2505, 0.2505), (4, 4)),
    ((0.5, 0.25), (4, 2)), ((0.9, 1.005), (1, 1.111)), ((3.0, 1.0), (1, 1 / 3)),
    ((0.047, 0.047), (21.277, 21.277))])
def test_factors_as_good_as_whole_are_whole(size, factors):
    assert factors_for(size, 1.0) == pytest.approx(factors, rel=1e-3)
    for factor in factors_for(size, 1.0):
        assert factor == int(factor) or abs(factor - max(1, round(factor))) >= 0.01


def test_a_sliver_at_the_end_belongs_to_the_last_scaled_pixel():
    axis = Axis(2001, 2000)  # one own pixel more: half a thousandth of a scaled one
    _, weights = axis.taps(0, axis.size)
    assert axis.size == 1 and np.allclose(weights, 1 / 2001) and weights.shape == (1, 2001)


@pytest.mark.parametrize("factors, levels, block", [
    ((4, 4), [2, 4], 4), ((6, 6), [4], 6), ((7.9, 7.9), [2, 4, 16], 4), ((9.5, 9.5), [4], 4),
    ((7.9, 7.9), [], 1), ((1.9, 1.9), [2], 1), ((0.5, 0.5), [2], 1), ((4, 4.5), [4], 4),
    ((2, 40.5), [4], 1), ((33.3, 33.3), [4, 32], 32)])
def test_it_begins_with_the_level_just_finer(factors, levels, block):
    assert block_for(factors, levels) == block


def test_of_a_pyramid_the_level_just_finer_is_decoded(tmp_path):
    values = {1: 10, 2: 20, 4: 40, 8: 80}
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        for scale, value in values.items():
            options = {"subifds": 3, "resolution": (4e4, 4e4), "resolutionunit": 3}
            tiff.write(np.full((-(-640 // scale), -(-480 // scale), 3), value, np.uint8),
                       tile=(32, 32), photometric="rgb",
                       **(options if scale == 1 else {"subfiletype": 1}))
    for microns, value in ((0.3, 10), (0.49, 10), (0.5, 20), (0.97, 20), (1.3, 40), (3.0, 40),
                           (5.3, 80), (2.13, 80), (0.1, 10)):
        slide = open_slide(tmp_path / "a.tif", microns=microns)
        assert (slide.read_all() == value).all(), microns
        assert slide.full_height == 640 and slide.height == pytest.approx(160 / microns, abs=2)


@pytest.mark.parametrize("microns", [0.3, 0.7, 1.1, 3.3])
@pytest.mark.parametrize("void", [False, True])
def test_masks_go_by_majority_and_each_of_their_pixels_is_counted_once(tmp_path, microns, void):
    generator = np.random.default_rng(2)
    path = write_slide(tmp_path / "a.tif", noise(HEIGHT, WIDTH), 0.5)
    mask = np.kron(generator.integers(0, 2, (27, 22)), np.ones((8, 8)))[:HEIGHT, :WIDTH]
    mask = mask.astype(np.uint8)
    if void:
        mask[:60, :50] = 255
        mask[60, 0] = 1  # or 255 would mean object
    Image.fromarray(mask).save(tmp_path / "m.png")
    item = Item("a", path, tmp_path / "m.png", "g")
    whole = CountingReader(item.open(microns=microns), item)
    height, width = whole.slide.height, whole.slide.width
    label = whole.read(0, 0, height, width)[..., 3]
    pieces = CountingReader(item.open(microns=microns), item)
    rows = [pieces.read(y, 0, min(5, height - y), width) for y in range(0, height, 5)]
    assert np.array_equal(np.concatenate(rows)[..., 3], label)
    for reader in (whole, pieces):
        assert reader.positive == (mask == 1).sum() and reader.void == (mask == 255).sum()
        assert sum(reader.objects()) == reader.positive
    share = naive(naive((mask == 1).astype(float), *(microns / 0.5, height)).T,
                  *(microns / 0.5, width)).T
    lost = naive(naive((mask == 255).astype(float), microns / 0.5, height).T,
                 microns / 0.5, width).T
    sure = (abs(share + lost / 2 - 0.5) > 0.02) & (abs(lost - 0.5) > 0.02)
    expected = np.where(lost >= 0.5, 255, share + lost / 2 >= 0.5)
    assert sure.mean() > 0.5 and (label == expected)[sure].all()


@pytest.mark.parametrize("microns", [0.3, 0.5, 0.7, 1.0, 1.33, 9.0])
def test_results_come_back_at_the_slides_own_size(tmp_path, microns):
    path = write_slide(tmp_path / "a.tif", noise(HEIGHT, WIDTH), 0.5)
    slide = open_slide(path, microns=microns)
    map = torch.rand(2, slide.height, slide.width, dtype=torch.float64).float()
    factor = slide.scaling.factors[0]
    y, x = (np.clip((np.arange(n) + 0.5) / factor - 0.5, 0, size - 1)
            for n, size in ((HEIGHT, slide.height), (WIDTH, slide.width)))
    rows = np.maximum(0, 1 - abs(y[:, None] - np.arange(slide.height)))
    columns = np.maximum(0, 1 - abs(x[:, None] - np.arange(slide.width)))
    expected = torch.from_numpy(rows @ map.numpy() @ columns.T).float()
    results = []
    for height in (1, 4, slide.height):
        places = [y for y, _ in enlarge(slide, ((i * height, band) for i, band
                                                in enumerate(map.split(height, 1))))]
        bands = [band for _, band in enumerate_bands(slide, map, height)]
        assert places == [0, *np.cumsum([band.shape[1] for band in bands])[:-1]]
        results.append(torch.cat(bands, 1))
    assert all(torch.equal(each, results[0]) for each in results)
    torch.testing.assert_close(results[0], expected, atol=1e-4, rtol=0)
    assert results[0].min() >= 0 and results[0].max() <= 1


def test_an_object_keeps_its_size_in_micrometres_and_its_place(tmp_path):
    """The same field seen at two magnifications is nearly the same scaled image."""
    y, x = np.mgrid[:480, :480] + 0.5
    field = 128 + 60 * np.sin(y / 31) + 60 * np.cos(x / 23)
    fine = np.repeat(field[..., None], 3, 2).round().astype(np.uint8)
    coarse = shrink(fine, 2)
    one = open_slide(write_slide(tmp_path / "f.tif", fine, 0.25), microns=0.8).read_all()
    two = open_slide(write_slide(tmp_path / "c.tif", coarse, 0.5), microns=0.8).read_all()
    assert one.shape == two.shape == (150, 150, 3)
    assert abs(one.astype(int) - two).max() <= 2


def test_a_slide_that_states_no_size_is_refused_unless_somebody_states_it(tmp_path):
    (tmp_path / "images").mkdir()
    for folder, table in ((tmp_path / "images", tmp_path), (tmp_path, tmp_path)):
        Image.fromarray(noise(50, 40)).save(folder / "a.png")
        with pytest.raises(ValueError) as error:
            open_slide(folder / "a.png", microns=0.5)
        assert str(error.value) == (
            f"{folder / 'a.png'}: states no usable size of its pixels, without which it cannot be "
            f"brought to 0.5 µm: add a line for it to {table / 'slides.csv'}, under the headings "
            "id,microns")
    slide = open_slide(tmp_path / "a.png", microns=0.5, pixel_size=0.2)
    assert (slide.height, slide.width, slide.microns, slide.scale) == (20, 16, 0.2, None)
    write_slide(tmp_path / "b.tif", noise(50, 40), 0.5)
    assert open_slide(tmp_path / "b.tif", pixel_size=0.52).notes == []
    slide = open_slide(tmp_path / "b.tif", pixel_size=0.25)
    assert slide.pixel_size == (0.25, 0.25)
    assert slide.notes == ["states a pixel of 0.5 x 0.5 µm, slides.csv one of 0.25: this counts"]
    assert "adds no detail" in open_slide(tmp_path / "b.tif", microns=0.3).notes[0]
    assert open_slide(tmp_path / "b.tif", microns=0.4).notes == []
    assert open_slide(tmp_path / "b.tif", microns=0.125).height == 200
    with pytest.raises(ValueError, match="0.5 µm, over four times the 0.12 asked"):
        open_slide(tmp_path / "b.tif", microns=0.12)
    for wrong in ({"microns": 0}, {"microns": -1}, {"pixel_size": float("nan")},
                  {"microns": float("inf")}, {"scale": 2, "microns": 1.0}):
        with pytest.raises(ValueError, match="micrometres above 0|cannot be given together"):
            open_slide(tmp_path / "b.tif", **wrong)


def test_only_without_microns_objects_are_said_to_look_stretched(tmp_path):
    path = write_slide(tmp_path / "a.tif", noise(50, 40), (0.25, 0.5))
    assert "look stretched" in open_slide(path).notes[0]
    assert open_slide(path, microns=1.0).notes == []
    slide = open_slide(path, pixel_size=0.25)  # and not where somebody says that they are square
    assert [note for note in slide.notes if "stretched" in note] == []


def test_a_preview_keeps_no_rows_that_it_does_not_use(tmp_path):
    path = write_slide(tmp_path / "a.tif", noise(HEIGHT, WIDTH), 0.25)
    for microns, used in ((0.25, True), (0.4, False), (1.0, False)):
        slide = open_slide(path, microns=microns)
        preview = Preview(path, slide, None)
        assert np.array_equal(preview.watching(slide.read)(0, 0, 9, 9), slide.read(0, 0, 9, 9))
        assert bool(preview.image._small) == used == preview.rows_suffice


@pytest.mark.parametrize("scale", [999, 1000, 1001, 2500])
def test_of_a_large_scale_the_last_row_is_not_a_sliver(tmp_path, scale):
    tifffile.imwrite(tmp_path / "a.tif", noise(2501, 3))
    slide = open_slide(tmp_path / "a.tif", scale)
    assert (slide.height, slide.width) == (-(-2501 // scale), 1)


def test_what_is_said_of_a_size_that_is_not_used_holds_beside_a_stated_one_too(tmp_path):
    tifffile.imwrite(tmp_path / "a.ome.tif", noise(50, 40), photometric="rgb", ome=True,
                     metadata={"axes": "YXS", "PhysicalSizeX": 100, "PhysicalSizeY": 100})
    write_slide(tmp_path / "b.tif", noise(50, 40), 0.5, metadata=None,
                description='{"shape": [100, 80, 3]}')
    for name, note in (("a.ome.tif", "which no slide has: it is ignored"),
                       ("b.tif", "or cut, and states no size of its own pixels")):
        with pytest.raises(ValueError, match="states no usable size of its pixels"):
            open_slide(tmp_path / name, microns=1.0)
        slide = open_slide(tmp_path / name, microns=1.0, pixel_size=0.5)
        assert slide.height == 25 and slide.notes[0].endswith(note)
