"""# What `infer.py` writes

For each slide: a mask, a preview, and, if asked for, probabilities and polygons; for all slides
together, a CSV. Each file of a slide records in its description which slide, networks and options
it was made from. So when the program is started again, it recognises its own files: it skips slides
that are complete, and never overwrites a file that was made in another way.

Masks and probabilities are written so that other programs open them rightly. tests/interop writes
masks in the other ways as well, and docs/interop.md shows who reads them:

| choice | why |
|---|---|
| one image, no pyramid | slideio takes pages for scenes; smaller copies of a mask are no masks |
| 8 bits, 0 and 255 | 0 and 1 look black; of one bit some programs make 0 and 1, others refuse it |
| Deflate | without loss, and read by all, by tifffile without its plugin for LZW |
| without predictor | all undo it, but it makes masks larger |
| tiles of 256 x 256 | OpenSlide, and so dlup, opens nothing in strips |
| pixels per centimetre, in x and y | whoever reads sizes takes these; dlup opens nothing without |
| no OME description | it would replace ours, and beside the tags no program gains by it |
"""

import argparse
import csv
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..files.atomic import atomic, content, identity, is_same
from ..files.polygons import read_note, write_objects
from ..files.rle import Encoder
from ..files.slides import Slide, open_slide, shrink
from .bands import write_tiff
from .checkpoint import Ensemble
from .report import draw_outlines

Reader = Callable[[int, int, int, int], np.ndarray]  # (y, x, height, width) -> pixels
PREVIEW = 1600  # pixels: the longer side of a preview


def output_files(path: Path, args: argparse.Namespace) -> list[Path]:
    """The paths of all files that are written for a slide: the mask, the preview, then others."""
    endings = [".tiff", ".preview.png"]
    if args.probabilities:
        endings.append(".probabilities.tiff")
    if args.geojson:
        endings.append(".geojson")
    return [args.out / f"{path.stem}{ending}" for ending in endings]


def made_with(path: Path, ensemble: Ensemble, args: argparse.Namespace, output: Path) -> dict:
    """Everything that the content of an output file depends on, except what is in the slide."""
    facts = {"slide": path.name, "models": ensemble.hashes, "threshold": ensemble.threshold,
             "scale": ensemble.scale, "tile": ensemble.tile, "overlap": args.overlap,
             "window": args.window, "tta": args.tta, "skip_flat": args.skip_flat, "amp": args.amp}
    if path in ensemble.sizes:
        facts["pixel_size"] = ensemble.sizes[path]
    if ensemble.white:
        facts["white"] = ensemble.white
    if args.min_area and output.suffix == ".geojson":
        facts["min_area"] = args.min_area
    return facts


def provenance(path: Path, ensemble: Ensemble, args: argparse.Namespace, output: Path,
               slide: dict) -> str:
    """Everything that the content of an output file depends on, as JSON. `slide`: the `content` of
    the slide."""
    return json.dumps({**made_with(path, ensemble, args, output), **slide})


def was_made_so(path: Path, ensemble: Ensemble, args: argparse.Namespace, output: Path) -> bool:
    """Whether an output file was made from this slide, with these networks and options. A slide may
    have been moved away after it was done; then all the rest must be the same."""
    try:
        noted = json.loads(carried_provenance(output) or "")
        slide = {name: noted.pop(name) for name in ("bytes", "modified", "sample", "sha256")}
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
    return (noted == json.loads(json.dumps(made_with(path, ensemble, args, output)))
            and (not path.exists() or is_same(path, slide)))


def carried_provenance(output: Path) -> str | None:
    """The provenance recorded in a file; None if `infer.py` did not write the file."""
    try:
        if output.suffix == ".geojson":
            return read_note(output)
        if output.suffix == ".png":
            with Image.open(output) as image:
                return image.info.get("Description")
        with tifffile.TiffFile(output) as tiff:
            return tiff.pages[0].description
    except Exception:  # not an image at all; each decoder raises its own kinds of errors
        return None


def refuse_data_folder(args: argparse.Namespace) -> None:
    """ValueError if --out holds a slide that is to be segmented, or the images of a data set: masks
    and previews among them would be taken for images of it."""
    out = args.out.resolve()
    remedy = "give a folder of its own for the masks"
    for path in args.slides:
        if out in (path.resolve().parent, path.parent.resolve()):
            raise ValueError(f"--out {args.out}: holds the slide {path}: {remedy}")
    if ((out.name == "images" and (out.parent / "masks").is_dir())
            or (out.name == "train" and (out.parent / "train.csv").exists())):
        raise ValueError(f"--out {args.out}: holds the images of a data set: {remedy}")


def check_outputs(ensemble: Ensemble, args: argparse.Namespace) -> None:
    """ValueError if two slides would write the same file, or if a file that was made in another way
    is in the place of an output."""
    refuse_data_folder(args)
    writers: dict[Path, Path] = {}
    for path in args.slides:
        for output in output_files(path, args):
            if output in writers:
                raise ValueError(f"{output}: {writers[output]} and {path} would both write it")
            writers[output] = path
    for path in args.slides if args.rle else ():
        try:
            path.stem.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{path}: its name is not UTF-8, as the table of --rle is: rename it")
    taken = {p.resolve() for p in [args.out, *args.out.resolve().parents, *args.slides, *writers]}
    if args.rle and args.rle.resolve() in taken:
        raise ValueError(f"{args.rle}: is the path of another file: give another path for --rle")
    for output, path in writers.items():
        if output.exists() and not was_made_so(path, ensemble, args, output):
            if not path.exists():
                raise ValueError(f"{path}: no such file, and {output} was made in another way: "
                                 "correct the path, or give another --out")
            raise ValueError(f"{output}: exists already, made in another way: move it away, or "
                             "give another --out")
    if args.rle and args.rle.exists() and not all(output.exists() for output in writers):
        # A table of some of these slides is what an earlier start has left.
        before = read_csv(args.rle)
        if before is None or not before.keys() <= {path.stem for path in args.slides}:
            raise ValueError(f"{args.rle}: exists already: move it away, or give another path")


def finished_slides(ensemble: Ensemble, args: argparse.Namespace) -> set[Path]:
    """The slides whose outputs all exist, made from these slides with these networks and
    options."""
    return {path for path in args.slides
            if all(output.exists() and was_made_so(path, ensemble, args, output)
                   for output in output_files(path, args))}


class Thumbnail:
    """An image that comes in bands of rows, from top to bottom, `step` times smaller: the means of
    square blocks."""

    def __init__(self, step: int):
        self.step = step
        self._small: list[np.ndarray] = []
        self._rest: np.ndarray | None = None  # rows that do not fill a block yet

    def add(self, band: np.ndarray) -> None:
        """The next rows, uint8 (rows, width) or (rows, width, channels)."""
        rest = band if self._rest is None else np.concatenate([self._rest, band])
        whole = len(rest) // self.step * self.step
        self._small.append(shrink(rest[:whole], self.step))
        self._rest = rest[whole:].copy()

    def image(self) -> np.ndarray:
        """What has come so far: (rows, width, ...), sizes rounded up."""
        assert self._rest is not None, "no rows have come"
        return np.concatenate([*self._small, shrink(self._rest, self.step)])


class Preview:
    """A small picture of a slide with the outline of its mask. If the rows that are read for the
    network have at least the preview's resolution (`rows_suffice`), they are reduced to it;
    otherwise the slide is read a second time."""

    def __init__(self, path: Path, slide: Slide, white: int | None):
        self.path, self.white = path, white
        step = -(-max(slide.full_height, slide.full_width) // PREVIEW)  # slide pixels per pixel
        scale = slide.scale or step + 1  # rows that were resampled do not suffice
        self.rows_suffice = step >= scale
        self.step = -(-step // scale) * scale if self.rows_suffice else step
        self.image, self.mask = Thumbnail(self.step // scale or 1), Thumbnail(self.step)

    def watching(self, read: Reader) -> Reader:
        """`read`, for rows from top to bottom, which are then also added to the picture."""
        if not self.rows_suffice:  # and might fill the memory, as many as they are
            return read

        def watched(y: int, x: int, height: int, width: int) -> np.ndarray:
            rows = read(y, x, height, width)
            self.image.add(rows)
            return rows

        return watched

    def save(self, path: Path, note: str) -> None:
        """Writes the PNG; `note` is its description."""
        image = (self.image.image() if self.rows_suffice else
                 open_slide(self.path, self.step, self.white).read_all())
        info = PngInfo()
        info.add_text("Description", note)
        with atomic(path) as temporary:
            draw_outlines(image, self.mask.image() >= 128).save(temporary, pnginfo=info)


class Outputs:
    """The files of one slide while they are written; see `write_outputs`."""

    def __init__(self, path: Path, slide: Slide, ensemble: Ensemble, args: argparse.Namespace,
                 files: ExitStack):
        height, width = slide.full_height, slide.full_width
        self.slide, self.threshold = slide, ensemble.threshold
        self.preview = Preview(path, slide, ensemble.white)
        self.encoder = Encoder(height, width)  # of the mask's run-length code
        mask_file, _, *others = output_files(path, args)
        self.identity, self.held = identity(path), content(path)
        self.notes = {file: provenance(path, ensemble, args, file, self.held)
                      for file in output_files(path, args)}
        # The stack closes files in reverse order. The mask is opened first and so completed last.
        self.write_mask = files.enter_context(write_tiff(
            mask_file, height, width, self.notes[mask_file], slide.pixel_size))
        self.write_probabilities = self.add_objects = None
        for file in others:
            if file.suffix == ".tiff":
                self.write_probabilities = files.enter_context(
                    write_tiff(file, height, width, self.notes[file], slide.pixel_size))
            else:
                self.add_objects = files.enter_context(write_objects(
                    file, height, width, note=self.notes[file], microns=slide.microns,
                    name=ensemble.label or "object", min_area=args.min_area))

    def write(self, band: np.ndarray) -> None:
        """Writes the next rows of the result: probabilities, float32 (rows, width)."""
        positive = band >= self.threshold
        self.encoder.add(positive)
        if self.add_objects:
            self.add_objects(positive, band)
        mask = positive * np.uint8(255)
        self.preview.mask.add(mask)
        self.write_mask(mask)
        if self.write_probabilities:
            self.write_probabilities((band * 255).round().astype(np.uint8))


@contextmanager
def write_outputs(path: Path, slide: Slide, ensemble: Ensemble,
                  args: argparse.Namespace) -> Iterator[Outputs]:
    """`with write_outputs(...) as outputs: outputs.write(band) ...` writes the files of a slide in
    bands of rows, from top to bottom. The files appear, complete, when the block ends, and none
    remains if it fails. OSError if a file cannot be written."""
    with ExitStack() as files:
        outputs = Outputs(path, slide, ensemble, args, files)
        yield outputs
        if (identity(path) != outputs.identity
                and content(path)["sha256"] != outputs.held["sha256"]):
            raise ValueError(f"{path}: has changed while it was segmented: give the same command "
                             "again")
        preview = output_files(path, args)[1]
        outputs.preview.save(preview, outputs.notes[preview])


def encode_finished(mask_file: Path) -> Encoder:
    """The run-length encoder of a mask that was written earlier."""
    mask = open_slide(mask_file)
    encoder = Encoder(mask.height, mask.width)
    for y in range(0, mask.height, 256):
        encoder.add(mask.read(y, 0, min(256, mask.height - y), mask.width)[..., 0])
    return encoder


def write_csv(path: Path, rows: Sequence[tuple[str, str]]) -> None:
    """Writes the table that Kaggle expects, with the columns id and predicted. ValueError if it
    cannot be written, or if the file exists with other content than some of the rows."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("id", "predicted"), *rows])
    try:
        if path.exists() and ((before := read_csv(path)) is None
                              or not before.items() <= dict(rows).items()):
            raise ValueError("it exists already, with other content: move it away")
        with atomic(path) as temporary:
            temporary.write_text(text.getvalue(), encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{path}: cannot be written: {reason}")


def read_csv(path: Path) -> dict[str, str] | None:
    """The rows of a table that `write_csv` wrote; None for any other file."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a slide's run-length code is one field
    try:
        with open(path, newline="", encoding="utf-8") as file:
            heading, *rows = csv.reader(file)
        return dict(rows) if heading == ["id", "predicted"] else None  # type: ignore[arg-type]
    except (OSError, ValueError, csv.Error):
        return None
