"""# Synthetic slides: kidneys drawn from a seed, with exact masks

**In `tutorial.py`**, `image, mask = synthetic_slide(seed)` draws a slide and its mask. This is how.

**Idea.** Real slides are huge, private, and outlined by hand. For learning and testing we want the
opposite: slides that are drawn from a seed, are the same everywhere, and have masks exact to the
pixel. They must be hard in the way real slides are hard: colour alone must not find the objects,
and other laboratories must stain in other ways.

**What is drawn.** A piece of kidney cortex on blank glass, in the PAS stain. Tightly packed
*tubules* fill it: proximal ones with a thick wall and a small fuzzy lumen, distal ones with a thin
pale wall and an open lumen. Among them lie vessels, swollen tubules, hyaline scars and patches of
inflammation. And there are the *glomeruli* that a network should find: a capsule, a pale crescent
(Bowman's space), and within it a lobulated tuft of capillary loops. The mask is the capsule and
everything inside it. All structures take up the same two dyes in similar amounts, so colour cannot
tell glomeruli from the rest; only structure can.

**Where the colours come from.** What is drawn are amounts of dye. An amount c_s of each dye s
attenuates the light of channel k according to the Beer-Lambert law:

    I_k = I0_k 10^-(sum_s c_s A_sk)

where A holds the absorbance of the dyes: haematoxylin (blue, in nuclei) and PAS (magenta, in
membranes and sugars). Laboratories differ in how strongly and how purely they stain: in optical
density, -log10 (I / I0), this scales the rows of A and turns them a little. Two slides of the same
patient share a stain, which is why data must be split by patient (`minseg.crossval`).

**Outlines** are round but wavy: the distance from the centre depends on the direction u, a complex
number of length 1, and is a polynomial of it. c2 makes an ellipse, higher orders make bumps.

    distance(u) = Re(r + c1 u + c2 u^2 + ...)

![A slide, its mask, another stain, and a close look](../docs/figures/synthetic.png)

*Above: a slide, its mask, and the same dyes in another patient's stain. Below: amounts of the two
dyes around a glomerulus, and what the camera sees of them, with the outline of the mask.*

**Shapes.** A seed -> uint8 (height, width, 3) and its mask, uint8 (height, width) of 0 and 1. On
the way, amounts of dye, (height, width, 2).

| what | MONAI's `create_test_image_2d` | here |
|---|---|---|
| objects | disks | glomeruli, 8 to 16 on 1024 x 1024 pixels |
| the rest | black | tubules, vessels, scars, inflammation, glass |
| what tells them apart | brightness | structure |
| noise | uniform, if asked for | uneven light, blur, normal noise |
| random numbers | NumPy's global state, unless told otherwise | a seed |
| patients | - | slides of one share a stain |

**Measured.** What helps on them need not help on real images: ImageNet's weights bring +0.208 on
synthetic slides and -0.012 on nuclei, Lovász alone -0.041 and +0.011 ([how](../docs/study.md)). So
the study trains on both.

**Source.** The absorbance of haematoxylin and PAS, and the equation: Ruifrok and Johnston,
*Quantification of histochemical staining by color deconvolution*, Anal. Quant. Cytol. Histol. 2001.

>>> from minseg.synthetic import synthetic_slide
>>> image, mask = synthetic_slide(seed=3, height=256, width=320)
>>> image.shape, image.dtype.name, mask.shape, mask.dtype.name
((256, 320, 3), 'uint8', (256, 320), 'uint8')
>>> again, _ = synthetic_slide(seed=3, height=256, width=320)  # the same everywhere
>>> (image == again).all().item()
True

**Exercises.**
1. *By hand.* White light falls through an amount of 1 of PAS, whose absorbance is 0.175 for red,
   0.972 for green and 0.155 for blue. Which colour is nearly gone, and how much of it is left? And
   through two such layers?
2. *Break it.* In a copy of this file, my_synthetic.py, replace
   `np.random.default_rng([patient, 1])` by `np.random.default_rng([seed, 1])`. Predict, then
   run: which tests fail? And what would a network that is scored on the second slide of a patient,
   and was trained on the first, no longer know?
3. *Write it.* `transmitted(light, dyes, absorbance)`, then `room(taken, y, x, limit)`.
   `python -m pytest tests/test_synthetic.py --mine my_synthetic.py` grades them, and the copy, too.

Next: `train.py`, where all of it comes together in one visible loop.

**Answers.**
1. Green: 10^-0.972, a tenth. Red and blue are left, which together are magenta. Two layers leave a
   hundredth: the amounts add up, and what they transmit is multiplied.
2. `test_slides_of_one_patient_share_a_stain` and
   `test_without_a_patient_the_seed_is_the_patient`. The stain: it would not know the second slide's
   any better than a stranger's, and splitting a patient would do no harm, as it does in reality.

>>> from minseg.synthetic import ABSORBANCE, transmitted
>>> for amount in (1, 2):
...     transmitted(1.0, [0, amount], ABSORBANCE).round(3).tolist()
[0.668, 0.107, 0.7]
[0.447, 0.011, 0.49]
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

SMALLEST = 64  # pixels; a smaller slide has no room for glass and tissue
AROUND = 2 * np.pi * np.arange(24) / 24  # angles at which outlines are sampled

# Optical density per unit of dye in R, G, B: the "H PAS" vectors of Ruifrok and Johnston.
ABSORBANCE = np.array([[0.644, 0.717, 0.267], [0.175, 0.972, 0.155]])


@dataclass
class Blob:
    """A round shape with a wavy outline. A direction is a complex number u of length 1, and the
    outline lies at the distance Re(r + c1 u + c2 u^2 + ...) from the centre: c2 makes an ellipse,
    higher orders make bumps. `waves` is ..., c2, c1, r: a polynomial is faster than many sines."""

    y: float
    x: float
    waves: np.ndarray

    @classmethod
    def random(cls, rng, y, x, radius, roughness=0.06, orders=5):
        size = radius * roughness * rng.uniform(0.3, 1, orders - 1)
        size[-1] *= 1.5  # more ellipse than bumps
        return cls(y, x, np.append(size * np.exp(1j * rng.uniform(0, 7, orders - 1)), [0, radius]))

    @property
    def radius(self):
        return self.waves[-1].real

    def reach(self, angle):
        return np.polyval(self.waves, np.exp(1j * angle)).real

    def points(self, rho, angle):
        """Rows and columns, (n, 2), of points at `rho` times the outline's distance from the
        centre."""
        distance = rho * self.reach(angle)
        return np.stack([self.y + distance * np.sin(angle), self.x + distance * np.cos(angle)], -1)

    def points_inside(self, rng, count):
        return self.points(np.sqrt(rng.uniform(0, 0.95, count)), rng.uniform(0, 2 * np.pi, count))

    def window(self, shape):
        """Slices around the blob in an image of this shape."""
        radius = 1.05 * self.reach(AROUND).max() + 1
        return tuple(slice(max(0, int(centre - radius)), min(size, int(centre + radius) + 1))
                     for centre, size in zip((self.y, self.x), shape))

    def rho(self, window):
        """Distance of each pixel of a window from the centre, relative to the outline at 1."""
        rows, cols = np.ogrid[window]
        offset = ((cols - self.x) + 1j * (rows - self.y)).astype(np.complex64)
        distance = np.maximum(np.abs(offset), 1e-3)
        reach = np.polyval(self.waves.astype(np.complex64), offset / distance).real
        return distance / np.maximum(reach, 1)


def clouds(rng, height, width, cell):
    """Smooth noise: random numbers of standard deviation 1 on a coarse grid, enlarged."""
    grid = rng.standard_normal((height // cell + 2, width // cell + 2), dtype=np.float32)
    return np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC))


class Canvas:
    """What has been drawn so far. It begins as bare tissue."""

    def __init__(self, rng, height, width):
        y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
        x = np.linspace(-1, 1, width, dtype=np.float32)
        edge = 0.05 * clouds(rng, height, width, max(height, width) // 6)
        edge += 0.012 * clouds(rng, height, width, 24)
        # A rounded square with a ragged edge; the minimum keeps glass all around it.
        self.tissue = np.sqrt(np.hypot(y**2, x**2)) < 0.84 + np.minimum(edge, 0.13)
        self.grain = np.clip(clouds(rng, height, width, 3), -2, 2)  # the texture of cells
        self.pas = np.full((height, width), 0.12, np.float32)  # amount of this dye
        self.nuclei = []  # arrays (n, 2) of rows and columns
        self.mask = np.zeros((height, width), bool)
        self.taken = np.zeros((height, width), bool)  # where there is a blob already


def room(taken, y, x, limit):
    """How far one can go from a pixel, at the angles AROUND, before meeting a blob or the limit."""
    steps = np.arange(int(limit) + 1)[:, None]
    rows = np.clip((y + steps * np.sin(AROUND)).astype(int), 0, taken.shape[0] - 1)
    cols = np.clip((x + steps * np.cos(AROUND)).astype(int), 0, taken.shape[1] - 1)
    hit = taken[rows, cols]
    return np.where(hit.any(axis=0), hit.argmax(axis=0), len(steps))


def scatter(rng, canvas, radii, tries, wanted=None):
    """Yields blobs at free places: `wanted` of full size or, without `wanted`, as many as `tries`
    attempts find room for. The latter are squeezed between their neighbours, as tubules are, so
    that they fill the tissue."""
    free = np.flatnonzero(canvas.tissue & ~canvas.taken)
    for spot in rng.choice(free, tries) if free.size else ():
        if wanted == 0:
            return
        y, x = divmod(int(spot), canvas.taken.shape[1])
        if canvas.taken[y, x]:
            continue
        radius = rng.uniform(*radii)
        space = room(canvas.taken, y, x, 1.4 * radius)
        if space.min() < 5:
            continue
        blob = Blob.random(rng, y, x, radius, 0.06 if wanted else 0.12)
        reach = blob.reach(AROUND)
        if wanted:
            if (space < 1.1 * reach).any():
                continue
            wanted -= 1
        else:  # squeeze it into the space
            reach = np.minimum(reach, space)
            if reach.mean() < 0.9 * radii[0]:
                continue
            blob.waves = np.fft.rfft(reach)[6::-1] / len(AROUND) * [2, 2, 2, 2, 2, 2, 1]
        window = blob.window(canvas.taken.shape)
        canvas.taken[window] |= blob.rho(window) <= 1
        yield blob


def paint(canvas, window, inside, amount):
    """Sets the amount of PAS where `inside` is true, with a grain in proportion to it."""
    np.copyto(canvas.pas[window], amount * (1 + 0.18 * canvas.grain[window]), "same_kind", inside)


def draw_tube(rng, canvas, blob, lumen, wall, cells, filling=0.03):
    """A tubule or a vessel: lumen, wall with nuclei, and the dark basement membrane around."""
    window = blob.window(canvas.pas.shape)
    rho = blob.rho(window)
    amount = np.where(rho + 0.07 * canvas.grain[window] < lumen, filling, wall * (1.1 - 0.2 * rho))
    amount[rho > 1 - 1.8 / blob.radius] = rng.uniform(0.6, 0.85)
    # A squeezed outline is smoothed, so it may reach a little too far; the mask must stay exact.
    paint(canvas, window, (rho <= 1) & ~canvas.mask[window], amount)
    angle = 2 * np.pi * (np.arange(cells) + rng.uniform(-0.4, 0.4, cells)) / cells
    depth = np.clip(rng.normal((0.95 + lumen) / 2, 0.08, cells), lumen, 0.88)
    canvas.nuclei.append(blob.points(depth, angle))


def draw_tubule(rng, canvas, blob):
    """A proximal tubule (two in three) or a distal one."""
    cells, proximal = int(blob.radius * rng.uniform(0.3, 0.6)), rng.random() < 0.68
    lumen = rng.uniform(0.05, 0.42) if proximal else rng.uniform(0.5, 0.68)
    wall = rng.uniform(0.3, 0.55) if proximal else rng.uniform(0.2, 0.35)
    draw_tube(rng, canvas, blob, lumen, wall, cells)


def draw_distractor(rng, canvas, blob):
    """Something as large as a glomerulus that is not one."""
    kind, cells = rng.integers(4), int(blob.radius)
    if kind == 0:  # a vessel
        draw_tube(rng, canvas, blob, rng.uniform(0.4, 0.65), rng.uniform(0.3, 0.45), cells)
    elif kind == 1:  # a swollen tubule, empty or with a cast in it
        filling = rng.choice([0.03, rng.uniform(0.2, 0.5)])
        draw_tube(rng, canvas, blob, rng.uniform(0.72, 0.82), 0.3, cells // 2, filling)
    elif kind == 2:  # a hyaline scar
        draw_tube(rng, canvas, blob, 0, rng.uniform(0.4, 0.65), cells // 3)
    else:  # inflammation: nuclei without structure
        canvas.nuclei.append(blob.points_inside(rng, int(blob.radius**2 / 13)))


def draw_glomerulus(rng, canvas, blob):
    """Capsule, Bowman's space, and a tuft of capillary loops."""
    window = blob.window(canvas.pas.shape)
    rho = blob.rho(window)
    canvas.mask[window] |= rho <= 1
    amount = np.where(rho > 1 - 2.2 / blob.radius, rng.uniform(0.6, 0.8), 0.03)
    # The tuft is smaller than the capsule and off its centre: the space becomes a crescent.
    y, x = blob.points(rng.uniform(0, 0.12), rng.uniform(0, 2 * np.pi))
    tuft = Blob.random(rng, y, x, blob.radius * rng.uniform(0.74, 0.86), orders=8)
    rows, cols = np.nonzero((tuft.rho(window) < 1) & (rho < 0.95))

    # Each capillary loop owns the pixels nearest to it; walls lie where two are equally near.
    pixels = np.complex64(cols + window[1].start + 1j * (rows + window[0].start))
    nearest, second = np.full((2, len(rows)), 99, np.float32)
    for y, x in tuft.points_inside(rng, int(tuft.radius**2 / 20)):
        distance = np.abs(pixels - np.complex64(x + 1j * y))
        second = np.minimum(second, np.maximum(nearest, distance))
        nearest = np.minimum(nearest, distance)
    is_open = (nearest < 3.2) & (canvas.grain[window][rows, cols] < 0.8)
    loops = np.where(is_open, 0.05, rng.uniform(0.25, 0.4))
    loops[second - nearest < 2] = rng.uniform(0.45, 0.65)
    amount[rows, cols] = loops
    paint(canvas, window, rho <= 1, amount)
    canvas.nuclei.append(tuft.points_inside(rng, int(tuft.radius**2 / 34)))


def draw_nuclei(rng, canvas):
    """Amounts of haematoxylin: a few shapes of nuclei, stamped at all the places collected."""
    stamps = []
    for radius in rng.uniform(2.5, 4, 32):
        rho = Blob.random(rng, 5, 5, radius, 0.15, orders=3).rho(np.s_[0:11, 0:11])
        stamps.append(rng.uniform(0.6, 1) * np.clip(3.75 - 3 * rho, 0, 1))
    height, width = canvas.pas.shape
    places = np.concatenate(canvas.nuclei).astype(int)
    places = places[((places >= 0) & (places < (height, width))).all(axis=1)]
    # With a margin as wide as half a stamp, no stamp needs to be clipped at the border.
    padded = np.zeros((height + 10, width + 10), np.float32)
    for (y, x), kind in zip(places, rng.integers(len(stamps), size=len(places))):
        window = padded[y : y + 11, x : x + 11]
        np.maximum(window, stamps[kind], out=window)
    return padded[5:-5, 5:-5]


def draw_tissue(rng, height, width, glomeruli):
    """Amounts of haematoxylin and PAS, (height, width, 2), and the mask."""
    canvas = Canvas(rng, height, width)
    area = height * width / 1024**2
    wanted = max(round(rng.uniform(*glomeruli) * area), int(min(height, width) >= 256))
    for blob in scatter(rng, canvas, (32, 58), 60 * wanted, wanted):
        draw_glomerulus(rng, canvas, blob)
    for blob in scatter(rng, canvas, (22, 45), int(400 * area), round(20 * area)):
        draw_distractor(rng, canvas, blob)
    # Large tubules first, then ever smaller ones into the gaps.
    for radius in (19, 16, 13, 11):
        for blob in scatter(rng, canvas, (radius, radius + 5), int(800 * area) + 1):
            draw_tubule(rng, canvas, blob)
    gaps = np.argwhere(canvas.tissue & ~canvas.taken)
    canvas.nuclei.append(gaps[rng.random(len(gaps)) < 1 / 180])

    nuclei = draw_nuclei(rng, canvas)
    # Haematoxylin also tints the rest of the cell, faintly; a nucleus contains little sugar.
    dyes = np.stack([0.6 * nuclei + 0.2 * canvas.pas, canvas.pas * (1 - 0.5 * nuclei)], axis=-1)
    return dyes * canvas.tissue[..., None], canvas.mask & canvas.tissue


def stain(patient_rng, slide_rng):
    """Absorbance of the two dyes and colour of the lamp: the patient's, varied slightly."""
    absorbance, lamp = ABSORBANCE, np.array([0.96, 0.955, 0.96])
    for rng, spread in ((patient_rng, 1.0), (slide_rng, 0.1)):
        strength = np.exp(spread * rng.uniform(-0.4, 0.4, (2, 1)))
        turn = spread * rng.uniform((-0.1, -0.1, -0.05), (0.1, 0.1, 0.2), (2, 3))
        absorbance = np.maximum(strength * (absorbance + turn), 0.02)
        lamp = lamp * (1 - spread * (rng.uniform(0, 0.06) + rng.uniform(0, 0.03, 3)))
    return absorbance.astype(np.float32), lamp.astype(np.float32)


def transmitted(light: np.ndarray, dyes: np.ndarray, absorbance: np.ndarray) -> np.ndarray:
    """What is left of the light (..., 3) behind amounts of dye (..., S) whose absorbance is (S, 3):
    the Beer-Lambert law."""
    return light * 10 ** -(np.asarray(dyes) @ absorbance)


def photograph(rng, dyes, absorbance, lamp):
    """What a camera sees through the dyes: uneven light, blur, and noise."""
    height, width = dyes.shape[:2]
    light = 1 + 0.02 * clouds(rng, height, width, max(height, width) // 2)
    intensity = transmitted(lamp * light[..., None], dyes, absorbance)
    blurred = Image.fromarray(np.uint8(255 * np.clip(intensity, 0, 1)))
    blurred = blurred.filter(ImageFilter.GaussianBlur(rng.uniform(0.6, 1)))
    noise = rng.uniform(1.5, 4) * rng.standard_normal(intensity.shape, dtype=np.float32)
    return np.uint8(np.clip(blurred + noise + 0.5, 0, 255))


def synthetic_slide(seed: int, height: int = 1024, width: int = 1024, *,
                    patient: int | None = None, glomeruli: tuple[float, float] = (8, 16),
                    ) -> tuple[np.ndarray, np.ndarray]:
    """Draws an image, uint8 (height, width, 3), and its mask, uint8 (height, width) of 0 and 1.
    `patient` is the seed of the stain; the default is `seed`. `glomeruli` is the range of their
    number per 1024 x 1024 pixels. ValueError for a negative seed or fewer than 64 pixels a side."""
    patient = seed if patient is None else patient
    if min(seed, patient) < 0 or min(height, width) < SMALLEST:
        raise ValueError(f"seed {seed}, patient {patient}, {height} x {width} pixels: "
                         f"seeds must be at least 0, and each side at least {SMALLEST} pixels")
    # The second number keeps the two streams apart when `seed` and `patient` are the same.
    rng = np.random.default_rng([seed, 0])
    absorbance, lamp = stain(np.random.default_rng([patient, 1]), rng)
    dyes, mask = draw_tissue(rng, height, width, glomeruli)
    return photograph(rng, dyes, absorbance, lamp), mask.astype(np.uint8)


def write_slides(folder: str | Path, count: int = 10, *, seed: int = 0, height: int = 1024,
                 width: int = 1024, glomeruli: tuple[float, float] = (8, 16)) -> None:
    """Writes `images/ID.png`, `masks/ID.png` (0 or 255) and `groups.csv` (`id,group`). Each group
    is a patient with two slides. The folder appears complete or not at all. Eight slides or more
    are drawn on all cores. ValueError if it exists already, and for numbers out of range."""
    folder = Path(folder)
    if os.path.lexists(folder):
        raise ValueError(f"{folder}: exists already: choose another folder")
    if count < 1 or seed < 0:
        raise ValueError(f"{count} slides, seed {seed}: there must be at least 1 slide, and the "
                         "seed must be at least 0")
    seeds, groups = np.random.SeedSequence(seed).generate_state(count).tolist(), ["id,group"]
    # A temporary folder beside it is on the same disk, so that it can be renamed in one step.
    with tempfile.TemporaryDirectory(prefix=".slides-", dir=folder.parent) as temporary:
        draft = Path(temporary, "draft")
        (draft / "images").mkdir(parents=True)
        (draft / "masks").mkdir()
        jobs = [(i, seeds[i], seeds[i - i % 2], height, width, glomeruli) for i in range(count)]
        cores = (os.cpu_count() or 1) if count >= 8 else 1
        with contextlib.ExitStack() as others:
            for core in range(1, cores):
                others.enter_context(in_another_process(draft, jobs[core::cores]))
            draw_files(draft, jobs[::cores])
        groups += [f"slide{i:02d},patient{i // 2:02d}" for i in range(count)]
        (draft / "groups.csv").write_text("\n".join(groups) + "\n")
        os.replace(draft, folder)


def draw_files(folder: Path, jobs: Sequence[Sequence]) -> None:
    """Draws slides. A job: the slide's number, its seed, and the other arguments of
    `synthetic_slide`."""
    for number, seed, patient, height, width, glomeruli in jobs:
        image, mask = synthetic_slide(seed, height, width, patient=patient, glomeruli=glomeruli)
        name = f"slide{number:02d}.png"
        # Compressing harder takes a third of the time that drawing takes, and saves little.
        Image.fromarray(image).save(folder / "images" / name, compress_level=1)
        Image.fromarray(255 * mask).save(folder / "masks" / name)


@contextlib.contextmanager
def in_another_process(folder: Path, jobs: Sequence[Sequence]) -> Iterator[None]:
    """`draw_files` beside what the block does. This file is run as a program, which starts quickly
    because it does not import torch. OSError if it fails."""
    process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, text=True)
    try:
        assert process.stdin
        with process.stdin as stdin:
            json.dump([str(folder), jobs], stdin)
        yield
        if process.wait():
            raise OSError(f"{folder}: drawing slides ended with code {process.returncode}")
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a word
    where, slides = json.load(sys.stdin)
    draw_files(Path(where), slides)
