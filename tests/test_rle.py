"""Run-length coding: there and back, and the same as counting pixel by pixel."""

import numpy as np
import pytest

from minseg.data.rle import rle_decode, rle_encode


def naive_encode(mask):
    """Walks down each column and counts, as the definition says."""
    runs, start, number = [], None, 0
    height, width = mask.shape
    for x in range(width):
        for y in range(height):
            number += 1
            if mask[y, x] and start is None:
                start = number
            if not mask[y, x] and start is not None:
                runs += [start, number - start]
                start = None
    if start is not None:
        runs += [start, number + 1 - start]
    return " ".join(str(n) for n in runs)


def one_pixel(height, width, y, x):
    mask = np.zeros((height, width), np.uint8)
    mask[y, x] = 1
    return mask


def random_mask(seed, height, width):
    rng = np.random.default_rng(seed)
    return (rng.random((height, width)) < rng.random()).astype(np.uint8)


MASKS = {
    "empty": np.zeros((4, 6), np.uint8),
    "full": np.ones((4, 6), np.uint8),
    "first pixel": one_pixel(4, 6, 0, 0),
    "last pixel": one_pixel(4, 6, 3, 5),
    "a pixel inside": one_pixel(7, 3, 5, 1),
    "one by one": np.ones((1, 1), np.uint8),
    "one row": np.array([[1, 0, 1, 1]], np.uint8),
    "one column": np.array([[1], [0], [1]], np.uint8),
    "random square": random_mask(0, 9, 9),
    "random wide": random_mask(1, 5, 13),
    "random high": random_mask(2, 13, 5),
    "random large": random_mask(3, 40, 31),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_decoding_gives_back_what_was_encoded(mask):
    decoded = rle_decode(rle_encode(mask), *mask.shape)
    assert decoded.dtype == np.uint8
    assert decoded.flags.c_contiguous
    assert np.array_equal(decoded, mask)


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_encoding_equals_counting_pixel_by_pixel(mask):
    assert rle_encode(mask) == naive_encode(mask)


def test_pixels_count_from_one_down_the_columns():
    mask = np.array([[1, 0, 0, 1],
                     [1, 0, 1, 1],
                     [0, 0, 1, 0]])
    assert rle_encode(mask) == "1 2 8 4"  # column by column: 110 000 011 110
    assert np.array_equal(rle_decode("1 2 8 4", 3, 4), mask)


def test_pixel_y_x_has_the_number_x_times_height_plus_y_plus_one():
    for y in range(3):
        for x in range(5):
            assert rle_encode(one_pixel(3, 5, y, x)) == f"{x * 3 + y + 1} 1"


def test_a_run_goes_on_from_one_column_to_the_next():
    assert rle_encode(np.ones((3, 4))) == "1 12"


def test_an_empty_mask_is_an_empty_string():
    assert rle_encode(np.zeros((3, 4), bool)) == ""
    assert not rle_decode("", 3, 4).any()
    assert rle_decode("  \n", 3, 4).shape == (3, 4)


@pytest.mark.parametrize("convert", [
    lambda mask: mask.astype(bool), lambda mask: mask * 255, lambda mask: mask.astype(np.float32),
    lambda mask: mask.astype(np.int64) * -1, lambda mask: np.asfortranarray(mask),
    lambda mask: mask.tolist(),
], ids=["bool", "0 and 255", "float", "negative", "by columns", "lists"])
def test_whatever_is_not_zero_is_positive(convert):
    mask = random_mask(3, 6, 11)
    assert rle_encode(convert(mask)) == naive_encode(mask)


def test_encoding_leaves_the_mask_as_it_was():
    mask = random_mask(4, 8, 5)
    before = mask.copy()
    rle_encode(mask)
    assert np.array_equal(mask, before)


def test_runs_may_come_in_any_order_and_overlap():
    assert np.array_equal(rle_decode("5 2 1 2 2 1", 2, 3), [[1, 0, 1], [1, 0, 1]])


@pytest.mark.parametrize("rle, words", [
    ("1", "1 numbers: they come in pairs"),
    ("1 2 3", "3 numbers: they come in pairs"),
    ("1 b", "else than whole numbers: '1 b'"),
    ("1.5 2", "else than whole numbers"),
    ("1,2", "else than whole numbers"),
    ("0 1", "run 0 1 leaves the image of 2 x 3 pixels"),
    ("-1 2", "run -1 2 leaves the image"),
    ("7 1", "run 7 1 leaves the image"),
    ("6 2", "run 6 2 leaves the image"),
    ("1 2 5 3", "run 5 3 leaves the image"),
    ("2 0", "run 2 0 leaves the image"),
    ("3 -2", "run 3 -2 leaves the image"),
])
def test_a_bad_string_is_refused_with_what_is_wrong(rle, words):
    with pytest.raises(ValueError) as error:
        rle_decode(rle, 2, 3)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_the_last_pixel_is_still_inside():
    assert rle_decode("6 1", 2, 3).tolist() == [[0, 0, 0], [0, 0, 1]]


def test_a_long_bad_string_is_shown_cut_short():
    with pytest.raises(ValueError) as error:
        rle_decode("x" * 10_000, 2, 3)
    assert len(str(error.value)) < 120
