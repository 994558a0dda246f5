"""Segment slides of any size with trained networks.

    python infer.py SLIDE... --model runs/NAME/fold*/model.pt --out DIR [--rle submission.csv]

The probabilities of several models are averaged. For each slide, ID.tiff is a mask of 0 and 255 at
the slide's own size, and ID.preview.png shows the slide with the outline of the mask.
--probabilities adds ID.probabilities.tiff (0 to 255 for 0 to 1), --geojson adds ID.geojson (one
polygon for each connected object, for QuPath), and --rle one CSV with the run-length code of all
masks.

Slides are read, predicted and written in bands of rows, so memory grows with their width, not with
their height. A second start with the same arguments skips the slides that are complete.
"""

import sys

from minseg import processes
from minseg.predictor import predictor, skip_flat
from minseg.run.bands import predict_slide
from minseg.run.checkpoint import load_ensemble
from minseg.run.errors import out_of_memory, plain, warn
from minseg.run.memory import keep_memory
from minseg.run.options import infer_options
from minseg.run.outputs import (
    check_outputs,
    encode_finished,
    finished_slides,
    output_files,
    write_csv,
    write_outputs,
)
from minseg.run.report import Progress
from minseg.run.tiles import BLANK_CONTRAST


def segment(path, predict, ensemble, args, printed_notes, progress=lambda share: None):
    """Predict one slide band by band, and write its files meanwhile. Returns the run-length encoder
    of its mask. `printed_notes`: notes on files that need not be printed again; it is extended.
    `progress` is called with each share of the slide that is done."""
    slide, microns = ensemble.open(path), ensemble.microns
    unknown = ["states the size of its pixels, but the model none that it was trained at: make "
               "sure that they are the same"] if slide.microns and microns is None else []
    for note in slide.notes + unknown:
        if note not in printed_notes:
            warn(f"{path}: {note} (the same note on other slides is not printed)")
            printed_notes.add(note)
    compared = slide.microns and microns and not ensemble.resample
    if compared and not 0.9 <= slide.microns / microns <= 1.1:
        warn(f"{path}: has {slide.microns:.3g} µm per pixel, the model was trained at "
             f"{microns:.3g}: expect worse masks, or train with --microns")
    batch = max(1, args.batch // 8) if args.tta else args.batch  # --tta has 8 views of each tile
    with write_outputs(path, slide, ensemble, args) as outputs:
        read = outputs.preview.watching(slide.read)  # the preview is made of the rows that are read
        for _, band in predict_slide(predict, slide, tile=ensemble.tile, overlap=args.overlap,
                                     window=args.window, batch=batch, device=args.device,
                                     amp=args.amp, turn=ensemble.turn, read=read):
            outputs.write(band[0].numpy())  # (rows, width), at the slide's own size
            progress(band.shape[1] / slide.full_height)
    return outputs.encoder


def begin(args):
    """The networks, the function that predicts with them, and the slides that are complete. Exits
    with 2 if something is wrong with the options, the networks or files in the place of outputs."""
    try:
        ensemble = load_ensemble(args.model, tile=args.tile, threshold=args.threshold,
                                 white=args.white, slides=args.slides)
        check_outputs(ensemble, args)
        complete = finished_slides(ensemble, args)
        args.out.mkdir(parents=True, exist_ok=True)
        if args.rle:
            args.rle.parent.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        warn(plain(error))
        sys.exit(2)
    predict = predictor(ensemble.nets, device=args.device, tta=args.tta, amp=args.amp,
                        compile=args.compile)
    if args.skip_flat:
        predict = skip_flat(predict, BLANK_CONTRAST)
    return ensemble, predict, complete


def segment_slides(paths, predict, ensemble, args, complete):
    """Segment slides one by one; one that fails does not stop the others. Returns the run-length
    code of each mask, by path, and how many slides failed."""
    codes, failed, printed_notes = {}, 0, set()
    sizes = {path: path.stat().st_size if path.exists() else 0 for path in paths
             if path not in complete}  # bytes, to tell the time left for all
    progress = Progress(float(sum(sizes.values())), "segmenting")
    for number, path in enumerate(paths, 1):
        mask_file = output_files(path, args)[0]
        try:
            if path in complete:
                encoder = encode_finished(mask_file)
            else:
                text = f"{path.stem}, slide {number} of {len(paths)}"
                encoder = segment(
                    path, predict, ensemble, args, printed_notes,
                    lambda share, of=sizes[path], text=text: progress.step(share * of, text))
        except Exception as error:
            if out_of_memory(error):
                error = ValueError(f"{path}: out of memory: lower --batch or --tile")
            elif not isinstance(error, (ValueError, OSError)):
                raise
            warn(error if isinstance(error, ValueError) else f"{path}: {plain(error)}")
            failed += 1
            continue
        codes[path] = encoder.encode()
        share = encoder.positive / (encoder.height * encoder.width)
        already = ", complete already" if path in complete else ""
        already += "; the slide itself is gone" if not path.exists() else ""
        progress.say(f"{mask_file}  {share:.2%} positive{already}")
    return codes, failed


@processes.by_first
def finish(codes, failed, args):
    """Write the table of all slides."""
    rows = [(path.stem, codes[path]) for path in args.slides if path in codes]
    if args.rle and rows:
        try:
            write_csv(args.rle, rows)
        except ValueError as error:
            warn(error)
            sys.exit(1)
        print(f"{args.rle}" + (f"  (failed, not in it: {failed})" if failed else ""), flush=True)
    if failed:  # exit code 1: of several slides, the others were finished
        sys.exit(2 if len(args.slides) == 1 else 1)


def main(argv=None):
    """Segment slides, and write their table. With torchrun, each process takes some of them."""
    processes.start(quiet=False)
    args = infer_options(argv)
    keep_memory()  # on a CPU, a tile takes a tenth less time
    with processes.first_then_others():
        ensemble, predict, complete = begin(args)
    mine = args.slides[processes.rank() :: processes.world()]
    results = processes.gather(segment_slides(mine, predict, ensemble, args, complete))
    codes = {path: code for some, _ in results for path, code in some.items()}
    finish(codes, sum(failed for _, failed in results), args)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("\ninfer.py: stopped", file=sys.stderr)
        sys.exit(130)
