"""Synthetic slides: repeatable, plausible, and not solvable by colour alone."""

import os
import sys
from contextlib import nullcontext
from itertools import chain

import numpy as np
import pytest
from PIL import Image

from minseg.synthetic import AROUND, photograph, room, synthetic_slide, transmitted, write_slides

synthetic = sys.modules[write_slides.__module__]


def features(image, mask):
    """Colour features of each pixel; the last is their best linear mix, fitted to the mask."""
    rgb = image.reshape(-1, 3).astype(np.float64)
    hsv = np.asarray(Image.fromarray(image).convert("HSV")).reshape(-1, 3)
    inside, outside = rgb[mask.ravel() == 1], rgb[mask.ravel() == 0]
    within = np.cov(inside.T) + np.cov(outside.T)
    fisher = rgb @ np.linalg.solve(within, inside.mean(0) - outside.mean(0))
    names = ("red", "green", "blue", "grey", "hue", "saturation", "fisher")
    return dict(zip(names, [*rgb.T, rgb.mean(1), hsv[:, 0], hsv[:, 1], fisher]))


def best_dice(feature, mask):
    """The Dice of the best threshold, with the positives above it or below it."""
    mask = mask.ravel() == 1
    every, edges = np.histogram(feature, bins=256)
    right, _ = np.histogram(feature[mask], bins=edges)
    below = 2 * right.cumsum() / (every.cumsum() + mask.sum())
    above = 2 * right[::-1].cumsum() / (every[::-1].cumsum() + mask.sum())
    return max(below.max(), above.max())


def tissue_colour(image):
    """Mean colour of clearly stained pixels: those dark in green, which both dyes absorb."""
    return image[image[..., 1] < 180].mean(axis=0)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not():
    first, again, other = (synthetic_slide(seed, 256, 256) for seed in (5, 5, 6))
    assert all(np.array_equal(a, b) for a, b in zip(first, again))
    assert not np.array_equal(first[0], other[0])
    assert not np.array_equal(first[1], other[1])


def test_the_best_threshold_does_find_objects_of_a_different_colour():
    mask = np.zeros((20, 20), np.uint8)
    mask[5:9, 5:9] = 1
    image = np.stack([200 - 100 * mask] * 3, axis=-1)
    assert best_dice(image[..., 0].ravel(), mask) == 1
    assert best_dice(255 - image[..., 0].ravel(), mask) == 1


@pytest.mark.parametrize("seed, mean, spread, positive", [
    (0, (176.84, 140.71, 202.28), (54.78, 81.66, 30.94), 86395),
    (1, (189.04, 146.24, 186.17), (38.76, 71.14, 37.62), 73971)])
def test_glass_surrounds_the_tissue_and_colour_alone_does_not_find_the_glomeruli(
        seed, mean, spread, positive):
    image, mask = synthetic_slide(seed)
    # Every kind of structure is on these: the slides of the published studies.
    assert image.mean((0, 1)) == pytest.approx(mean, abs=0.02)
    assert image.std((0, 1)) == pytest.approx(spread, abs=0.02)
    assert np.count_nonzero(mask) == pytest.approx(positive, abs=20)
    assert image.shape == (1024, 1024, 3) and mask.shape == (1024, 1024)
    assert image.dtype == mask.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 1}
    assert 0.03 < mask.mean() < 0.3

    border = np.concatenate([image[:4].reshape(-1, 3), image[-4:].reshape(-1, 3),
                             image[:, :4].reshape(-1, 3), image[:, -4:].reshape(-1, 3)])
    assert border.min() > 180
    assert image[400:600, 400:600, 1].mean() < 160

    dice = {name: best_dice(values, mask) for name, values in features(image, mask).items()}
    assert max(dice.values()) < 0.6, dice


def test_the_mask_is_bounded_by_bowmans_space_which_is_paler_than_the_tuft():
    image, mask = synthetic_slide(7, 512, 512)
    inside = np.argwhere(mask)
    # Between 3 and 6 pixels within the mask lies mostly the space, deeper mostly the tuft.
    depth = np.zeros(mask.shape, int)
    shrunk = mask.astype(bool)
    for step in range(16):
        depth[shrunk] = step + 1
        core = shrunk[1:-1, 1:-1]
        core = core & shrunk[:-2, 1:-1] & shrunk[2:, 1:-1] & shrunk[1:-1, :-2] & shrunk[1:-1, 2:]
        shrunk = np.pad(core, 1)
    assert len(inside) > 0
    green = image[..., 1].astype(float)
    assert green[(depth >= 4) & (depth <= 6)].mean() > green[depth == 16].mean() + 15


def test_slides_of_one_patient_share_a_stain():
    colours = np.array([
        [tissue_colour(synthetic_slide(10 * patient + i, 192, 192, patient=patient)[0])
         for i in range(2)]
        for patient in range(8)
    ])
    distance = np.linalg.norm(colours[:, None, 0] - colours[None, :, 1], axis=-1)
    same = np.eye(8, dtype=bool)
    assert distance[same].mean() < 0.5 * distance[~same].mean()


def test_without_a_patient_the_seed_is_the_patient():
    assert np.array_equal(synthetic_slide(4, 64, 64)[0], synthetic_slide(4, 64, 64, patient=4)[0])
    assert not np.array_equal(
        synthetic_slide(4, 64, 64)[0], synthetic_slide(4, 64, 64, patient=5)[0]
    )


@pytest.mark.parametrize("height, width", [(64, 64), (65, 301), (1500, 80), (256, 256)])
def test_any_size_works(height, width):
    for seed in range(3):
        image, mask = synthetic_slide(seed, height, width)
        assert image.shape == (height, width, 3) and mask.shape == (height, width)
        assert mask.any() or min(height, width) < 256


def test_a_slide_of_256_pixels_has_a_glomerulus_and_a_narrower_one_only_by_its_area():
    for seed in range(2):
        assert synthetic_slide(seed, 256, 256)[1].any()
        assert not synthetic_slide(seed, 100, 300)[1].any()
        assert not synthetic_slide(seed, 300, 100)[1].any()
        assert synthetic_slide(seed, 160, 300, glomeruli=(40, 40))[1].any()


@pytest.mark.parametrize(
    "arguments, value", [((0, 63, 64), "63 x 64"), ((-1,), "-1"), ((0, 64, 0), "64 x 0")]
)
def test_a_bad_size_or_seed_is_refused_with_its_value(arguments, value):
    with pytest.raises(ValueError, match=value):
        synthetic_slide(*arguments)


def test_a_written_data_set_has_images_masks_and_two_slides_per_patient(tmp_path):
    write_slides(tmp_path / "data", 3, seed=1, height=256, width=260)
    lines = (tmp_path / "data" / "groups.csv").read_text().splitlines()
    assert lines[0] == "id,group"
    names, groups = zip(*(line.split(",") for line in lines[1:]))
    assert len(set(names)) == 3
    assert groups[0] == groups[1] != groups[2]
    expected = {"groups.csv"}
    for name in names:
        expected |= {f"images/{name}.png", f"masks/{name}.png"}
        image = Image.open(tmp_path / "data" / "images" / f"{name}.png")
        mask = Image.open(tmp_path / "data" / "masks" / f"{name}.png")
        assert (image.mode, image.size) == ("RGB", (260, 256))
        assert (mask.mode, mask.size) == ("L", (260, 256))
        assert set(np.unique(mask)) == {0, 255}
    files = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert {path.relative_to(tmp_path / "data").as_posix() for path in files} == expected
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_slides_drawn_on_many_cores_are_those_drawn_on_one(tmp_path, monkeypatch):
    for cores in (1, 3):
        monkeypatch.setattr(os, "cpu_count", lambda: cores)
        write_slides(tmp_path / str(cores), 8, seed=2, height=96, width=80)
    one, many = ({path.relative_to(tmp_path / cores): path.read_bytes()
                  for path in (tmp_path / cores).rglob("*.*")} for cores in "13")
    assert one == many and len(one) == 17


@pytest.mark.parametrize("count, cores, others", [(7, 3, 0), (8, 3, 2), (8, 1, 0), (9, None, 0)])
def test_from_eight_slides_on_all_cores_are_used(tmp_path, monkeypatch, count, cores, others):
    jobs = []

    def process(folder, its_jobs):
        jobs.append([number for number, *_ in its_jobs])
        return nullcontext()

    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(synthetic, "in_another_process", process)
    monkeypatch.setattr(synthetic, "draw_files", lambda _, its_jobs: jobs.append(
        [number for number, *_ in its_jobs]))
    write_slides(tmp_path / "data", count, height=64, width=64)
    assert len(jobs) == others + 1 and sorted(chain(*jobs)) == list(range(count))


def test_a_failure_in_another_process_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(synthetic, "__file__", str(tmp_path / "gone.py"))
    with pytest.raises(OSError):
        write_slides(tmp_path / "data", 8, height=64, width=64)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_refused_and_left_as_it_is(tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(ValueError, match="data: exists already"):
        write_slides(tmp_path / "data", 1, height=64, width=64)
    assert [path.name for path in tmp_path.rglob("*")] == ["data"]


def test_a_failure_half_way_leaves_nothing_behind(tmp_path, monkeypatch):
    draw = synthetic_slide
    calls = []

    def fail_at_the_second(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 2:
            raise OSError("disk full")
        return draw(*arguments, **options)

    monkeypatch.setattr(synthetic, "synthetic_slide", fail_at_the_second)
    with pytest.raises(OSError, match="disk full"):
        write_slides(tmp_path / "data", 3, height=64, width=64)
    assert len(calls) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [{"count": 0}, {"seed": -1}, {"height": 63}])
def test_numbers_out_of_range_are_refused_with_their_value(tmp_path, options):
    value = str(next(iter(options.values())))
    with pytest.raises(ValueError, match=value):
        write_slides(tmp_path / "data", **{"count": 1, "height": 64, "width": 64, **options})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seed, mean, spread, positive, edges", [
    (0, (175.33, 136.92, 202.32), (54.83, 81.57, 30.78), 5988, 8.529),
    (1, (187.97, 144.27, 185.01), (40.02, 72.05, 38.60), 8746, 9.010),
    (2, (187.03, 141.34, 192.97), (56.03, 83.83, 44.34), 7319, 8.467)])
def test_slides_are_those_that_the_published_studies_were_measured_on(
        seed, mean, spread, positive, edges):
    image, mask = synthetic_slide(seed, 320, 400)
    assert image.mean((0, 1)) == pytest.approx(mean, abs=0.02)
    assert image.std((0, 1)) == pytest.approx(spread, abs=0.02)
    assert np.count_nonzero(mask) == pytest.approx(positive, abs=5)
    assert abs(np.diff(image.astype(int), axis=1)).mean() == pytest.approx(edges, abs=0.005)


def test_a_data_set_has_ten_slides_of_1024_pixels_unless_told_otherwise(tmp_path, monkeypatch):
    drawn = []

    def draw(seed, *size, patient, glomeruli):
        drawn.append((seed, patient, *size, glomeruli))
        return np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8)

    monkeypatch.setattr(synthetic, "synthetic_slide", draw)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    write_slides(tmp_path / "data")
    seeds, patients, *rest = zip(*drawn)
    assert rest == [(1024,) * 10, (1024,) * 10, ((8, 16),) * 10]
    assert len(set(seeds)) == 10 and patients == tuple(np.repeat(seeds[::2], 2))
    assert (tmp_path / "data" / "groups.csv").read_text().endswith("slide09,patient04\n")


def test_glass_that_is_too_bright_stays_white():
    image = photograph(np.random.default_rng(0), np.zeros((64, 64, 2), np.float32),
                       np.ones((2, 3), np.float32), np.float32([1.0, 1.2, 1.5]))
    assert image.min() > 200


# Parts


def test_dyes_transmit_light_by_the_beer_lambert_law():
    rng = np.random.default_rng(0)
    light, dyes, absorbance = rng.random(3), rng.random((4, 5, 2)), rng.random((2, 3))
    found = transmitted(light, dyes, absorbance)
    assert found.shape == (4, 5, 3)
    for y, x, k in np.ndindex(4, 5, 3):
        density = sum(dyes[y, x, s] * absorbance[s, k] for s in range(2))
        assert found[y, x, k] == pytest.approx(light[k] / 10**density)
    assert np.array_equal(transmitted(light, 0 * dyes, absorbance)[0, 0], light)
    other = rng.random((4, 5, 2))  # one layer behind another
    behind = transmitted(found, other, absorbance)
    assert np.allclose(behind, transmitted(light, dyes + other, absorbance))


def test_room_is_the_number_of_steps_until_something_is_there_in_each_direction():
    taken = np.random.default_rng(0).random((30, 40)) < 0.05
    taken[10, 15] = False
    for (y, x), limit in (((10, 15), 8), ((0, 39), 20), ((29, 0), 5.5)):
        taken[y, x] = False
        for angle, found in zip(AROUND, room(taken, y, x, limit), strict=True):
            steps = 0
            while steps <= int(limit):
                row = min(max(int(y + steps * np.sin(angle)), 0), 29)  # no further than the border
                column = min(max(int(x + steps * np.cos(angle)), 0), 39)
                if taken[row, column]:
                    break
                steps += 1
            assert found == steps


@pytest.mark.parametrize("numbers", [{"seed": -1, "patient": 2}, {"seed": 2, "patient": -1}])
def test_neither_of_two_numbers_may_be_negative(numbers):
    with pytest.raises(ValueError, match="-1"):
        synthetic_slide(**numbers)
