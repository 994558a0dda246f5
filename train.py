"""Train a U-Net on slides and score it on slides that it has not seen.

    python train.py                          synthetic kidney slides, drawn on first use; one fold
    python train.py --data DIR --folds 5     DIR/images, DIR/masks, DIR/groups.csv, or HuBMAP's
                                             DIR/train, DIR/train.csv; all folds

Read it from top to bottom: how long a run is, the network, the optimiser and its learning rate, one
step, the loop, one fold, the program. A fold holds out whole groups (patients), never single
images.

The run's folder holds config.json and, for each fold, log.csv, curves.png, preview.png, score.json,
probabilities/, model.pt (for infer.py) and resume.pt (for --resume). Once every fold is there, it
also holds summary.json.
"""

import math
import sys
import time

import torch

from minseg import UNet, deep_supervision_loss, load_weights
from minseg.data.augment import augment
from minseg.losses import first_stage
from minseg.run.checkpoint import save_model
from minseg.run.errors import explained
from minseg.run.loop import Run, claim_fold
from minseg.run.options import train_options
from minseg.run.prepare import class_name, make_sampler, outside, prepare, save_config
from minseg.run.report import duration
from minseg.run.scores import predict, save_fold, score, summarize
from minseg.run.step import EMA, autocast_dtype, recompute_activations, seeded


class Plan:
    """How long a run is, and what follows from that."""

    def __init__(self, args, steps_per_epoch):
        self.steps_per_epoch = steps_per_epoch
        self.steps = max(1, round(args.epochs * steps_per_epoch))
        self.epochs = math.ceil(self.steps / steps_per_epoch)  # the last one may be cut short
        # With --then there are two stages: this many steps (the share --switch) with the first
        # loss, then the second loss. The optimiser and the EMA go on from one to the other.
        self.first_stage_steps = first_stage(self.steps, args.switch) if args.then else self.steps
        # The exponential moving average (EMA) of weights and batch norm statistics reaches back
        # over about the last twentieth of the run. It is what is scored and saved.
        self.ema_decay = 1 - 1 / max(10, self.steps / 20)


def build(args, steps):
    """The network, and the arguments that make it, which the checkpoint keeps."""
    network = {"encoder": args.encoder, "gates": args.gates, "hypercolumn": args.hypercolumn,
               "attention": None if args.attention == "none" else args.attention,
               "deep_supervision": args.deep_supervision,
               # Stochastic depth keeps long runs from overfitting but slows short ones down: the
               # paper's 0.2 is reached only at 50,000 steps.
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


def make_optimizer(net, args):
    """AdamW. A pretrained encoder gets a lower rate; norms and biases (1-D) no weight decay."""
    def params(encoder, decayed):
        return [p for name, p in net.named_parameters()
                if name.startswith("encoder.") == encoder and (p.ndim > 1) == decayed]

    encoder_lr = args.lr * (args.encoder_lr if args.weights else 1)
    return torch.optim.AdamW(
        [{"params": params(encoder, decayed), "lr": lr, "weight_decay": 1e-2 if decayed else 0.0}
         for encoder, lr in ((True, encoder_lr), (False, args.lr)) for decayed in (True, False)],
        fused=True)


def learning_rate(step, steps, first_stage_steps):
    """The learning rate of a step, as a share of the highest: it rises linearly over a tenth of the
    steps (500 at most), then falls along half a cosine. Each of two stages does so by itself."""
    if step < first_stage_steps:
        steps = first_stage_steps
    else:
        step, steps = step - first_stage_steps, steps - first_stage_steps
    warm_up = max(1, min(500, steps // 10))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def training_step(net, loss, micro_batches, optimizer, scaler, dtype=None, accumulate=1):
    """One step of the optimiser, with the mean gradient of `accumulate` micro-batches (images,
    targets). Returns the mean loss as a tensor on the device: nothing waits for its value here."""
    total = 0
    for images, targets in micro_batches:
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, dtype, enabled=dtype is not None):
            logits = net(images)
        # Without deep supervision there is one map of logits, and this is the loss itself.
        value = deep_supervision_loss(loss, logits, targets) / accumulate
        scaler.scale(value).backward()  # for float16; otherwise the scaler does nothing
        total = total + value.detach()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    return total


def train(args, tiles, train_on, held_out, folder):
    """Train on the tiles `train_on`. Returns the network with the averaged weights (EMA), and the
    arguments that make it."""
    steps_of = make_sampler(args, tiles, train_on)  # epoch -> steps -> batches -> tile numbers
    plan = Plan(args, len(steps_of(0)))
    net, network = build(args, plan.steps)
    optimizer, ema = make_optimizer(net, args), EMA(net, plan.ema_decay)
    highest_rates = [group["lr"] for group in optimizer.param_groups]
    dtype = autocast_dtype(args.device) if args.amp else None
    scaler = torch.amp.GradScaler(torch.device(args.device).type, enabled=dtype == torch.float16)
    forward, losses = net, args.losses
    if args.checkpoint_activations:
        recompute_activations(net)
    if args.compile:
        forward, *losses = (torch.compile(part, dynamic=False) for part in (net, *losses))

    states = {"net": net, "average": ema.net, "optimizer": optimizer, "scaler": scaler}
    # With --resume, Run puts the saved states back and begins after the last saved step.
    with Run(args, plan, tiles, folder, states) as run:
        for epoch in range(run.epoch, plan.epochs):
            steps = run.remaining(steps_of(epoch))
            batches = tiles.batches([batch for step in steps for batch in step],
                                    args.device, args.workers)
            net.train()
            for step in steps:
                rate = learning_rate(run.step, plan.steps, plan.first_stage_steps)
                for group, highest in zip(optimizer.param_groups, highest_rates):
                    group["lr"] = highest * rate
                loss = losses[0] if run.step < plan.first_stage_steps else losses[1]
                # Random numbers depend on the seed and the step, so a resumed run draws the same.
                generator = seeded(args.seed, "step", run.step)
                torch.manual_seed(seeded(args.seed, "depth", run.step).initial_seed())
                micro_batches = (augment(*next(batches), args.tile, generator) for _ in step)
                value = training_step(forward, loss, micro_batches, optimizer, scaler, dtype,
                                      accumulate=len(step))
                ema.update()
                run.after_step(value, rate * args.lr, step)
            # For the log only. Choosing the best epoch by it would overstate the score.
            quick = score(predict(ema.net, held_out, args, overlap=0), held_out)
            run.after_epoch(quick["pooled_dice"])
    return ema.net.eval(), network


def train_and_score(args, data, fold):
    """One fold, from its folder to its model.pt."""
    folder = args.out / f"fold{fold}"
    held_out = [item for item, other in zip(data.items, data.folds) if other == fold]
    print(f"{folder}: {len(data.items) - len(held_out)} images to train on, "
          f"{len(held_out)} to score", flush=True)
    net, network = train(args, data.tiles, outside(data.tiles, data.folds, fold), held_out, folder)
    (folder / "probabilities").mkdir(exist_ok=True)
    counts = predict(net, held_out, args, folder=folder / "probabilities")
    threshold = save_fold(folder, held_out, counts)
    state = {name: value.cpu() for name, value in net.state_dict().items()}
    save_model(folder / "model.pt", network, state, scale=args.scale, tile=args.tile,
               threshold=threshold, microns=data.microns, white=args.white,
               label=class_name(data.items))  # last: from now on the fold is complete
    print(f"look at {folder / 'preview.png'}")


def main(argv=None):
    """Prepare the data; train and score fold by fold; summarize."""
    args, start = train_options(argv), time.monotonic()
    with explained(args, argv, exit_code=2):  # one line on stderr in place of a traceback
        data = prepare(args)
        save_config(args.out, data.config)
    with explained(args, argv, exit_code=1):
        for fold in data.chosen:
            with claim_fold(args.out / f"fold{fold}", args.resume) as claimed:
                if claimed:  # it is not there yet, and no other process is at work on it
                    train_and_score(args, data, fold)
        print(f"took {duration(time.monotonic() - start)}")
        summarize(args.out, data.items, data.folds)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\ntrain.py: stopped")
