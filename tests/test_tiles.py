"""Training tiles: nothing of a slide is left out, and image and mask stay together."""

import json
import multiprocessing
import os
import threading
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import minseg.files.tiff
import minseg.run.tiles
from minseg.files.atomic import content
from minseg.files.masks import Item
from minseg.files.rle import rle_encode
from minseg.run.tiles import BLANK_CONTRAST, Tiles, cut, differences, made_from
from minseg.tiling import tile_starts

ONE = dict(scale=1, tile=16, stride=12, margin=4)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def blobs(height, width, seed=0):
    coarse = np.random.default_rng(seed).random((height // 5 + 1, width // 5 + 1)) > 0.7
    return coarse.repeat(5, 0).repeat(5, 1)[:height, :width].astype(np.uint8)


def batch(tiles, indices):
    """Images and masks of these tiles."""
    return next(tiles.batches(torch.tensor([indices])))


def slide(folder, image, mask, name="a", suffix="png", **options):
    """An item whose files are written, in sub-folders: the cache has `folder` / "cache"."""
    for part in ("images", "masks", "cache"):
        (folder / part).mkdir(exist_ok=True, parents=True)
    image_path, mask_path = folder / "images" / f"{name}.{suffix}", folder / "masks" / f"{name}.png"
    item = Item(name, image_path, mask_path, name)
    if suffix == "png":
        Image.fromarray(image).save(item.image)
    else:
        tifffile.imwrite(item.image, image, photometric="rgb", **options)
    Image.fromarray(mask).save(item.mask)
    return item


def with_runs(item, mask):
    return replace(item, mask=item.mask.with_suffix(".csv"), runs=rle_encode(mask))


def cut_tiles(folder, image, mask, *, scale=1, tile=16, stride=16, margin=0):
    facts = cut(slide(folder, image, mask), folder / "cache", scale=scale, tile=tile,
                stride=stride, margin=margin)
    return facts, Tiles(folder / "cache", [facts], tile, margin)


def contents(folder):
    return {path.name: path.read_bytes() for path in (folder / "cache").iterdir()}


def blocks(array, scale):
    """Means of blocks, halves rounded up."""
    height, width = array.shape[:2]
    means = [[array[y : y + scale, x : x + scale].mean((0, 1), dtype=np.float64)
              for x in range(0, width, scale)] for y in range(0, height, scale)]
    return np.floor(np.array(means) + 0.5).astype(np.uint8)


def naive(image, mask, scale, tile, stride, margin):
    """All tiles of a slide in memory: their places and pixels (N, size, size, 4), blank or not."""
    small = np.dstack([blocks(image, scale), blocks(mask * np.uint8(100), scale) >= 50])
    height, width = small.shape[:2]
    edges = [(margin, margin + max(0, tile - n)) for n in (height, width)]
    padded = np.pad(small, [*edges, (0, 0)], mode="symmetric")
    places = [(y, x) for y in tile_starts(height, tile, stride)
              for x in tile_starts(width, tile, stride)]
    size = tile + 2 * margin
    return small, places, np.stack([padded[y : y + size, x : x + size] for y, x in places])


def mirrored(array, top, left, size):
    """The window of that size at (top, left), beyond the border mirrored with the edge twice."""
    def places(start, length):
        period = np.arange(start, start + size) % (2 * length)
        return np.where(period < length, period, 2 * length - 1 - period)

    return array[np.ix_(places(top, array.shape[0]), places(left, array.shape[1]))]


def stacked(tiles):
    images, masks = batch(tiles, range(len(tiles)))
    return torch.cat([images, masks], 1).permute(0, 2, 3, 1).numpy()


# What a tile holds


SIZES = [(64, 96), (61, 93), (100, 34), (20, 17), (10, 75), (1, 1)]
GRIDS = [(16, 16, 0), (16, 16, 5), (16, 11, 5), (17, 5, 3), (24, 16, 24), (8, 8, 30)]


@pytest.mark.parametrize("size, grid, scale", [  # every grid on every size, each twice per scale
    (size, grid, (i + j) % 3 + 1) for i, size in enumerate(SIZES) for j, grid in enumerate(GRIDS)])
def test_tiles_are_windows_of_the_scaled_slide_mirrored_at_its_ends(tmp_path, size, grid, scale):
    tile, stride, margin = grid
    image, mask = noise(*size), blobs(*size)
    facts, tiles = cut_tiles(tmp_path, image, mask, scale=scale, tile=tile, stride=stride,
                             margin=margin)
    small, places, wanted = naive(image, mask, scale, tile, stride, margin)
    if size == (1, 1):  # one pixel has no contrast
        assert (facts.places, facts.blank, len(tiles)) == ([], 1, 0)
        return
    assert facts.places == [list(place) for place in places] and facts.blank == 0
    found = stacked(tiles)
    np.testing.assert_array_equal(found, wanted)
    for (y, x), pixels, area in zip(places, found, facts.area):
        np.testing.assert_array_equal(
            pixels, mirrored(small, y - margin, x - margin, tile + 2 * margin))
        assert area == pytest.approx(small[y : y + tile, x : x + tile, 3].mean(), abs=1e-12)


def test_half_a_block_or_more_is_positive_at_a_coarser_scale(tmp_path):
    mask = np.zeros((4, 8), np.uint8)
    mask[0, 0] = mask[0, 2:4] = mask[:2, 4:6] = mask[3, 7] = mask[2, 6] = 1
    _, tiles = cut_tiles(tmp_path, noise(4, 8), mask, scale=2, tile=2, stride=2)
    left, right = batch(tiles, [0, 1])[1]
    assert left[0].tolist() == [[0, 1], [0, 0]]
    assert right[0].tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("scale", [1, 2, 3, 5, 8, 31])
def test_a_pixel_less_than_half_a_block_is_not_positive(tmp_path, scale):
    mask = np.zeros((2, scale, scale), np.uint8)
    half = -(-scale * scale // 2)
    mask[0].flat[:half] = mask[1].flat[: half - 1] = 1
    _, tiles = cut_tiles(tmp_path, noise(scale, 2 * scale), np.hstack(mask), scale=scale, tile=2,
                         stride=2)
    assert batch(tiles, [0])[1][0, 0, 0].tolist() == [1, 0]


def test_image_and_mask_stay_together(tmp_path):
    mask = blobs(90, 70)
    image = np.repeat((mask * 200 + 20)[..., None], 3, 2)  # the image shows its mask
    for scale in (1, 5):  # blobs have sides of five pixels
        _, tiles = cut_tiles(tmp_path, image, mask, scale=scale, tile=10, stride=7, margin=6)
        images, masks = batch(tiles, range(len(tiles)))
        assert masks.any() and not masks.all()
        assert torch.equal(images == 220, masks.expand_as(images) == 1)


@pytest.mark.parametrize("options", [
    {"rowsperstrip": 7}, {"rowsperstrip": 7, "compression": "zlib"}, {"tile": (16, 32)},
    {"tile": (32, 16), "compression": "zlib", "predictor": True, "bigtiff": True}, {}], ids=str)
@pytest.mark.parametrize("scale", [1, 2])
def test_the_file_format_does_not_matter(tmp_path, options, scale):
    image, mask, one = noise(75, 60), blobs(75, 60), {**ONE, "scale": scale}
    item = slide(tmp_path, image, mask, suffix="tif", **options)
    wanted = naive(image, mask, **one)[2]
    for each in (item, with_runs(item, mask)):
        facts = cut(each, tmp_path / "cache", **one)
        np.testing.assert_array_equal(stacked(Tiles(tmp_path / "cache", [facts], 16, 4)), wanted)
        assert facts.positive == mask.sum()


@pytest.mark.parametrize("held", [1, 1000, 2**30])
@pytest.mark.parametrize("scale", [1, 3])
def test_the_bytes_do_not_depend_on_how_much_is_read_at_once(tmp_path, monkeypatch, held, scale):
    item = slide(tmp_path, noise(75, 60), blobs(75, 60), suffix="tif", rowsperstrip=5,
                 compression="zlib")
    cut(item, tmp_path / "cache", **{**ONE, "scale": scale})
    wanted = contents(tmp_path)
    for path in (tmp_path / "cache").iterdir():
        path.unlink()
    monkeypatch.setattr(minseg.files.tiff, "HELD", held)
    cut(item, tmp_path / "cache", **{**ONE, "scale": scale})
    assert contents(tmp_path) == wanted


# Facts


def test_facts_describe_the_slide_and_where_its_tiles_lie(tmp_path):
    image, mask = noise(41, 62), blobs(41, 62)
    item = slide(tmp_path, image, mask, suffix="tif", resolution=(20_000, 20_000),
                 resolutionunit="CENTIMETER")
    facts = asdict(cut(item, tmp_path / "cache", **{**ONE, "scale": 2}))
    small, places, _ = naive(image, mask, 2, 16, 12, 4)
    assert facts.pop("area") == pytest.approx(
        [small[y : y + 16, x : x + 16, 3].mean() for y, x in places])
    path, = (tmp_path / "cache").glob("*.tiles")
    assert facts == {"file": path.name, "height": 41, "width": 62, "microns": 0.5, "notes": [],
                     "kind": "1", "colour": "", "positive": int(mask.sum()), "void": 0,
                     "agreement": [0, 0], "objects": facts["objects"], "blank": 0,
                     "places": [[y, x] for y, x in places],
                     "made_from": {"image": content(item.image), "mask": content(item.mask)},
                     "source": ["a", {"image": str(item.image), "mask": str(item.mask)}, [], [],
                                None, 2, 16, 12, 4]}
    assert sum(facts["objects"]) == mask.sum()
    assert json.loads(path.with_suffix(".json").read_text()).items() >= facts.items()
    assert path.name.startswith("a-") and path.stat().st_size == len(places) * 24 * 24 * 4


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_void_is_kept_and_is_half_a_block_or_more(tmp_path, scale):
    mask = np.where(blobs(41, 62, seed=1), 255, blobs(41, 62)).astype(np.uint8)
    facts, tiles = cut_tiles(tmp_path, noise(41, 62), mask, scale=scale, tile=64)
    assert (facts.kind, facts.void, facts.positive) == (
        "void", (mask == 255).sum(), (mask == 1).sum())
    _, kept = batch(tiles, [0])
    for y, x in np.ndindex(-(-41 // scale), -(-62 // scale)):
        block = mask[y * scale : (y + 1) * scale, x * scale : (x + 1) * scale]
        void, known = (block == 255).mean(), block[block != 255]
        wanted = 255 if void >= 0.5 else int(known.mean() >= 0.5)
        tie = 0 < void < 0.5 and known.mean() == 0.5  # shares are rounded to 1/255
        assert tie or kept[0, 0, y, x] == wanted, (y, x, block)


def test_a_tile_that_is_entirely_void_is_left_out(tmp_path):
    mask = np.zeros((32, 32), np.uint8)
    mask[:16, :16], mask[20, 20] = 255, 1
    facts, _ = cut_tiles(tmp_path, noise(32, 32), mask)
    assert facts.places == [[0, 16], [16, 0], [16, 16]] and facts.blank == 1
    assert facts.area == [0, 0, 1 / 256]


def test_a_slide_is_cut_again_for_other_classes_or_another_white(tmp_path):
    item = slide(tmp_path, noise(32, 32), blobs(32, 32) * 255)
    files = {cut(replace(item, **change), tmp_path / "cache", **ONE).file
             for change in ({}, {}, {"ignore": ("255",)}, {"white": 4095}, {"labels": ("a",)})}
    assert len(files) == 4


def test_run_length_code_and_polygons_are_compared(tmp_path):
    mask = np.zeros((40, 60), np.uint8)
    mask[5:25, 10:40] = 1
    item = with_runs(slide(tmp_path, noise(40, 60), mask), mask)
    corners = [[10, 5], [40, 5], [40, 24], [10, 24], [10, 5]]  # a row less
    polygons = tmp_path / "a.json"
    polygons.write_text(json.dumps([{"type": "Feature", "properties": {}, "geometry": {
        "type": "Polygon", "coordinates": [corners]}}]))
    facts = cut(replace(item, polygons=polygons), tmp_path / "cache", **{**ONE, "scale": 2})
    assert facts.agreement == [19 * 30, 20 * 30 + 19 * 30] and facts.positive == 600


def test_an_unknown_pixel_size_is_null(tmp_path):
    assert cut_tiles(tmp_path, noise(20, 20), blobs(20, 20))[0].microns is None


def test_an_image_smaller_than_the_tile_gives_one_tile_and_the_share_of_its_own_pixels(tmp_path):
    mask = np.zeros((10, 8), np.uint8)
    mask[0, :4] = 1
    facts, tiles = cut_tiles(tmp_path, noise(10, 8), mask, stride=8, margin=2)
    assert tiles.places == [(0, 0, 0)]
    assert facts.area == [4 / 80]
    assert batch(tiles, [0])[0].shape == (1, 3, 20, 20)


@pytest.mark.parametrize("scale", [1, 2])
def test_each_positive_pixel_of_the_file_is_counted_once(tmp_path, scale):
    mask = blobs(61, 47)
    mask[0, 0] = mask[-1, -1] = 1
    facts, _ = cut_tiles(tmp_path, noise(61, 47), mask * 255, scale=scale, stride=3, margin=9)
    assert facts.positive == mask.sum()


def glass(height, width, level=240, spread=2):
    flat = np.random.default_rng(0).integers(-spread, spread + 1, (height, width, 1))
    return np.repeat(level + flat, 3, 2).astype(np.uint8)


@pytest.mark.parametrize("margin", [0, 20])
@pytest.mark.parametrize("size, scale", [((90, 120), 1), ((81, 133), 2)])
def test_every_pixel_lies_in_a_tile_or_in_one_counted_as_blank(tmp_path, size, scale, margin):
    image, mask = glass(*size), np.zeros(size, np.uint8)
    image[20:50, 30:70] = noise(30, 40)
    image[-9:, :15] = noise(9, 15)
    mask[70:75, 100:103] = 1
    facts, tiles = cut_tiles(tmp_path, image, mask, scale=scale, stride=13, margin=margin)
    small, places, pixels = naive(image, mask, scale, 16, 13, margin)
    windows = {(y, x): small[y : y + 16, x : x + 16] for y, x in places}
    keep = [place for place, window in windows.items() if window[..., 3].any()
            or window[::4, ::4, :3].mean(2).std() >= BLANK_CONTRAST]
    assert 5 < len(keep) < len(places) - 5
    assert [(0, *place) for place in keep] == tiles.places
    assert len(keep) + facts.blank == len(places)
    np.testing.assert_array_equal(stacked(tiles), pixels[[places.index(place) for place in keep]])
    unseen = np.ones(small.shape[:2], bool)
    for y, x in keep:
        assert 0 <= y <= small.shape[0] - 16 and 0 <= x <= small.shape[1] - 16
        unseen[y : y + 16, x : x + 16] = False
    assert not small[unseen][:, 3].any() and np.ptp(small[unseen][:, 0]) <= 4  # glass only


@pytest.mark.parametrize("level", [3, 128, 240])
def test_a_tile_without_positives_and_contrast_is_left_out(tmp_path, level):
    facts, tiles = cut_tiles(tmp_path, glass(32, 32, level), np.zeros((32, 32), np.uint8), tile=32,
                             stride=32, margin=4)
    assert (facts.blank, facts.places, facts.area, len(tiles)) == (1, [], [], 0)
    assert tiles.mask_area.shape == (0,) and tiles.blank == 1
    assert sorted(len(content) for content in contents(tmp_path).values())[0] == 0


def test_a_flat_tile_with_a_single_positive_pixel_is_kept(tmp_path):
    mask = np.zeros((32, 32), np.uint8)
    mask[31, 31] = 1
    facts, tiles = cut_tiles(tmp_path, glass(32, 32), mask, tile=32, stride=32, margin=4)
    assert (facts.blank, facts.area, len(tiles)) == (0, [1 / 1024], 1)


@pytest.mark.parametrize("factor, blank", [(0.8, 1), (1.2, 0)])
def test_the_contrast_that_counts_is_the_deviation_of_the_brightness(tmp_path, factor, blank):
    image = np.full((32, 32, 3), 100, np.uint8)
    image[16:] += np.uint8(round(2 * BLANK_CONTRAST * factor))  # deviation: half of the difference
    facts, _ = cut_tiles(tmp_path, image, np.zeros((32, 32), np.uint8), tile=32, stride=32)
    assert facts.blank == blank


def test_the_margin_does_not_decide_what_is_blank_or_positive(tmp_path):
    image, mask = np.full((32, 96, 3), 240, np.uint8), np.zeros((32, 96), np.uint8)
    image[:, 64:], mask[:, 64:] = noise(32, 32), 1
    mask[:, :1] = 1
    facts, tiles = cut_tiles(tmp_path, image, mask, tile=32, stride=32, margin=16)
    assert facts.blank == 1 and tiles.places == [(0, 0, 0), (0, 0, 64)]
    assert facts.area == [1 / 32, 1] and facts.positive == 33 * 32


# Progress


@pytest.mark.parametrize("size", [(100, 40), (97, 20), (16, 16), (9, 50), (40, 3)])
@pytest.mark.parametrize("scale, stride, margin", [(1, 16, 0), (1, 7, 20), (3, 5, 40)])
def test_shares_of_progress_sum_to_one_also_when_nothing_is_left_to_do(
        tmp_path, size, scale, stride, margin):
    item = slide(tmp_path, noise(*size), blobs(*size))
    for _ in range(2):
        shares = []
        cut(item, tmp_path / "cache", scale=scale, tile=16, stride=stride, margin=margin,
            progress=shares.append)
        assert min(shares) >= 0 and sum(shares) == pytest.approx(1, abs=1e-6)


def test_progress_is_reported_strip_by_strip(tmp_path):
    shares = []
    cut(slide(tmp_path, noise(96, 20), blobs(96, 20)), tmp_path / "cache", **{**ONE, "stride": 16},
        progress=shares.append)
    assert shares == pytest.approx([20 / 96, *[16 / 96] * 4, 12 / 96])


# The cache


def closed(*arguments):
    raise AssertionError("a slide is read")


@pytest.mark.parametrize("runs", [False, True])
def test_the_second_time_no_slide_is_read(tmp_path, monkeypatch, runs):
    mask = blobs(70, 60)
    item = slide(tmp_path, noise(70, 60), mask, suffix="tif", resolution=(3, 3))
    item = with_runs(item, mask) if runs else item
    facts, before = cut(item, tmp_path / "cache", **ONE), contents(tmp_path)
    monkeypatch.setattr(minseg.files.masks, "open_slide", closed)
    monkeypatch.setattr(minseg.run.tiles, "Mask", closed)
    assert cut(item, tmp_path / "cache", **ONE) == facts
    assert contents(tmp_path) == before and len(before) == 2


def test_other_settings_make_other_files(tmp_path):
    item = slide(tmp_path, noise(70, 60), blobs(70, 60))
    files = [cut(item, tmp_path / "cache", **{**ONE, **change}).file for change in (
        {}, {"scale": 2}, {"tile": 15}, {"stride": 11}, {"margin": 5}, {"tile": 12, "stride": 12})]
    assert len({*files}) == 6 and len(contents(tmp_path)) == 12


@pytest.mark.parametrize("part", ["image", "mask"])
def test_a_changed_file_is_cut_again(tmp_path, part):
    item = slide(tmp_path, noise(40, 30), blobs(40, 30))
    path, files = getattr(item, part), []

    def cut_again():
        files.append(cut(item, tmp_path / "cache", **ONE).file)
        return files[-1]

    cut_again()
    stat = path.stat()
    path.touch()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))  # later
    cut_again()
    with open(path, "ab") as file:
        file.write(b"\0" * 8)  # larger
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    cut_again()
    path.write_bytes(path.read_bytes()[:-8])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as at first, but it was written
    cut_again()
    assert len({*files}) == 4
    path.read_bytes()
    assert cut_again() == files[3]


def test_an_image_that_changes_while_it_is_cut_is_refused(tmp_path):
    item = slide(tmp_path, noise(40, 30), blobs(40, 30))

    def change(share):
        os.utime(item.mask, ns=(1, 1))

    with pytest.raises(ValueError, match=r"a\.png: it or its mask has changed while it was cut"):
        cut(item, tmp_path / "cache", **ONE, progress=change)
    assert not contents(tmp_path)


def test_what_tiles_are_made_from_is_known_by_content_not_by_place_and_time(tmp_path):
    image, mask = noise(40, 30), blobs(40, 30)
    first = slide(tmp_path / "here", image, mask)
    noted = {"a": cut(first, tmp_path / "here" / "cache", **ONE).made_from}
    moved = slide(tmp_path / "there", image, mask)
    assert differences({"a": made_from(moved)}, noted) == []
    assert differences({"a": made_from(with_runs(moved, mask))}, noted) == ["a (mask)"]
    assert differences({"b": made_from(moved)}, noted) == ["a (is not there any more)",
                                                           "b (is new)"]
    other = slide(tmp_path / "other", image[::-1], mask)
    assert differences({"a": made_from(other)}, noted) == ["a (image)"]


def test_files_at_another_place_are_other_files_but_a_path_may_be_written_in_another_way(
        tmp_path, monkeypatch):
    item = slide(tmp_path, noise(40, 30), blobs(40, 30))
    first = cut(item, tmp_path / "cache", **ONE).file
    monkeypatch.chdir(tmp_path)
    near = replace(item, image=Path("images/a.png"), mask=Path("images/../masks/a.png"))
    assert cut(near, Path("cache"), **ONE).file == first
    (tmp_path / "link").symlink_to(tmp_path / "images")
    assert cut(replace(item, image=Path("link/a.png")), Path("cache"), **ONE).file == first
    os.link("images/a.png", "images/b.png")
    assert cut(replace(item, image=Path("images/b.png")), Path("cache"), **ONE).file != first


def test_run_length_code_is_part_of_the_key_and_the_rest_of_its_table_is_not(tmp_path):
    mask = blobs(40, 30)
    item = with_runs(slide(tmp_path, noise(40, 30), mask), mask)
    item.mask.write_text("1")
    first = cut(item, tmp_path / "cache", **ONE).file
    item.mask.write_text("another table")
    assert cut(item, tmp_path / "cache", **ONE).file == first
    mask[0, 0] ^= 1
    other = cut(with_runs(item, mask), tmp_path / "cache", **ONE)
    assert other.file != first and other.positive == mask.sum()


def test_groups_are_not_part_of_the_key(tmp_path):
    item = slide(tmp_path, noise(40, 30), blobs(40, 30))
    first = cut(item, tmp_path / "cache", **ONE)
    assert cut(replace(item, group="other"), tmp_path / "cache", **ONE) == first


@pytest.mark.parametrize("size", [0, 1, -1, None], ids=["empty", "a byte", "too short", "longer"])
def test_damaged_tiles_are_refused_by_name(tmp_path, size):
    item = slide(tmp_path, noise(40, 30), blobs(40, 30))
    facts = cut(item, tmp_path / "cache", **ONE)
    path = tmp_path / "cache" / facts.file
    content = path.read_bytes()
    path.write_bytes(content[:size] if size is not None else content + b"\0")
    with pytest.raises(ValueError) as error:
        Tiles(tmp_path / "cache", [cut(item, tmp_path / "cache", **ONE)], 16, 4)
    assert str(error.value) == f"{path}: is damaged: delete it, and it will be cut again"
    path.unlink()
    with pytest.raises(ValueError, match="is damaged: delete it"):
        Tiles(tmp_path / "cache", [facts], 16, 4)
    assert cut(item, tmp_path / "cache", **ONE) == facts
    assert path.read_bytes() == content


def test_tiles_of_another_size_are_refused(tmp_path):
    facts = cut(slide(tmp_path, noise(40, 30), blobs(40, 30)), tmp_path / "cache", **ONE)
    for tile, margin in ((16, 5), (17, 4)):
        with pytest.raises(ValueError, match="is damaged"):
            Tiles(tmp_path / "cache", [facts], tile, margin)


def test_tiles_without_their_facts_are_cut_again(tmp_path):
    item = slide(tmp_path, noise(40, 30), blobs(40, 30))
    facts, before = cut(item, tmp_path / "cache", **ONE), contents(tmp_path)
    path = tmp_path / "cache" / facts.file
    path.with_suffix(".json").unlink()
    path.write_bytes(b"half of it")
    assert cut(item, tmp_path / "cache", **ONE) == facts
    assert contents(tmp_path) == before


def test_the_facts_are_written_after_the_tiles(tmp_path, monkeypatch):
    order, move = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: order.append(Path(b).suffix) or move(a, b))
    cut(slide(tmp_path, noise(40, 30), blobs(40, 30)), tmp_path / "cache", **ONE)
    assert order == [".tiles", ".json"]


@pytest.mark.parametrize("name", ["a.b", "slide [1]", "*", "-", "ä ö", "a-b.tiles"])
def test_names_may_hold_other_characters(tmp_path, name):
    item = slide(tmp_path, noise(40, 30), blobs(40, 30), name=name)
    facts = cut(item, tmp_path / "cache", **ONE)
    assert facts.file.startswith(f"{name}-") and facts.file.endswith(".tiles")
    assert len(Tiles(tmp_path / "cache", [facts], 16, 4)) == len(facts.places) > 0
    assert {Path(file).stem for file in contents(tmp_path)} == {facts.file[:-6]}


# What goes wrong


def test_a_cut_that_fails_leaves_nothing(tmp_path):
    item, shares = slide(tmp_path, noise(200, 40), blobs(200, 40), suffix="tif", rowsperstrip=8,
                         compression="zlib"), []
    whole = item.image.read_bytes()
    with tifffile.TiffFile(item.image) as file:
        last = file.pages[0].dataoffsets[-1]
    item.image.write_bytes(whole[:last] + bytes(len(whole) - last))
    with pytest.raises(ValueError, match="images/a.tif: cannot be read"):
        cut(item, tmp_path / "cache", **ONE, progress=shares.append)
    assert sum(shares) > 0.5 and contents(tmp_path) == {}
    item.image.write_bytes(whole)
    cut(item, tmp_path / "cache", **ONE)
    assert len(contents(tmp_path)) == 2


def test_a_mask_of_other_values_is_refused_before_anything_is_cut(tmp_path):
    mask, shares = blobs(200, 40), []
    mask[199, 39] = 7
    item = slide(tmp_path, noise(200, 40), mask)
    with pytest.raises(ValueError, match="masks/a.png: contains the values 0, 1, 7"):
        cut(item, tmp_path / "cache", **ONE, progress=shares.append)
    assert not shares and contents(tmp_path) == {}


def test_a_cut_that_fails_in_progress_or_in_writing_leaves_nothing(tmp_path, monkeypatch):
    item = slide(tmp_path, noise(80, 40), blobs(80, 40))

    def stop(share):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut(item, tmp_path / "cache", **ONE, progress=stop)
    assert contents(tmp_path) == {}

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        cut(item, tmp_path / "cache", **ONE)
    assert contents(tmp_path) == {}


def test_a_cut_that_fails_leaves_no_reading_thread_behind(tmp_path):
    item, before = slide(tmp_path, noise(200, 40), blobs(200, 40)), {*threading.enumerate()}

    def stop(share):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as error:
        cut(item, tmp_path / "cache", **ONE, progress=stop)
    assert not {*threading.enumerate()} - before
    assert error.tb  # also while somebody holds the error, and its frames


@pytest.mark.parametrize("part", ["image", "mask"])
def test_a_file_that_is_missing_or_cannot_be_read_is_named(tmp_path, part):
    item = slide(tmp_path, noise(40, 30), blobs(40, 30))
    path = getattr(item, part)
    path.write_bytes(b"no image")
    with pytest.raises(ValueError) as error:
        cut(item, tmp_path / "cache", **ONE)
    assert str(error.value).startswith(f"{path}: cannot be read")
    path.unlink()
    with pytest.raises(ValueError) as error:
        cut(item, tmp_path / "cache", **ONE)
    assert str(error.value) == f"{path}: no such file"
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("shape", [(30, 40), (20, 30), (1, 1), (15, 20)])
def test_a_mask_of_another_size_than_its_image_is_refused(tmp_path, shape):
    item = slide(tmp_path, noise(30, 20), np.zeros(shape, np.uint8))
    with pytest.raises(ValueError) as error:
        cut(item, tmp_path / "cache", **{**ONE, "scale": 2})
    assert str(error.value) == (f"{item.mask}: is {shape[0]} x {shape[1]} pixels, "
                                "but its image is 30 x 20: make them equal")
    assert contents(tmp_path) == {}


def test_runs_that_leave_the_image_are_refused_with_table_and_name(tmp_path):
    item = slide(tmp_path, noise(30, 20), blobs(30, 20))
    item = replace(item, mask=tmp_path / "train.csv", runs="600 2")
    with pytest.raises(ValueError) as error:
        cut(item, tmp_path / "cache", **ONE)
    assert str(error.value) == (
        f"{tmp_path / 'train.csv'}: a: run 600 2 leaves the image of 30 x 20 pixels: "
        "check that the code belongs to this image")
    assert contents(tmp_path) == {}


def test_a_stride_longer_than_the_tile_is_refused(tmp_path):
    item = slide(tmp_path, noise(64, 64), blobs(64, 64))
    with pytest.raises(ValueError, match="stride 17"):
        cut(item, tmp_path / "cache", **{**ONE, "stride": 17})
    assert contents(tmp_path) == {}


def cut_alone(item, folder, die):
    torch.set_num_threads(1)  # a forked process has none of the parent's other threads
    cut(item, folder, **ONE, progress=(lambda share: os._exit(9)) if die else (lambda share: None))


def begin(item, folder, *, die=False):
    """Another process that cuts the slide; a fork where there is one, as it imports nothing."""
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork" if "fork" in methods else None)
    process = context.Process(target=cut_alone, args=(item, folder, die))
    process.start()
    return process


@pytest.mark.skipif(os.name != "posix", reason="elsewhere nobody can tell who is alive")
def test_leftovers_of_a_dead_process_are_deleted_by_the_next_cut(tmp_path):
    item = slide(tmp_path, noise(80, 40), blobs(80, 40))
    process = begin(item, tmp_path / "cache", die=True)
    process.join(60)
    assert process.exitcode == 9
    left, = contents(tmp_path)
    assert left.startswith(".a-") and left.endswith(".tiles")
    facts = cut(item, tmp_path / "cache", **ONE)
    assert {*contents(tmp_path)} == {facts.file, facts.file.replace(".tiles", ".json")}


def test_two_processes_may_cut_one_slide_at_once(tmp_path):
    item = slide(tmp_path, noise(900, 300), blobs(900, 300))
    processes = [begin(item, tmp_path / "cache") for _ in range(2)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    found = contents(tmp_path)
    assert len(found) == 2
    for path in (tmp_path / "cache").iterdir():
        path.unlink()
    cut(item, tmp_path / "cache", **ONE)
    assert contents(tmp_path) == found


def test_a_cut_while_another_one_is_half_way_gives_the_same_files(tmp_path, monkeypatch):
    item, other = slide(tmp_path, noise(80, 40), blobs(80, 40)), []

    def meanwhile(share):
        if not other:
            other.append(None)
            with monkeypatch.context() as patch:
                patch.setattr(os, "getpid", lambda: 1)  # as a process that lives
                other[0] = cut(item, tmp_path / "cache", **ONE)
            other.append(contents(tmp_path))

    facts = cut(item, tmp_path / "cache", **ONE, progress=meanwhile)
    assert facts == other[0]
    assert len(other[1]) == 3  # of the two files being written one is left
    assert contents(tmp_path) == {name: content for name, content in other[1].items()
                                  if not name.startswith(".")}


# Batches


def test_batches_have_the_documented_shapes_and_types_in_the_requested_order(tmp_path):
    masks = [blobs(40, 50, i) for i in range(2)]
    items = [slide(tmp_path, noise(40, 50, i), mask, f"s{i}") for i, mask in enumerate(masks)]
    facts = [cut(item, tmp_path / "cache", **ONE) for item in items]
    tiles = Tiles(tmp_path / "cache", facts, 16, 4)
    wanted = np.concatenate([naive(noise(40, 50, i), mask, **ONE)[2]
                             for i, mask in enumerate(masks)])
    order = [5, 0, 5, len(tiles) - 1, 3]
    images, masks = batch(tiles, order)
    assert (images.shape, images.dtype) == ((5, 3, 24, 24), torch.uint8)
    assert (masks.shape, masks.dtype) == ((5, 1, 24, 24), torch.uint8)
    np.testing.assert_array_equal(images.permute(0, 2, 3, 1), wanted[order][..., :3])
    np.testing.assert_array_equal(masks[:, 0], wanted[order][..., 3])
    assert {*np.unique(wanted[..., 3])} == {0, 1}


def test_tiles_of_several_slides_know_which_they_come_from(tmp_path):
    sizes, places, areas, blank = [(20, 36), (50, 20), (40, 40)], [], [], 0
    facts = []
    for i, size in enumerate(sizes):
        image, mask = noise(*size, i), blobs(*size, i)
        image[:17, :16], mask[:17, :16] = 200, 0
        facts.append(cut(slide(tmp_path, image, mask, f"s{i}"), tmp_path / "cache", scale=1,
                         tile=16, stride=16, margin=0))
        places += [(i, y, x) for y, x in facts[-1].places]
        areas += facts[-1].area
        blank += facts[-1].blank
    tiles = Tiles(tmp_path / "cache", facts, 16, 0)
    assert tiles.places == places and {i for i, _, _ in places} == {0, 1, 2}
    assert len(tiles) == len(places) == len(tiles.mask_area)
    assert tiles.blank == blank == 3
    assert tiles.mask_area.dtype == torch.float32
    np.testing.assert_allclose(tiles.mask_area, areas, rtol=1e-6)
    images, masks = batch(tiles, range(len(tiles)))
    np.testing.assert_allclose(masks.double().mean((1, 2, 3)), areas)
    for (i, y, x), image in zip(places, images):
        wanted = noise(*sizes[i], i)
        wanted[:17, :16] = 200
        np.testing.assert_array_equal(image.permute(1, 2, 0), wanted[y : y + 16, x : x + 16])


def test_without_slides_there_are_no_tiles(tmp_path):
    tiles = Tiles(tmp_path, [], 16, 4)
    assert (len(tiles), tiles.places, tiles.blank, tiles.mask_area.shape) == (0, [], 0, (0,))
