"""Train a U-Net on slides and score it on slides that it has not seen.

    python train.py                          synthetic kidney slides, drawn on first use; one fold
    python train.py --data DIR --folds 5     DIR/images, DIR/masks, DIR/groups.csv, or HuBMAP's
                                             DIR/train, DIR/train.csv; all folds

The run's folder holds config.json, and for each fold (of whole groups, never of single images)
log.csv, curves.png, preview.png, score.json, probabilities/, resume.pt, for --resume, and model.pt,
for infer.py; when every fold is there, summary.json.
"""

import math
import shlex
import sys
import time

import torch

from minseg import UNet, deep_supervision_loss, load_weights
from minseg.data.augment import augment
from minseg.losses import first_stage
from minseg.run.checkpoint import put_back, save_model, save_progress
from minseg.run.options import train_options
from minseg.run.prepare import class_name, make_sampler, outside, prepare, save_settings
from minseg.run.report import Progress, duration
from minseg.run.scores import predict, save_fold, save_log, score, summarize
from minseg.run.step import (
    Average,
    Stopped,
    Watch,
    claimed,
    half,
    recompute_activations,
    seeded,
    stop_when_asked,
    what_to_do,
)

SAVE_EVERY = 300  # seconds

def build(args, steps):
    """The network and its arguments, which the checkpoint keeps."""
    network = {"encoder": args.encoder, "gates": args.gates, "hypercolumn": args.hypercolumn,
               "attention": None if args.attention == "none" else args.attention,
               "deep_supervision": args.deep_supervision,
               # Holds long runs back from overfitting but slows short ones: the paper's 0.2 only
               # from 50,000 steps on.
               "stochastic_depth": 0.2 * min(1, steps / 50_000)}
    torch.manual_seed(args.seed)
    net = UNet(**network)
    if args.weights:
        mean, std = load_weights(net.encoder, args.weights)  # sets padding and bn_eps, too
        net.mean.copy_(torch.tensor(mean).view_as(net.mean))
        net.std.copy_(torch.tensor(std).view_as(net.std))
    network.update(mean=net.mean.flatten().tolist(), std=net.std.flatten().tolist(),
                   padding=net.encoder.padding, bn_eps=net.encoder.bn_eps)
    return net.to(args.device, memory_format=torch.channels_last), network


def learning_rate(step, steps, first):
    """Share of the highest rate: up over a tenth (500 steps at most), then down half a cosine.

    Each stage, the `first` of all `steps` and the rest, warms up and falls by itself.
    """
    step, steps = (step, first) if step < first else (step - first, steps - first)
    warm_up = max(1, min(500, steps // 10))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def training_step(net, loss, parts, optimizer, scaler, dtype=None, accumulate=1):
    """One step: the mean of the gradients of `accumulate` parts (images, targets) moves the
    weights. Returns the mean loss, which stays on the device: nobody waits for it here."""
    total = 0
    for images, targets in parts:
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, dtype, enabled=dtype is not None):
            logits = net(images)
        # Without deep supervision there is one map of logits, and this is the loss itself.
        value = deep_supervision_loss(loss, logits, targets) / accumulate
        scaler.scale(value).backward()
        total = total + value.detach()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    return total


def make_optimizer(net, args):
    """AdamW. Published weights move slowly; norms and biases are not shrunk."""
    def params(encoder, shrunk):
        return [p for name, p in net.named_parameters()
                if name.startswith("encoder.") == encoder and (p.ndim > 1) == shrunk]

    slow = args.lr * (args.encoder_lr if args.weights else 1)
    return torch.optim.AdamW(
        [{"params": params(encoder, shrunk), "lr": lr, "weight_decay": 1e-2 if shrunk else 0.0}
         for encoder, lr in ((True, slow), (False, args.lr)) for shrunk in (True, False)],
        fused=True)


def train(args, tiles, train_on, held_out, folder):
    """The training loop. Returns the network with averaged weights, and its arguments."""
    sample = make_sampler(args, tiles, train_on)
    length = len(sample(0))  # steps an epoch
    steps = max(1, round(args.epochs * length))
    epochs = math.ceil(steps / length)
    first = first_stage(steps, args.switch) if args.then else steps  # steps in stage 1
    net, network = build(args, steps)
    optimizer = make_optimizer(net, args)
    highest = [group["lr"] for group in optimizer.param_groups]
    dtype = half(args.device) if args.amp else None
    scaler = torch.amp.GradScaler(torch.device(args.device).type, enabled=dtype == torch.float16)
    # The average reaches back over a twentieth of the run, batch norm's statistics included.
    average = Average(net, 1 - 1 / max(10, steps / 20))

    kept = {"net": net, "average": average.net, "optimizer": optimizer, "scaler": scaler}
    # Steps done, rows of log.csv, this epoch's sum of losses, seconds spent before --resume.
    done, rows, total, spent = 0, [], torch.zeros((), device=args.device), 0.0
    if args.resume and (before := put_back(folder / "resume.pt", kept, tiles.mask_area,
                                            length)):
        done, rows, spent = before["done"], before["rows"], before["spent"]
        total += before["total"]
    start = saved = time.monotonic()
    watch, bar = Watch(tiles.describe), Progress(steps, f"training {folder.name}", done)

    def save():  # as things stand when it is called
        watch.check(average.floats)  # what is not finite is not kept
        save_progress(folder / "resume.pt", done=done, rows=rows, total=total.item(), length=length,
                      areas=tiles.mask_area, spent=spent + time.monotonic() - start,
                      **{name: part.state_dict() for name, part in kept.items()})

    forward, *losses = net, *args.losses
    if args.checkpoint_activations:
        recompute_activations(net)
    if args.compile:
        forward, *losses = (torch.compile(part, dynamic=False) for part in (net, *losses))
    with stop_when_asked() as stop:
        for epoch in range(len(rows), epochs):
            # What is left of the epoch after --resume, and of the run in its last epoch.
            order = sample(epoch)[done % length :][: steps - done]
            batches = tiles.batches(sum(order, []), args.device, args.workers)
            net.train()
            for drawn in order:  # the tiles of a step, batch by batch
                rate = learning_rate(done, steps, first)
                for group, top in zip(optimizer.param_groups, highest):
                    group["lr"] = top * rate
                generator = seeded(args.seed, "step", done)
                torch.manual_seed(seeded(args.seed, "depth", done).initial_seed())
                parts = (augment(*next(batches), args.tile, generator) for _ in drawn)
                loss = training_step(forward, losses[done >= first], parts, optimizer, scaler,
                                     dtype, len(drawn))
                average.update()
                total += loss
                watch.add(done, loss, scaler, rate * args.lr, drawn)
                done += 1
                if done % length and (stop.is_set() or time.monotonic() - saved > SAVE_EVERY):
                    save()
                    saved = time.monotonic()
                    if stop.is_set():
                        raise Stopped(f"after step {done} of {steps}")
                bar.step(text=f"epoch {epoch + 1}/{epochs}")

            watch.check(average.floats)  # before minutes go into scoring a broken network
            # For the log only: nothing is chosen by it, or the score would flatter.
            quick = score(predict(average.net, held_out, args, overlap=0), held_out)
            seconds = spent + time.monotonic() - start - sum(row["seconds"] for row in rows)
            rows.append({"epoch": epoch + 1, "steps": done,
                         "stage": 1 + (done > first),  # of the step before
                         "loss": round(total.item() / (done - epoch * length), 5),
                         "held_out_dice": round(quick["pooled_dice"], 5),
                         "seconds": round(seconds, 1)})
            total.zero_()
            bar.say("epoch {epoch}  loss {loss:.4f}  held-out Dice {held_out_dice:.4f}  "
                    "{seconds} s".format(**rows[-1]))
            title = args.loss + (f", then {args.then}" if args.then else "")
            save_log(folder, rows, f"{args.encoder}, {title}, {folder}")
            save()
            if stop.is_set():
                raise Stopped(f"after epoch {epoch + 1} of {epochs}")
    return average.net.eval(), network


def train_and_score(args, items, folds, tiles, fold):
    """One fold, from its folder to its model.pt."""
    folder = args.out / f"fold{fold}"
    held_out = [item for item, other in zip(items, folds) if other == fold]
    print(f"{folder}: {len(items) - len(held_out)} images to train on, "
          f"{len(held_out)} to score", flush=True)
    net, network = train(args, tiles, outside(tiles, folds, fold), held_out, folder)
    (folder / "probabilities").mkdir(exist_ok=True)
    counts = predict(net, held_out, args, folder=folder / "probabilities")
    threshold = save_fold(folder, held_out, counts)
    state = {name: value.cpu() for name, value in net.state_dict().items()}
    save_model(folder / "model.pt", network, state, scale=args.scale, tile=args.tile,
               threshold=threshold, microns=args.microns, white=args.white,
               label=class_name(items))  # last: the fold is complete
    print(f"look at {folder / 'preview.png'}")


def main(argv=None):
    """Prepare; train and report, fold by fold; summarize."""
    args = train_options(argv)
    start, again = time.monotonic(), shlex.join(sys.argv[1:] if argv is None else argv)
    try:
        # Also settles args.data, folds, fold, exclude and microns.
        items, folds, tiles, chosen = prepare(args)
        save_settings(args)
    except (ValueError, OSError, MemoryError) as error:
        remedy = ": use a smaller --tile or a larger --scale" * isinstance(error, MemoryError)
        print(f"train.py: {error}{remedy}", file=sys.stderr)
        sys.exit(2)
    try:
        for fold in chosen:
            folder = args.out / f"fold{fold}"
            if (folder / "model.pt").exists():
                print(f"{folder}: is there already")
                continue
            try:
                folder.mkdir(exist_ok=args.resume)
            except FileExistsError:
                print(f"{folder}: is unfinished: if no process is at work there, add --resume")
                continue
            with claimed(folder) as mine:  # processes can share a run
                if mine:
                    train_and_score(args, items, folds, tiles, fold)
                else:
                    print(f"{folder}: another process is at work there")
        print(f"took {duration(time.monotonic() - start)}")
        summarize(args.out, items, folds)
    except Exception as error:
        if (words := what_to_do(error, args, again)) is None:
            raise
        print(f"train.py: {words}", file=sys.stderr)
        sys.exit(130 if isinstance(error, Stopped) else 1)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\ntrain.py: stopped")
