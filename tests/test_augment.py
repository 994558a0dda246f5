"""Augmentation: image and mask move alike, colours follow the stain equation, seeds repeat."""

import math
import sys

import numpy as np
import pytest
import torch

from minseg.augment import ANGLE, SCALE, STAINS, augment, move, recolour, restain


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(n, size, seed=0):
    return torch.randint(256, (n, 3, size, size), generator=seeded(seed), dtype=torch.uint8)


def blobs(n, size, seed=0):
    coarse = torch.rand(n, 1, size // 16, size // 16, generator=seeded(seed)) > 0.5
    return coarse.repeat_interleave(16, 2).repeat_interleave(16, 3).byte()


@pytest.fixture
def strengths(monkeypatch):
    """Sets the given strengths, and all others to 0, where they are used."""
    def put(**values):
        for name in ("ANGLE", "SCALE", "STAIN", "CONTRAST", "BRIGHTNESS"):
            for function in (move, recolour):
                monkeypatch.setattr(sys.modules[function.__module__], name, values.get(name, 0.0),
                                    raising=False)

    return put


# Geometry


def test_image_and_mask_move_alike():
    masks = blobs(32, 96)
    images, moved = move(masks.expand(-1, 3, -1, -1) * 255, masks, 64, seeded())
    red = images[:, :1]
    assert ((red > 0.5) == (moved > 0.5)).float().mean() > 0.99
    pooled = torch.nn.functional.max_pool2d(torch.cat([moved, -moved], 1), 5, 1, 2)
    inside = pooled[:, :1] == -pooled[:, 1:]  # the same value two pixels around
    inside, red, moved = (part[..., 2:-2, 2:-2] for part in (inside, red, moved))
    assert inside.float().mean() > 0.6
    assert (red - moved)[inside].abs().max() < 1e-3
    assert 0.2 < moved.mean() < 0.8


def eight(image):
    """The eight symmetries of an image (C, H, W)."""
    return [variant.rot90(k, (1, 2)) for variant in (image, image.flip(2)) for k in range(4)]


def test_without_angle_scale_and_margin_the_result_is_one_of_the_eight_symmetries(strengths):
    strengths()
    image, mask = noise(1, 12), (noise(1, 12, 1)[:, :1] > 127).byte()
    images, masks = move(image.expand(64, -1, -1, -1), mask.expand(64, -1, -1, -1), 12, seeded())
    wanted = [variant / 255 for variant in eight(image[0])]
    seen = set()
    for moved, positive in zip(images, masks):
        differences = [(moved - variant).abs().max().item() for variant in wanted]
        which = int(np.argmin(differences))
        assert differences[which] < 1e-4
        assert torch.equal(positive, eight(mask[0])[which].float())
        seen.add(which)
    assert seen == set(range(8))


def source_map(n, seed, size=96, tile=64):
    """The affine maps that `move` drew: (n, 2, 2) matrices and (n, 2) offsets, in pixels x, y."""
    place = torch.arange(size, dtype=torch.uint8)
    image = torch.stack([place.expand(size, size), place[:, None].expand(size, size)] * 2)[:3]
    images, _ = move(image.expand(n, -1, -1, -1), torch.zeros(n, 1, size, size).byte(), tile,
                     seeded(seed))
    middle = slice(tile // 2 - 8, tile // 2 + 8)  # far from what the border mirrors
    source = (images[:, :2, middle, middle] * 255 - (size - 1) / 2).double()
    y, x = torch.meshgrid(*[torch.arange(16).double() - 7.5] * 2, indexing="ij")
    wanted = torch.stack([x, y, torch.ones_like(x)]).flatten(1).T  # (256, 3)
    solution = torch.linalg.lstsq(wanted.expand(n, -1, -1), source.flatten(2).mT).solution
    assert torch.allclose(wanted @ solution, source.flatten(2).mT, atol=1e-2)
    return solution[:, :2].mT, solution[:, 2]


def test_the_map_is_flip_turn_and_scale_within_the_strengths():
    matrix, _ = source_map(400, seed=1)
    stretch = matrix.det().abs().sqrt()
    assert torch.allclose(matrix.mT @ matrix, stretch[:, None, None] ** 2 * torch.eye(2).double(),
                          atol=1e-2)
    log = stretch.log()
    assert SCALE * 0.9 < log.max() < SCALE + 1e-3
    assert SCALE * 0.9 < -log.min() < SCALE + 1e-3
    turn = torch.rad2deg(torch.atan2(matrix[:, 0, 1], matrix[:, 1, 1]))
    small = (turn + 45) % 90 - 45
    assert ANGLE * 0.9 < small.max() < ANGLE + 0.1
    assert ANGLE * 0.9 < -small.min() < ANGLE + 0.1
    assert torch.bincount(((turn - small) / 90).round().long() % 4, minlength=4).min() > 60
    assert 140 < (matrix.det() < 0).sum() < 260


def test_offsets_reach_the_whole_margin_but_no_further():
    _, offset = source_map(400, seed=2)
    for axis in (0, 1):
        assert 16 * 0.9 < offset[:, axis].max() < 16.05
        assert 16 * 0.9 < -offset[:, axis].min() < 16.05
    assert abs(np.corrcoef(offset.T)[0, 1]) < 0.2


def test_without_angle_and_scale_the_margin_is_enough(strengths):
    strengths()
    column = torch.arange(96, dtype=torch.uint8).expand(64, 3, 96, 96)
    moved, _ = move(column, torch.zeros(64, 1, 96, 96).byte(), 64, seeded())
    inner = moved[:, 0, 1:-1, 1:-1] * 255
    slope = inner.diff(dim=1)[..., 1:].abs() + inner.diff(dim=2)[:, 1:].abs()
    assert torch.allclose(slope, torch.ones(()), atol=1e-3)  # a mirror would turn it round


def test_beyond_the_margin_image_and_mask_are_mirrored_not_black():
    white, full = torch.full((20, 3, 36, 36), 255).byte(), torch.ones(20, 1, 36, 36).byte()
    images, masks = move(white, full, 32, seeded())
    assert torch.allclose(images, torch.ones(())) and (masks == 1).all()


@pytest.mark.parametrize("n, size, tile", [(1, 40, 32), (5, 32, 32), (3, 50, 31)])
def test_shapes_types_and_ranges_are_as_documented(n, size, tile):
    masks = (noise(n, size, 1)[:, :1] > 127).byte()
    images, moved = augment(noise(n, size), masks, tile, seeded())
    assert (images.shape, images.dtype) == ((n, 3, tile, tile), torch.float32)
    assert (moved.shape, moved.dtype) == ((n, 1, tile, tile), torch.float32)
    assert images.min() >= 0 and images.max() <= 1
    assert set(moved.unique().tolist()) == {0, 1}


def test_black_and_white_stay_in_range():
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).repeat(20, 3, 24, 24)
    result, _ = augment(images, torch.zeros(40, 1, 24, 24).byte(), 16, seeded())
    assert result.min() >= 0 and result.max() <= 1
    assert result.isfinite().all()


def test_the_same_seed_gives_the_same_result_and_another_seed_does_not():
    images, masks = noise(4, 48), blobs(4, 48)
    first, again, other = (augment(images, masks, 32, seeded(seed)) for seed in (3, 3, 4))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0]) and not torch.equal(first[1], other[1])


def test_the_generator_advances_and_the_global_one_is_not_used():
    images, masks, generator = noise(2, 48), blobs(2, 48), seeded()
    before = torch.get_rng_state()
    first, second = (augment(images, masks, 32, generator)[0] for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


def test_each_image_of_a_batch_is_augmented_in_its_own_way():
    images, masks = noise(1, 48).expand(6, -1, -1, -1), blobs(1, 48).expand(6, -1, -1, -1)
    moved = move(images, masks, 32, seeded())[0]
    coloured = recolour(images / 255, seeded())
    for i in range(6):
        for j in range(i):
            assert not torch.equal(moved[i], moved[j])
            assert not torch.equal(coloured[i], coloured[j])


def test_the_inputs_are_not_changed():
    images, masks = noise(2, 40), blobs(2, 48)[..., :40, :40].clone()
    copies = images.clone(), masks.clone()
    augment(images, masks, 32, seeded())
    assert torch.equal(images, copies[0]) and torch.equal(masks, copies[1])


# Colour


def test_without_strength_nothing_is_recoloured(strengths):
    strengths()
    images = noise(3, 32) / 255
    assert torch.allclose(recolour(images, seeded()), images, atol=5e-6, rtol=0)


def test_stain_scales_each_dye_in_optical_density():
    images, alpha = noise(2, 8) / 255, torch.rand(2, 3, generator=seeded(5)).double() - 0.5
    result, dyes_of = restain(images, alpha.float()).numpy(), np.array(STAINS)
    for n in range(2):
        for y in range(8):
            for x in range(8):
                density = [-math.log((v * 255 + 1) / 256) for v in images[n, :, y, x].tolist()]
                dyes = np.linalg.solve(dyes_of.T, density)  # density = dyes M
                density = (dyes * (1 + alpha[n].numpy())) @ dyes_of
                wanted = (256 * np.exp(-density) - 1) / 255
                assert np.allclose(result[n, :, y, x], wanted, rtol=1e-4, atol=1e-4)


def test_each_image_gets_its_own_stain_within_the_strength_and_the_colours_stay_in_range(strengths):
    strengths(STAIN=0.25)
    images = noise(200, 8) / 255
    result, drawn = recolour(images, seeded(5)), torch.rand(200, 3, generator=seeded(5))
    wanted = restain(images, (drawn * 2 - 1) * 0.25).clamp(0, 1)
    assert torch.allclose(result, wanted, atol=1e-6)
    assert drawn.min() < 0.01 and drawn.max() > 0.99


@pytest.mark.parametrize("stain", [0, 1, 2])
def test_a_pixel_of_a_single_dye_only_gets_more_or_less_of_it(stain):
    absorbance, alpha = torch.tensor(STAINS[stain]), torch.linspace(-1, 1, 9)
    pixel = (256 * (-0.8 * absorbance).exp() - 1) / 255
    result = restain(pixel.view(1, 3, 1, 1).expand(9, -1, 4, 4), alpha[:, None].expand(9, 3))
    wanted = (256 * (-0.8 * (1 + alpha[:, None]) * absorbance).exp() - 1) / 255
    assert torch.allclose(result[:, :, 2, 2], wanted, atol=1e-4)


def test_two_changes_of_stain_multiply():
    images, (first, second) = noise(2, 4) / 255, torch.rand(2, 2, 3, generator=seeded()) - 0.5
    both = restain(restain(images, first), second)
    assert torch.allclose(both, restain(images, (1 + first) * (1 + second) - 1), atol=1e-4)


def test_contrast_spreads_values_about_their_mean_and_brightness_moves_the_mean(strengths):
    images = 0.3 + 0.4 * noise(50, 8) / 255
    mean = images.mean((1, 2, 3))
    strengths(CONTRAST=0.2)
    result = recolour(images, seeded())
    spread = result.std((1, 2, 3)) / images.std((1, 2, 3))
    assert torch.allclose(result.mean((1, 2, 3)), mean, atol=1e-4)
    assert 0.8 <= spread.min() < 0.83 and 1.17 < spread.max() <= 1.2
    strengths(BRIGHTNESS=0.2)
    result = recolour(images, seeded())
    ratio = result.mean((1, 2, 3)) / mean
    assert torch.allclose(result.std((1, 2, 3)), images.std((1, 2, 3)), atol=1e-4)
    assert 0.8 <= ratio.min() < 0.83 and 1.17 < ratio.max() <= 1.2


def test_at_strength_0_tiles_are_only_flipped_turned_and_shifted_by_whole_pixels():
    images, masks = noise(20, 48), blobs(20, 48)
    shifts = set()
    for image, mask, moved, label in zip(images, masks, *augment(images, masks, 32, seeded(), 0.0)):
        turns = [(k, flip, torch.rot90(moved if not flip else moved.flip(-1), k, (1, 2)))
                 for k in range(4) for flip in (False, True)]
        crops = (image / 255).unfold(1, 32, 1).unfold(2, 32, 1)  # (3, 17, 17, 32, 32)
        same = [(k, flip, y, x) for k, flip, turned in turns for y, x in (
            (crops - turned[:, None, None]).abs().amax((0, 3, 4)) < 1e-3).nonzero().tolist()]
        assert len(same) == 1, same
        k, flip, y, x = same[0]
        turned = torch.rot90(label if not flip else label.flip(-1), k, (1, 2))
        assert torch.equal(turned, mask[:, y : y + 32, x : x + 32].float())
        shifts |= {y, x}
    assert min(shifts) <= 2 and max(shifts) >= 14  # up to the whole margin
    full, _ = augment(images, masks, 32, seeded())
    assert not torch.allclose(full, augment(images, masks, 32, seeded(), 0.0)[0], atol=1e-2)


def test_augmented_tiles_stay_what_they_are_for_a_seed():
    ramp = torch.arange(48.0)
    images = torch.stack([4 * ramp.expand(48, 48), 5 * ramp.expand(48, 48).T,
                          20 + 2 * (ramp + ramp[:, None])]).byte().expand(3, -1, -1, -1)
    masks = (images[:, :1] > 100).byte()
    images, masks = augment(images, masks, 32, seeded(1))
    mean, spread = (255 * part for part in (images.mean((2, 3)), images.std((2, 3))))
    assert mean.tolist() == [pytest.approx(each, abs=0.1) for each in (
        (100.2, 108.1, 119.8), (102.9, 146.9, 128.6), (100.3, 129.3, 118.1))]
    assert spread.tolist() == [pytest.approx(each, abs=0.1) for each in (
        (39.8, 44.8, 27.5), (34.6, 47.5, 23.9), (38.7, 53.1, 28.0))]
    assert masks.sum((1, 2, 3)).tolist() == pytest.approx([540, 352, 429], abs=3)
