"""Train a U-Net on slides and score it on slides that it has not seen.

    python train.py                          synthetic kidney slides, drawn on first use; one fold
    python train.py --data DIR --folds 5     all folds of the slides in DIR

A slide is a whole-slide image: a microscope scan of a piece of tissue, up to 50,000 x 35,000
pixels. Its mask marks the pixels that the network has to find. DIR holds images/, masks/ and,
optionally, groups.csv; or train/ and train.csv, as in Kaggle's "HuBMAP - Hacking the Kidney".

The slides are divided into K folds, for cross-validation. To hold out a fold means to train on the
slides of all other folds, and then to score the network on the slides of this one. All slides of a
group (a patient) are in the same fold, so no patient is both trained on and scored.

The run's folder holds config.json; for each fold log.csv, curves.png, probabilities/, model.pt (for
infer.py), preview.png, score.json, and resume.pt until it is complete; at the end summary.json.
"""

import math
import sys
import time

import torch

from minseg import UNet, deep_supervision_loss, load_weights, make_loss, processes
from minseg.augment import augment
from minseg.losses import first_stage
from minseg.run.checkpoint import save_model
from minseg.run.config import begin_fold, check_unchanged
from minseg.run.errors import explained
from minseg.run.loop import Run, claim_fold
from minseg.run.memory import keep_memory
from minseg.run.options import train_options
from minseg.run.prepare import class_name, make_sampler, prepare, training_tiles
from minseg.run.report import duration
from minseg.run.scores import finish_fold, predict, score, summarize
from minseg.training import EMA, autocast_dtype, backward_whole, recompute_activations

# What the options leave open. docs/log.md tells what else was tried, and what it did to the score.
WEIGHT_DECAY = 1e-2
ENCODER_LR = 0.5  # learning rate of a pretrained encoder, as a share of --lr
WARM_UP, LONGEST_WARM_UP = 0.1, 500  # share of a run's steps, and steps
EMA_SHARE, EMA_SHARE_RANDOM, SHORTEST_EMA = 0.2, 0.05, 10  # shares of a run's steps, and steps
DEPTH, DEPTH_STEPS = 0.2, 50_000  # stochastic depth, and the length of the run that reaches it


class Plan:
    """How long a run is, and what follows from that."""

    def __init__(self, args, steps_per_epoch):
        self.steps_per_epoch = steps_per_epoch
        self.steps = max(1, round(args.epochs * steps_per_epoch))
        self.epochs = math.ceil(self.steps / steps_per_epoch)  # the last one may be cut short
        # With --then there are two stages: this many steps (the share --switch) with the first
        # loss, then the rest with the second. The optimiser and the EMA carry over.
        self.first_stage_steps = first_stage(self.steps, args.switch) if args.then else self.steps
        # We score and save an exponential moving average (EMA) of the weights and of the batch norm
        # statistics, over about the last fifth of the run, or twentieth from random weights.
        ema_steps = (EMA_SHARE if args.weights else EMA_SHARE_RANDOM) * self.steps
        self.ema_decay = 1 - 1 / max(SHORTEST_EMA, ema_steps)


def build(args, steps, positive=0.5):
    """The network for a run of `steps` steps, and its arguments (see minseg/unet.py)."""
    arguments = {"encoder": args.encoder, "gates": args.gates, "hypercolumn": args.hypercolumn,
                 "attention": None if args.attention == "none" else args.attention,
                 "deep_supervision": args.deep_supervision,
                 # Stochastic depth skips blocks at random: long runs overfit less, short ones learn
                 # more slowly. So its rate grows, to EfficientNet's 0.2 at 50,000 steps.
                 "stochastic_depth": DEPTH * min(1, steps / DEPTH_STEPS)}
    torch.manual_seed(args.seed)
    net = UNet(**arguments)
    # At first the network predicts the share of positive pixels in all tiles. If it predicted 1/2,
    # early steps would push all pixels down, rare objects too (arXiv 1708.02002, section 3.3).
    for head in [net.head, *(net.deep_heads or [])]:
        torch.nn.init.constant_(head.bias, torch.logit(torch.as_tensor(positive), 0.001))
    if args.weights:
        mean, std = load_weights(net.encoder, args.weights)  # also sets padding and bn_eps
        net.mean.copy_(torch.tensor(mean).view_as(net.mean))
        net.std.copy_(torch.tensor(std).view_as(net.std))
    arguments.update(mean=net.mean.flatten().tolist(), std=net.std.flatten().tolist(),
                     padding=net.encoder.padding, bn_eps=net.encoder.bn_eps)
    return net.to(args.device, memory_format=torch.channels_last), arguments


def make_optimizer(net, args):
    """AdamW. A pretrained encoder learns at a lower rate than the rest of the network. Weight decay
    applies to the weights of convolutions, but not to biases and norms, whose tensors are 1-D."""
    encoder = list(net.encoder.parameters())
    others = [p for name, p in net.named_parameters() if not name.startswith("encoder.")]
    encoder_lr = args.lr * ENCODER_LR if args.weights else args.lr
    groups = []
    for parameters, lr in ((encoder, encoder_lr), (others, args.lr)):
        convolutions = [p for p in parameters if p.ndim > 1]
        biases_and_norms = [p for p in parameters if p.ndim <= 1]
        groups.append({"params": convolutions, "lr": lr, "weight_decay": WEIGHT_DECAY})
        groups.append({"params": biases_and_norms, "lr": lr, "weight_decay": 0.0})
    return torch.optim.AdamW(groups, fused=True)


def learning_rate_share(step, steps, first_stage_steps):
    """The learning rate at a step, as a share of the highest rate. It rises linearly over a tenth
    of the steps (at most 500), then falls along half a cosine. With two stages, each does so."""
    if step < first_stage_steps:
        stage_steps = first_stage_steps
    else:
        step, stage_steps = step - first_stage_steps, steps - first_stage_steps
    warm_up = max(1, min(LONGEST_WARM_UP, int(WARM_UP * stage_steps)))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, stage_steps - warm_up)))


def training_step(forward, loss, micro_batches, optimizer, scaler, dtype=None, accumulate=1):
    """One step of the optimiser, with the gradient of `accumulate` micro-batches (images, targets)
    together. Returns the loss as a tensor on the device, so that the GPU need not finish before the
    next step is prepared."""
    total = 0
    if accumulate > 1 and getattr(loss, "over_batch", False):  # more than a mean over images
        total = backward_whole(forward, loss, micro_batches, scaler, dtype)
        micro_batches = ()
    for images, targets in micro_batches:
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, dtype, enabled=dtype is not None):
            logits = forward(images)
        # Without deep supervision there is one map of logits, and this is just `loss`.
        value = deep_supervision_loss(loss, logits, targets) / accumulate
        scaler.scale(value).backward()  # the scaler acts only on float16 training
        total = total + value.detach()
    total = processes.add_gradients(optimizer, total)  # of all processes, with torchrun
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    return total


def train(args, tiles, train_on, held_out, folder, build=build, after_step=lambda step, net: None):
    """Train on the tiles `train_on`, and log the score on the images `held_out`, if any, after each
    epoch. Returns the averaged network (EMA) and its arguments. `after_step` is for experiments."""
    # numbers_of(epoch) tells which tiles each step sees: int64 (steps, accumulate, batch).
    numbers_of = make_sampler(args, tiles, train_on)
    steps_per_epoch, accumulate, _ = numbers_of(0).shape
    plan, mine = Plan(args, steps_per_epoch), processes.share(accumulate)  # with torchrun, some
    net, arguments = build(args, plan.steps, tiles.mask_area[train_on].mean())
    optimizer, ema = make_optimizer(net, args), EMA(net, plan.ema_decay)
    highest_rates = [group["lr"] for group in optimizer.param_groups]
    first_loss, second_loss = make_loss(args.loss), make_loss(args.then or args.loss)
    dtype = autocast_dtype(args.device) if args.amp else None
    scaler = torch.amp.GradScaler(torch.device(args.device).type, enabled=dtype == torch.float16)
    if args.checkpoint_activations:
        recompute_activations(net)
    forward = torch.compile(net, dynamic=False) if args.compile else net
    # With --resume, Run restores what was saved and continues after the last saved step.
    with Run(args, plan, tiles, folder, net, ema, optimizer, scaler) as run:
        for epoch in range(run.epoch, plan.epochs):
            numbers = run.remaining(numbers_of(epoch))
            batches = tiles.batches(numbers[:, mine].flatten(0, 1), args.device, args.workers)
            net.train()
            for numbers_of_step in numbers:  # (accumulate, batch)
                lr_share = learning_rate_share(run.step, plan.steps, plan.first_stage_steps)
                for group, highest in zip(optimizer.param_groups, highest_rates):
                    group["lr"] = highest * lr_share
                loss = first_loss if run.step < plan.first_stage_steps else second_loss
                micro_batches = (augment(*next(batches), args.tile, run.random(k), args.augment)
                                 for k in range(accumulate)[mine])
                value = training_step(forward, loss, micro_batches, optimizer, scaler, dtype,
                                      accumulate)
                run.statistics.combine(accumulate)  # batch norm's, with torchrun
                ema.update()
                run.after_step(value, lr_share * args.lr, numbers_of_step)
                after_step(run.step, ema.net)
            # For the log only: to choose the best epoch by it would overstate the final score.
            quick_score = score(predict(ema.net, held_out, args, overlap=0), held_out)
            run.after_epoch(quick_score["pooled_dice"])
    return ema.net.eval(), arguments


def train_and_save(args, data, fold):
    """Train with one fold held out, predict it, and write model.pt."""
    folder, held_out = args.out / f"fold{fold}", data.held_out(fold)
    print(f"{folder}: {len(data.items) - len(held_out)} images to train on, "
          f"{len(held_out)} to score", flush=True)
    train_on = training_tiles(data.tiles, data.folds, fold)
    net, arguments = train(args, data.tiles, train_on, held_out, folder)
    (folder / "probabilities").mkdir(exist_ok=True)
    counts = predict(net, held_out, args, folder=folder / "probabilities")
    check_unchanged(args.out, data)
    threshold = score(counts, held_out)["best_threshold"]  # what infer.py will use on new slides
    save_model(folder / "model.pt", arguments, net.cpu().state_dict(), scale=args.scale,
               tile=args.tile, threshold=threshold, microns=data.microns, white=args.white,
               label=class_name(data.items), turn=True, resample=bool(args.microns))  # fold done


def main(argv=None):
    """Prepare the data; train and score fold by fold; summarize."""
    processes.start()  # those of torchrun, if it is used: see minseg/processes.py
    args, start = train_options(argv), time.monotonic()
    keep_memory()  # on a CPU, a step is 1.5 times as fast
    # An error becomes one line on stderr and an exit code. 2: options or data are wrong, no fold is
    # begun. 1: it failed later. 3: a fold needs --resume, or another process is training it.
    with explained(args, exit_code=2), processes.first_then_others():
        data = prepare(args)
        args.out.mkdir(parents=True, exist_ok=True)
    with explained(args, exit_code=1):
        for fold in data.chosen:
            with claim_fold(args.out / f"fold{fold}", args.resume) as claimed:
                if claimed:  # the fold is not complete, and no other process is training it
                    begin_fold(args, data, fold)
                    train_and_save(args, data, fold)
            finish_fold(args.out / f"fold{fold}", data.held_out(fold))
        summarize(args.out, data.items, data.folds, data.chosen)
        print(f"took {duration(time.monotonic() - start)}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("\ntrain.py: stopped", file=sys.stderr)
        sys.exit(130)
