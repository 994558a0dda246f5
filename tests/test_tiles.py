"""Training tiles: nothing of a slide is left out, and image and mask stay together."""

import numpy as np
import pytest
import torch
from PIL import Image

from minseg.data.slides import Item, shrink
from minseg.data.tiles import BLANK_CONTRAST, LabelledSlide, Tiles


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def blobs(height, width, seed=0):
    coarse = np.random.default_rng(seed).random((height // 5 + 1, width // 5 + 1)) > 0.7
    return coarse.repeat(5, 0).repeat(5, 1)[:height, :width].astype(np.uint8)


def labelled(folder, image, mask, scale=1, name="a"):
    item = Item(name, folder / f"{name}.png", folder / f"{name}.mask.png", name)
    Image.fromarray(image).save(item.image)
    Image.fromarray(mask).save(item.mask)
    return LabelledSlide(item, scale)


def mirrored(array, top, left, size):
    """The window of that size at (top, left), beyond the border mirrored with the edge twice."""
    def places(start, length):
        period = np.arange(start, start + size) % (2 * length)
        return np.where(period < length, period, 2 * length - 1 - period)

    return array[np.ix_(places(top, array.shape[0]), places(left, array.shape[1]))]


SIZES = [(64, 96), (61, 93), (40, 33)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tile, stride", [(32, 32), (32, 20), (17, 5)])
def test_every_pixel_lies_in_a_tile_and_no_tile_leaves_the_slide(tmp_path, size, tile, stride):
    tiles = Tiles([labelled(tmp_path, noise(*size), blobs(*size))], tile, stride, margin=4)
    seen = np.zeros(size, int)
    for _, y, x in tiles.places:
        assert 0 <= y <= size[0] - tile and 0 <= x <= size[1] - tile
        seen[y : y + tile, x : x + tile] += 1
    assert seen.min() >= 1
    assert len(tiles) == len(tiles.places) == len(tiles.mask_area) == len(tiles.blank)


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("size", SIZES)
def test_a_tile_without_its_margin_is_that_window_of_the_slide(tmp_path, size, scale):
    slide = labelled(tmp_path, noise(*size), blobs(*size), scale)
    tiles = Tiles([slide], 16, 12, margin=5)
    images, masks = tiles.batch(range(len(tiles)))
    halves = shrink(slide.mask * 255, scale) >= 128
    for (_, y, x), image, mask in zip(tiles.places, images, masks):
        window = slide.slide.read(y, x, 16, 16)
        assert np.array_equal(image[:, 5:-5, 5:-5].permute(1, 2, 0), window)
        assert np.array_equal(mask[0, 5:-5, 5:-5], halves[y : y + 16, x : x + 16])


@pytest.mark.parametrize("margin", [0, 5, 24])
@pytest.mark.parametrize("size", [(40, 56), (41, 33), (10, 9), (24, 11)])
def test_the_margin_holds_the_neighbours_and_beyond_the_border_a_mirror(tmp_path, size, margin):
    image, mask = noise(*size), blobs(*size)
    tiles = Tiles([labelled(tmp_path, image, mask)], 24, 16, margin)
    images, masks = tiles.batch(range(len(tiles)))
    assert tiles.size == 24 + 2 * margin
    for (_, y, x), tile, positive in zip(tiles.places, images, masks):
        window = y - margin, x - margin, tiles.size
        assert np.array_equal(tile.permute(1, 2, 0), mirrored(image, *window))
        assert np.array_equal(positive[0], mirrored(mask, *window))


def test_an_image_smaller_than_the_tile_gives_one_tile_and_the_share_of_its_own_pixels(tmp_path):
    mask = np.zeros((10, 8), np.uint8)
    mask[0, :4] = 1
    tiles = Tiles([labelled(tmp_path, noise(10, 8), mask)], 16, 8, margin=2)
    assert tiles.places == [(0, 0, 0)]
    assert tiles.mask_area.tolist() == pytest.approx([4 / 80])
    assert tiles.batch([0])[0].shape == (1, 3, 20, 20)


def test_batches_have_the_shapes_and_types_promised_in_the_order_asked(tmp_path):
    slides = [labelled(tmp_path, noise(40, 50, i), blobs(40, 50, i), 1, f"s{i}") for i in range(2)]
    tiles = Tiles(slides, 16, 12, margin=3)
    images, masks = tiles.batch([5, 0, 5, len(tiles) - 1])
    assert (images.shape, images.dtype) == ((4, 3, 22, 22), torch.uint8)
    assert (masks.shape, masks.dtype) == ((4, 1, 22, 22), torch.uint8)
    assert set(masks.unique().tolist()) == {0, 1}
    assert torch.equal(images[0], images[2]) and not torch.equal(images[0], images[1])
    for i, index in enumerate([5, 0, 5, len(tiles) - 1]):
        alone = tiles.batch([index])
        assert torch.equal(images[i], alone[0][0]) and torch.equal(masks[i], alone[1][0])


def test_tiles_of_several_slides_know_which_they_come_from(tmp_path):
    sizes = [(20, 36), (50, 20)]
    slides = [labelled(tmp_path, noise(*size, i), blobs(*size, i), 1, f"s{i}")
              for i, size in enumerate(sizes)]
    tiles = Tiles(slides, 16, 16, margin=0)
    images, masks = tiles.batch(range(len(tiles)))
    assert {index for index, _, _ in tiles.places} == {0, 1}
    for (index, y, x), image, mask in zip(tiles.places, images, masks):
        inner = np.s_[y : y + 16, x : x + 16]
        assert np.array_equal(image.permute(1, 2, 0), slides[index].image[inner])
        assert np.array_equal(mask[0], slides[index].mask[inner])


@pytest.mark.parametrize("scale", [1, 2])
def test_mask_area_is_the_positive_share_of_the_tile_without_margin(tmp_path, scale):
    mask = blobs(70, 61)
    tiles = Tiles([labelled(tmp_path, noise(70, 61), mask, scale)], 20, 11, margin=7)
    masks = tiles.batch(range(len(tiles)))[1]
    assert tiles.mask_area.dtype == torch.float32
    assert torch.allclose(tiles.mask_area, masks[:, :, 7:-7, 7:-7].float().mean((1, 2, 3)))
    assert 0 < tiles.mask_area.max() < 1
    if scale == 1:
        shares = [mask[y : y + 20, x : x + 20].mean() for _, y, x in tiles.places]
        assert np.allclose(tiles.mask_area, shares)


def test_half_a_block_or_more_is_positive_at_a_coarser_scale(tmp_path):
    mask = np.zeros((4, 8), np.uint8)
    mask[0, 0] = mask[0, 2:4] = mask[:2, 4:6] = mask[3, 7] = mask[2, 6] = 1
    tiles = Tiles([labelled(tmp_path, noise(4, 8), mask, 2)], 2, 2, margin=0)
    left, right = tiles.batch([0, 1])[1]
    assert left[0].tolist() == [[0, 1], [0, 0]]
    assert right[0].tolist() == [[1, 0], [0, 1]]


def test_at_a_coarser_scale_the_slide_is_smaller_but_its_image_and_mask_are_not(tmp_path):
    slide = labelled(tmp_path, noise(41, 62), blobs(41, 62), 2)
    assert (slide.slide.height, slide.slide.width) == (21, 31)
    assert slide.image.shape == (41, 62, 3) and slide.mask.shape == (41, 62)


def glass(size, level=240, spread=2):
    flat = np.random.default_rng(0).integers(-spread, spread + 1, (size, size, 1))
    return np.repeat(level + flat, 3, 2).astype(np.uint8)


@pytest.mark.parametrize("level", [3, 128, 240])
def test_a_tile_without_positives_and_contrast_is_blank(tmp_path, level):
    slide = labelled(tmp_path, glass(32, level), np.zeros((32, 32), np.uint8))
    assert Tiles([slide], 32, 32, margin=4).blank.tolist() == [True]


def test_a_tile_with_a_single_positive_pixel_is_never_blank(tmp_path):
    mask = np.zeros((32, 32), np.uint8)
    mask[31, 31] = 1
    tiles = Tiles([labelled(tmp_path, glass(32), mask)], 32, 32, margin=4)
    assert tiles.blank.tolist() == [False]
    assert tiles.mask_area.item() == pytest.approx(1 / 1024)


def test_a_tile_with_texture_is_never_blank(tmp_path):
    empty = np.zeros((32, 32), np.uint8)
    half = glass(32)
    half[:, :16] -= 40
    for image in (noise(32, 32), half):
        assert Tiles([labelled(tmp_path, image, empty)], 32, 32, 4).blank.tolist() == [False]


@pytest.mark.parametrize("factor, blank", [(0.8, True), (1.2, False)])
def test_the_contrast_that_counts_is_the_deviation_of_the_brightness(tmp_path, factor, blank):
    image = np.full((32, 32, 3), 100, np.uint8)
    image[16:] += np.uint8(round(2 * BLANK_CONTRAST * factor))  # deviation: half of the difference
    tiles = Tiles([labelled(tmp_path, image, np.zeros((32, 32), np.uint8))], 32, 32, 0)
    assert tiles.blank.tolist() == [blank]


def test_the_margin_has_no_say_in_what_is_blank_or_positive(tmp_path):
    image, mask = np.full((32, 64, 3), 240, np.uint8), np.zeros((32, 64), np.uint8)
    image[:, 32:], mask[:, 32:] = noise(32, 32), 1
    tiles = Tiles([labelled(tmp_path, image, mask)], 32, 32, margin=16)
    assert tiles.blank.tolist() == [True, False]
    assert tiles.mask_area.tolist() == [0, 1]
    assert tiles.batch([0])[1].any()


@pytest.mark.parametrize("shape", [(30, 40), (20, 30), (1, 1), (15, 20)])
def test_a_mask_of_another_size_than_its_image_is_refused_by_name(tmp_path, shape):
    with pytest.raises(ValueError) as error:
        labelled(tmp_path, noise(30, 20), np.zeros(shape, np.uint8), scale=2)
    assert str(error.value) == (f"{tmp_path / 'a.mask.png'}: is {shape[0]} x {shape[1]} pixels"
                                ", its image 30 x 20: make them equal")


def test_an_image_or_mask_that_cannot_be_read_is_refused_by_name(tmp_path):
    labelled(tmp_path, noise(8, 8), np.zeros((8, 8), np.uint8))
    item = Item("a", tmp_path / "a.png", tmp_path / "a.mask.png", "a")
    for path in (item.mask, item.image):
        path.write_bytes(b"")
        with pytest.raises(ValueError) as error:
            LabelledSlide(item)
        assert str(error.value).startswith(f"{path}: ")


def test_a_stride_longer_than_the_tile_is_refused(tmp_path):
    slide = labelled(tmp_path, noise(64, 64), blobs(64, 64))
    with pytest.raises(ValueError, match="stride 33"):
        Tiles([slide], 32, 33, margin=0)
