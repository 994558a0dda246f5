"""Find what trained networks look for in slides of any size.

    python infer.py SLIDE... --model runs/NAME/fold*/model.pt --out DIR [--rle submission.csv]

The probabilities of several models are averaged. For each slide ID it writes ID.tiff, a mask of 0
and 255 in the slide's own size, and ID.preview.png, the slide with the mask's outline;
--probabilities adds ID.probabilities.tiff (0 to 255 for 0 to 1), --geojson ID.geojson (one polygon
for each connected object, for QuPath), --rle one CSV with the run-length code of all masks.

Slides stream: memory grows with their width, not with their height. Started again, it goes on with
the slides that are not done.
"""

import csv
import hashlib
import io
import json
import sys
from contextlib import ExitStack

import numpy as np
import tifffile
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from minseg import predict_bands
from minseg.data.files import atomic
from minseg.data.polygons import read_note, write_objects
from minseg.data.rle import Encoder
from minseg.data.slides import open_slide
from minseg.data.tiles import BLANK_CONTRAST
from minseg.run.bands import Thumbnail, write_tiff
from minseg.run.checkpoint import load_model
from minseg.run.options import infer_options
from minseg.run.predictor import predictor, skip_flat
from minseg.run.report import Progress, draw_outlines
from minseg.run.step import out_of_memory

PREVIEW = 1600  # pixels, the longer side


def warn(text):
    """One line that stops nothing."""
    print(f"infer.py: {text}", file=sys.stderr, flush=True)


def load(args):
    """The networks. What they were trained for goes into `args`: scale, microns, label, and where
    they are not given, tile, threshold and white. `args.said`: notes that were printed."""
    nets, facts = zip(*(load_model(path) for path in args.model))
    labels = {fact["label"]: path for path, fact in zip(args.model, facts) if fact["label"]}
    if len(labels) > 1:
        raise ValueError(", ".join(f"{path}: finds {label}" for label, path in labels.items())
                         + ": run them one by one")
    first = args.model[0]
    for path, fact in zip(args.model, facts):
        if fact["scale"] != facts[0]["scale"]:
            raise ValueError(f"{path}: has scale {fact['scale']}, {first} has "
                             f"{facts[0]['scale']}: run them one by one")
        if not args.white and fact["white"] != facts[0]["white"]:
            raise ValueError(f"{path}: was trained with --white {fact['white']}, {first} with "
                             f"{facts[0]['white']}: choose with --white")
        if not args.tile and fact["tile"] != facts[0]["tile"]:
            raise ValueError(f"{path}: has tile {fact['tile']}, {first} has {facts[0]['tile']}: "
                             "choose with --tile")
    if args.tile and args.tile != facts[0]["tile"]:
        warn(f"--tile {args.tile}: {first} was trained on tiles of {facts[0]['tile']}")
    args.tile = args.tile or facts[0]["tile"]
    if args.threshold is None:
        args.threshold = sum(fact["threshold"] for fact in facts) / len(facts)
    args.scale, args.microns = facts[0]["scale"], facts[0]["microns"]
    args.label = next(iter(labels), None)
    args.white, args.said = args.white or facts[0]["white"], set()
    # Hashes, for `settings`.
    args.models = [hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in args.model]
    return nets


def outputs(path, args):
    """The files that a slide becomes, its mask first."""
    ends = [".tiff", ".preview.png"] + [".probabilities.tiff"] * args.probabilities
    ends += [".geojson"] * args.geojson
    return [args.out / f"{path.stem}{end}" for end in ends]


def fingerprint(path):
    """A hash of 16 blocks spread over a file: slides are too large to hash whole at every start."""
    size, digest = path.stat().st_size, hashlib.sha256()
    with open(path, "rb") as file:
        for i in range(16):
            file.seek(max(0, size - 2**16) * i // 15)
            digest.update(file.read(2**16))
    return digest.hexdigest()[:16]


def settings(path, args, output):
    """All that a slide's file depends on. It carries this, so a second start knows its own."""
    names = ("models", "threshold", "scale", "tile", "overlap", "window", "tta", "skip_flat", "amp")
    special = ("white", *["min_area"] * (output.suffix == ".geojson"))
    given = {name: getattr(args, name) for name in special if getattr(args, name)}
    return json.dumps({"slide": path.name, "bytes": path.stat().st_size,
                       "sample": fingerprint(path),
                       **{name: getattr(args, name) for name in names}, **given})


def carried(output):
    """The settings that a file carries, None where it is not ours."""
    try:
        if output.suffix == ".geojson":
            return read_note(output)
        if output.suffix == ".png":
            with Image.open(output) as image:
                return image.info.get("Description")
        with tifffile.TiffFile(output) as tiff:
            return tiff.pages[0].description
    except Exception:  # no picture at all: each decoder has errors of its own
        return None


def done(args):
    """The slides whose files are all there. ValueError where two would write one file, or where
    something else lies in its place."""
    writer, complete = {}, set()
    for path in args.slides:
        for output in outputs(path, args):
            if output in writer:
                raise ValueError(f"{output}: {writer[output]} and {path} would both write it")
            writer[output] = path
    taken = {p.resolve() for p in [args.out, *args.out.resolve().parents, *args.slides, *writer]}
    if args.rle and args.rle.resolve() in taken:
        raise ValueError(f"{args.rle}: is the place of another file: give --rle another")
    for path in args.slides:
        there = [output for output in outputs(path, args) if output.exists()]
        for output in there if path.exists() else ():  # a missing one is told when its turn comes
            if carried(output) != settings(path, args, output):
                raise ValueError(f"{output}: exists already, made in another way: move it away, "
                                 "or give another --out")
        if len(there) == len(outputs(path, args)):
            complete.add(path)
    if args.rle and args.rle.exists() and len(complete) < len(args.slides):
        raise ValueError(f"{args.rle}: exists already: move it away, or give another place")
    return complete


def segment(path, predict, args):
    """One slide: writes its files while it streams by; returns its mask's run-length coder."""
    slide = open_slide(path, args.scale, args.white)
    height, width = slide.full_height, slide.full_width
    for note in slide.notes:
        if note not in args.said:
            warn(f"{path}: {note} (this is said once)")
            args.said.add(note)
    if args.microns and slide.microns and not 0.9 <= slide.microns / args.microns <= 1.1:
        warn(f"{path}: has {slide.microns:.3g} µm a pixel by its tags, the model was trained at "
             f"{args.microns:.3g}: resample it, or expect worse masks")
    step = -(-max(height, width) // PREVIEW)  # of the slide's own pixels to one of the preview
    coarse = step >= args.scale  # then the preview is made of what comes by, else it is read again
    step = -(-step // args.scale) * args.scale if coarse else step
    picture, small = Thumbnail(step // args.scale or 1), Thumbnail(step)
    coder, progress = Encoder(height, width), Progress(height, path.stem)

    def read(*area):  # y, x, height, width; each row comes by once, from top to bottom
        rows = slide.read(*area)
        picture.add(rows)
        return rows

    mask_file, preview, *others = outputs(path, args)
    note = settings(path, args, mask_file)
    bands = predict_bands(predict, read, slide.height, slide.width, tile=args.tile,
                          stride=max(1, round(args.tile * (1 - args.overlap))), window=args.window,
                          # --tta hands the network eight views of each tile at once
                          batch=max(1, args.batch // 8) if args.tta else args.batch,
                          device=args.device)
    with ExitStack() as files:  # closed in reverse: the mask last, it says that the slide is done
        write_mask, *write_others = (files.enter_context(write_tiff(file, height, width, note))
                                     for file in (mask_file, *others) if file.suffix == ".tiff")
        add_objects = files.enter_context(write_objects(
            others[-1], height, width, note=settings(path, args, others[-1]), microns=slide.microns,
            name=args.label or "object", min_area=args.min_area)) if args.geojson else None
        for _, band in slide.enlarge(bands):
            band = band[0].numpy()  # (rows, width)
            mask = band >= args.threshold
            coder.add(mask)
            if add_objects:
                add_objects(mask, band)
            mask = mask * np.uint8(255)
            small.add(mask)
            write_mask(mask)
            for write in write_others:
                write((band * 255).round().astype(np.uint8))
            progress.step(len(mask))
        with atomic(preview) as temporary:
            info = PngInfo()
            info.add_text("Description", note)
            image = picture.image() if coarse else open_slide(path, step, args.white).read_all()
            draw_outlines(image, small.image() >= 128).save(temporary, pnginfo=info)
    return coder


def read_back(path):
    """The run-length coder of a mask that is there already."""
    mask = open_slide(path)
    coder = Encoder(mask.height, mask.width)
    for y in range(0, mask.height, 256):
        coder.add(mask.read(y, 0, min(256, mask.height - y), mask.width)[..., 0])
    return coder


def write_csv(path, rows):
    """The table that Kaggle takes: id,predicted. ValueError where there is another."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("id", "predicted"), *rows])
    if path.exists() and path.read_text(encoding="utf-8") != text.getvalue():
        raise ValueError("exists already, with other content: move it away")
    with atomic(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def main(argv=None):
    """Slide by slide; a bad one does not stop the others."""
    args = infer_options(argv)
    try:
        nets = load(args)
        complete = done(args)
        args.out.mkdir(parents=True, exist_ok=True)
        if args.rle:
            args.rle.parent.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        warn(error)
        sys.exit(2)
    predict = predictor(nets, device=args.device, tta=args.tta, amp=args.amp, compile=args.compile)
    if args.skip_flat:
        predict = skip_flat(predict, BLANK_CONTRAST)

    rows, failed = [], 0
    for path in args.slides:
        mask = outputs(path, args)[0]
        try:
            coder = read_back(mask) if path in complete else segment(path, predict, args)
        except Exception as error:
            if out_of_memory(error):
                error = ValueError(f"{path}: out of memory: lower --batch or --tile")
            elif not isinstance(error, (ValueError, OSError)):
                raise
            warn(error if isinstance(error, ValueError) else f"{path}: {error}")
            failed += 1
            continue
        rows.append((path.stem, coder.encode()))
        print(f"{mask}  {coder.positive / (coder.height * coder.width):.2%} positive"
              + ", there already" * (path in complete), flush=True)
    if args.rle and rows:
        try:
            write_csv(args.rle, rows)
        except (OSError, ValueError) as error:  # a name may be no UTF-8
            warn(f"{args.rle}: cannot be written: {error}")
            sys.exit(1)
        print(f"{args.rle}" + f"  (failed, not in it: {failed})" * bool(failed))
    if failed:  # a batch goes on without its bad slides and says so with 1
        sys.exit(2 if len(args.slides) == 1 else 1)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\ninfer.py: stopped")
