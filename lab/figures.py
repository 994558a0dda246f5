"""The pictures of the docstrings and pages, drawn by the code that they explain.

    python -m lab.figures                     all of them, into docs/figures/
    python -m lab.figures windows lovasz      some

Some show a network at work: two are trained first, into runs/figures-*, for ten minutes. The
charts of what was measured are drawn from docs/results/; nothing is measured anew. (preview.jpg is
the upper half of runs/synthetic/fold0/preview.png, which `python train.py` writes.)"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import minseg
import train
from minseg.augment import augment
from minseg.deep_supervision import deep_supervision_weights
from minseg.losses import first_stage
from minseg.lovasz import jaccard_weights
from minseg.run.checkpoint import load_model
from minseg.run.report import Parser
from minseg.synthetic import draw_tissue, photograph, stain, synthetic_slide
from minseg.training import EMA
from minseg.tta import flips_and_turns

from . import style
from .measure import RESULTS
from .plots import KINDS, stored_chart
from .style import BLUE, FAINT, GREY, INK, ORANGE, PALETTE, RED, arrow, curves, outline, sheet, show

SEED, SCALE, TILE = 5001, 4, 128  # of the image; of `train.py`'s synthetic slides
EPOCHS = "34"  # 612 steps: about as long as a run of `lab.study`
NETWORKS = {"every-trick": "--gates --attention scse --hypercolumn --deep-supervision",
            "cbam": "--attention cbam"}
COLOURS = (0, 32, 77), (253, 231, 55), (213, 94, 0)  # background, found, wrong
RANGE = "{:.2f} (dark)\nto {:.2f} (yellow)"  # under a map of which the numbers matter


def trained(name: str, runs: Path) -> nn.Module:
    """One of `NETWORKS`, from `runs`, or trained into it, which takes some minutes."""
    out = runs / f"figures-{name}-{EPOCHS}-epochs"
    model = out / "fold0" / "model.pt"
    if not model.exists():
        torch.set_num_threads(1)  # the same network whatever the number of cores
        train.main(["--encoder", "efficientnet-lite0", "--weights", "imagenet", "--epochs", EPOCHS,
                    "--stride", "64", "--batch", "8", "--lr", "5e-3", "--augment", "1",
                    *NETWORKS[name].split(), "--device", "cpu", "--resume", "--out", str(out)])
    return load_model(model, "cpu")[0]


def unseen(size: int = 256) -> tuple[Tensor, Tensor]:
    """An image that no network has seen, at the training scale, uint8 (size, size, 3), and its
    mask, (size, size) in {0, 1}."""
    image, mask = (torch.from_numpy(array).float().reshape(size, SCALE, size, SCALE, -1)
                   .mean((1, 3)) for array in synthetic_slide(SEED, size * SCALE, size * SCALE))
    return image.round().byte(), (mask[..., 0] >= 0.5).byte()


def watched(net: nn.Module, image: Tensor, names: Sequence[str]) -> list[tuple[tuple, Tensor]]:
    """What goes into the network's modules `names` and what comes out, for an image (H, W, 3)."""
    seen = {}
    hooks = [net.get_submodule(name).register_forward_hook(
        lambda _, given, result, name=name: seen.update({name: (given, result)})) for name in names]
    with torch.inference_mode():
        net(image.permute(2, 0, 1)[None] / 255)
    for hook in hooks:
        hook.remove()
    return [seen[name] for name in names]


def show_map(axes, values: Tensor, title: str, note: str = "", **options) -> None:
    """A map (H, W), or how strong each place of (1, C, H, W) is: the mean over the channels of the
    absolute values. Only the highest and the lowest 2 % of the values share a colour."""
    values = values if values.ndim == 2 else values[0].abs().mean(0)
    low, high = values.float().quantile(torch.tensor([0.02, 0.98])).tolist()
    show(axes, values, title, note.format(low, high), vmin=low, vmax=max(high, low + 1e-6),
         **options)


def range_and_means(weights: Tensor, mask: Tensor) -> str:
    """What stands under a map of weights (h, w): its range, and its means inside and outside the
    glomeruli of the mask (H, W)."""
    there = F.interpolate(mask[None, None].float(), weights.shape)[0, 0] >= 0.5
    inside, outside = weights[there].mean(), weights[~there].mean()
    return f"{RANGE}\nin glomeruli {inside:.2f},\nelsewhere {outside:.2f}"


def show_channels(axes, weights: Tensor, title: str) -> None:
    """A bar for the weight of each channel, the largest first."""
    axes.bar(range(weights.numel()), sorted(weights.flatten().tolist())[::-1], color=BLUE)
    axes.set(title=title, xticks=[], ylim=(0, 1), yticks=(0, 0.5, 1), box_aspect=1)


def size_of(maps: Tensor) -> str:
    """Channels and size, as words."""
    return "{} × {} × {}".format(*maps.shape[1:])


# Each of these returns a figure and those of its axes that tell it from others when it is small.


def draw_efficientnet():
    """One block of B0 in numbers, and what compound scaling makes of the network."""
    figure, (above, below) = sheet("One MBConv block: wide inside, thin between blocks", 2, 1,
                                   height=5.2)
    block = minseg.EfficientNet("efficientnet-b0", num_classes=0).blocks[2]  # has a shortcut
    thin, wide = block.branch[0].in_channels, block.branch[0].out_channels
    names = ("x", "expand\n1 × 1", "depthwise\n3 × 3", "squeeze:\nweigh channels",
             "project\n1 × 1", "+ x")
    channels = np.array([thin, wide, wide, wide, thin, thin])
    colours = np.where(channels == thin, BLUE, RED)
    bars = above.bar(names, channels, 0.56, -channels / 2, color=colours)
    above.bar_label(bars, label_type="center", color="white")
    for x in range(1, 6):
        arrow(above, (x - 0.7, 0), (x - 0.3, 0))
    above.plot([0, 0, 5, 5], [thin, wide * 0.64, wide * 0.64, thin], "v-", color=INK, markevery=[3])
    above.set(yticks=[], title="the shortcut: x is added again")
    with torch.device("meta"):  # shapes only, no memory
        nets = [minseg.EfficientNet(f"efficientnet-b{k}") for k in range(8)]
    sizes = [sum(p.numel() for p in net.parameters()) / 1e6 for net in nets]
    below.bar_label(below.bar([f"B{k}" for k in range(8)], sizes, color=BLUE), fmt="%.1f")
    below.set(title="Parameters of B0 to B7, in millions", yticks=[], ymargin=0.15)
    return figure, [above, below]


def draw_dice():
    """What an empty image costs, by how much is wrongly found in it, for values of smooth."""
    sums = np.logspace(-3, 3, 121)
    logits = torch.logit(torch.tensor(sums) / 64**2).view(-1, 1, 1, 1, 1).expand(-1, 1, 1, 64, 64)
    here, monai = ([minseg.dice_loss(z, torch.zeros(1, 1, 64, 64), smooth=smooth) for z in logits]
                   for smooth in (1, 1e-5))
    figure, axes = curves("What Dice makes of an image with nothing to find", {
        "smooth = 1 (here)": (sums, here), "smooth = 1e-5 (MONAI)": (sums, monai),
        "empty batch, segmentation_models.pytorch": (sums, 0 * sums)},
        "S: the probabilities of all pixels, added up", "loss")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    return figure, [axes]


def draw_sorting():
    """The Lovász hinge of four pixels, step by step."""
    hinges, target = torch.tensor([[3.0, 2.0, 1.0, 0.0]]), torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    weights = jaccard_weights(hinges, target, target.sum(1, keepdim=True))[0]
    delta = weights.cumsum(0)
    figure, axes = sheet("From hinges to the loss: four pixels, the worst first", 1, 3, height=3.6,
                         note="Blue: positive pixels. Orange: negative ones.")
    colours, places = [BLUE if t else ORANGE for t in target[0]], np.arange(1, 5)
    axes[0].bar(places, hinges[0], color=colours)
    axes[1].bar(places, weights, bottom=delta - weights, color=colours)
    axes[1].step([0.6, *places + 0.4], [0, *delta], where="pre", color=INK, linewidth=2)
    axes[2].bar(places, hinges[0] * weights, color=colours)
    for plot, title, values in zip(axes, (
            "hinges, sorted", "1 - Jaccard if the first k\nare wrong; its steps: the weights",
            f"hinge times weight:\nthe loss is {(hinges[0] * weights).sum():.3f}"),
            (hinges[0], weights, hinges[0] * weights)):
        heights = delta if values is weights else values
        for place, value, height in zip(places, values, heights):
            plot.text(place, height, f"{value:.3g}", ha="center", va="bottom")
        plot.set(title=title, xticks=places, xlabel="pixel k", yticks=(),
                 ylim=(0, 1.15 * heights.max().item()))
    return figure, []


def draw_lovasz(steps: int = 61):
    """Three losses of two pixels, the first positive, the second not."""
    figure, axes = sheet("Two pixels, one positive, one negative: the loss for all their logits",
                         1, 3, height=3.9, sharey=True)
    line, target = torch.linspace(-3, 3, steps), torch.tensor([[[[1.0, 0.0]]]])
    points = torch.cartesian_prod(line, line).flip(1).view(-1, 1, 1, 1, 2)  # batches of two pixels
    wrong = points.flatten(1) * torch.tensor([-1, 1]) > 0
    for plot, highest, name, losses in (
            (axes[0], 1, "1 - Jaccard: no gradient", wrong.sum(1) / (1 + wrong[:, 1].float())),
            (axes[1], 4, "Lovász hinge: convex", [minseg.lovasz_hinge(z, target) for z in points]),
            (axes[2], 1, "Dice loss: not convex",
             [minseg.dice_loss(z, target, smooth=0.0) for z in points])):
        levels = np.floor(torch.as_tensor(losses).view(steps, steps).numpy() / highest * 12)
        colours = plot.imshow(levels * highest / 12, origin="lower", extent=(-3, 3, -3, 3),
                              vmin=0, vmax=highest)
        plot.set(title=name, xlabel="logit, positive pixel", xticks=(-2, 0, 2), yticks=(-2, 0, 2))
        figure.colorbar(colours, ax=plot, location="bottom", ticks=(0, highest)).outline.set_lw(0)
    axes[0].set_ylabel("logit, negative pixel")
    return figure, axes[1:]


def draw_losses():
    """The learning rate of two stages, and which loss is trained with."""
    second = first_stage(300, 0.6)
    rates = [train.learning_rate_share(step, 300, second) for step in range(300)]
    figure, axes = curves("--loss dice --then lovasz --switch 0.6", {
        "Dice: find the objects": (range(second), rates[:second]),
        "Lovász: refine them": (range(second, 300), rates[second:])}, "step",
        "learning rate, share of the highest", 3.8)
    return figure, [axes]


def draw_sampling():
    """Which of 60 tiles each of six epochs sees: all, one negative per positive, balanced bins."""
    figure, axes = sheet("What an epoch sees: a column is a tile, a row an epoch", 3, 1, height=6,
                         sharex=True, note="A number: how many times the tile is drawn. At the "
                         "right: tiles in the epoch. Pale: not drawn.")
    rng = np.random.default_rng(0)
    area = np.sort(np.concatenate([np.zeros(42), rng.beta(1, 3, 18) * 0.5]))[::-1].copy()
    for plot, title, options in (
            (axes[0], "all tiles", {"negatives": math.inf}),
            (axes[1], "negatives = 1: every positive tile, and as many of the others", {}),
            (axes[2], "bins = 4 as well: large and small areas equally often", {"bins": 4})):
        totals = []
        for epoch in range(6):
            times = minseg.epoch_indices(torch.tensor(area), **options, generator=torch.Generator()
                                  .manual_seed(epoch)).bincount(minlength=60).tolist()
            plot.broken_barh([(i + 0.08, 0.84) for i in range(60)], (epoch + 0.08, 0.84), color=[
                FAINT if not n else BLUE if area[i] else ORANGE for i, n in enumerate(times)])
            for i in (i for i, n in enumerate(times) if n > 1):
                plot.text(i + 0.5, epoch + 0.5, times[i], color="white", size=8, ha="center",
                          va="center_baseline")
            totals.append(sum(times))
        plot.set(title=title, ylabel="epoch", xlim=(0, 60), ylim=(6, 0), xticks=(9, 39),
                 yticks=np.arange(6) + 0.5, yticklabels=range(1, 7), xticklabels=(
                     "18 tiles with an object (blue),\nlargest area first",
                     "42 tiles without (orange)"))
        plot.secondary_yaxis("right").set_yticks(np.arange(6) + 0.5, totals)
    return figure, axes


def draw_augment():
    """A tile with its margin, and eight of the tiles that are made of it."""
    figure, axes = sheet(
        "One tile, and eight of the tiles that it becomes",
        [["tile", "tile", *range(4)], ["tile", "tile", *range(4, 8)]], height=3.7,
        note="Blue: the outline of the mask. Dashes: the tile without shift, turn and scale; "
        "around it, its margin.")
    image, mask = unseen()
    size, tile = 3 * TILE // 2, TILE
    start = (len(image) - size) // 2
    crop = slice(start, start + size), slice(start, start + size)
    image, mask = image[crop], mask[crop]
    images, masks = (part.expand(8, -1, -1, -1) for part in (image.permute(2, 0, 1), mask[None]))
    images, masks = augment(images, masks, tile, torch.Generator().manual_seed(3))
    show(axes["tile"], image, f"with its margin: {size} × {size}")
    outline(axes["tile"], mask, BLUE, 2)
    low, high = (size - tile) / 2 - 0.5, (size + tile) / 2 - 0.5
    axes["tile"].plot([low, high, high, low, low], [low, low, high, high, low], "--", color=INK)
    for k in range(8):
        show(axes[k], images[k].permute(1, 2, 0), f"{tile} × {tile}" if k == 0 else "")
        outline(axes[k], masks[k, 0], BLUE, 2)
    return figure, [axes[k] for k in (0, 1, 2, 4, 5, 6)]


def draw_training():
    """What numbers of 16 bits can hold; weights and their average along a learning rate."""
    figure, axes = sheet("Numbers of 16 bits, and an average of noisy weights",
                         [["numbers"], ["weights"], ["rate"]], height=6.6,
                         height_ratios=(1, 1.5, 0.8))
    kinds = [torch.finfo(dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)]
    for y, kind in enumerate(kinds):
        low, high = math.log10(kind.tiny * kind.eps), math.log10(kind.max)
        axes["numbers"].barh(y, high - low, 0.6, low, color=RED if kind.max < 1e5 else BLUE)
        axes["numbers"].text(42, y, f"after 1 comes {1 + kind.eps:.8g}", va="center")
    axes["numbers"].set(title="from the smallest number to the largest", xlim=(-46, 80),
                        xticks=(-40, -20, 0, 20, 40), yticks=range(3), xticklabels=[
                            f"1e{power}" for power in (-40, -20, 0, 20, 40)],
                        yticklabels=[kind.dtype for kind in kinds])
    steps, weight = 300, nn.Module()
    weight.w = nn.Parameter(torch.tensor(3.0))
    ema, noise = EMA(weight, 1 - 1 / (steps / 5)), np.random.default_rng(0)
    rates, paths = [train.learning_rate_share(step, steps, steps) for step in range(steps)], []
    for rate in rates:  # the gradient of w^2 / 2, and noise
        weight.w.data -= 0.2 * rate * (weight.w.data + noise.normal(0, 2))
        ema.update()
        paths.append((weight.w.item(), ema.net.w.item()))
    raw, average = zip(*paths)
    axes["weights"].plot(raw, color=GREY, linewidth=1, label="w")
    axes["weights"].plot(average, color=BLUE, label="its average (EMA)")
    axes["weights"].axhline(0, color=INK, linewidth=1)
    axes["weights"].set(title="minimise w² / 2, with noise in each gradient", ylabel="w",
                        xticklabels=[])
    axes["weights"].legend(loc="upper right")
    axes["rate"].plot(rates, color=BLUE)
    axes["rate"].set(xlabel="step", ylabel="rate", yticks=(0, 1))
    axes["rate"].grid()
    return figure, [axes["weights"]]


def draw_overlap():
    """Two tiles that overlap, what each weighs, and how much each counts at one pixel."""
    figure, (above, below) = sheet(
        "A pixel that two tiles predict: the one it lies deeper in counts more", 2, 1, height=4.9,
        sharex=True, height_ratios=(1.3, 1), note="linear window: the distance to the nearest side")
    tile, stride, at = 256, 192, 208
    above.imshow(synthetic_slide(3, 256, 448)[0][64:192], extent=(0, 448, 128, 0))
    weight = minseg.blend_window(tile)[tile // 2].numpy()
    total = weight[at] + weight[at - stride]
    for left, colour, line, name in ((0, BLUE, "-", "tile 1"), (stride, RED, "--", "tile 2")):
        x0, x1, share = left + 1, left + tile - 1, weight[at - left]
        above.plot([x0, x1, x1, x0, x0], [1, 1, 127, 127, 1], color=colour, linestyle=line)
        above.text(x1 - 50 if left else x0 + 6, 16, name, color="white", bbox={"color": colour})
        below.plot(left + 0.5 + np.arange(tile), weight, color=colour, linestyle=line)
        below.plot(at, share, "o", color=colour)
        below.text(at - 8, share, f"{name}: {share / total:.0%} of the result", color=colour,
                   ha="right", va="center")
    above.plot(at, 64, "o", color="white", markersize=11, markeredgecolor=INK, markeredgewidth=2)
    above.set_yticks([])
    below.vlines(at, 0, weight[at], color=INK, linewidth=1)
    below.set_ylabel("weight")
    return figure, []


def draw_windows():
    """The four windows, and what tiles that overlap by half weigh together."""
    figure, axes = sheet("Four windows, and what tiles half a tile apart weigh together", 3, 4,
                         height=5.2, height_ratios=(2, 1, 1), note="All but the Gaussian, which "
                         "trusts the middle, add up to a constant;\nthe division by the sum evens "
                         "the Gaussian out.")
    tile = 64
    for (above, middle, below), kind in zip(axes.T, ("uniform", "linear", "hann", "gaussian")):
        window, total = minseg.blend_window(tile, kind), torch.zeros(3 * tile)
        for start in minseg.tile_starts(3 * tile, tile, tile // 2):
            total[start : start + tile] += window[tile // 2]
        show(above, window, kind, vmin=0, vmax=1)
        middle.plot(window[tile // 2], color=BLUE)
        below.plot(total[tile // 2 : -tile // 2], color=BLUE)
        for plot, high, name in ((middle, 1, "middle row"), (below, 2, "sum")):
            plot.set(xticks=[], yticks=(0, high / 2, high), ylim=(-0.06 * high, 1.1 * high),
                     ylabel=name if kind == "uniform" else "")
            plot.grid(axis="y")
    return figure, []


def draw_tta():
    """The eight views of a tile, as the network gets them."""
    figure, axes = sheet("Eight views of one tile: four quarter turns, and each in the mirror", 2,
                         4, height=4.9)
    tile = unseen()[0][20:148, 60:188].permute(2, 0, 1)[None]  # (1, 3, 128, 128)
    views: list[Tensor] = []
    flips_and_turns(lambda tiles: views.append(tiles) or tiles[:, :1])(tile)
    for k, (view, plot) in enumerate(zip(views[0], axes.flat)):
        show(plot, view.permute(1, 2, 0), f"{k % 4 * 90} degrees{', flipped' if k > 3 else ''}")
    return figure, axes[:, :3].flat


def draw_synthetic():
    """A slide, its mask, another patient's stain; and a close look at its dyes."""
    figure, axes = sheet("A synthetic slide, and what it is made of", 2, 3, height=6.4)
    size, near = 640, np.s_[220:360, 215:355]
    rng = np.random.default_rng([4, 0])  # as `synthetic_slide` does it
    stains = [stain(np.random.default_rng([patient, 1]), rng) for patient in (4, 7)]
    dyes, mask = draw_tissue(rng, size, size, (8, 16))
    images = [photograph(np.random.default_rng(0), dyes, *each) for each in stains]
    whole = [image.reshape(size // 2, 2, size // 2, 2, 3).mean((1, 3)) / 255 for image in images]
    show(axes[0, 0], whole[0], "a slide")
    show(axes[0, 1], mask, "its mask")
    show(axes[0, 2], whole[1], "the same, stained in\nanother laboratory")
    show(axes[1, 0], dyes[near][..., 0], "haematoxylin", vmin=0, vmax=1)
    show(axes[1, 1], dyes[near][..., 1], "PAS", vmin=0, vmax=1)
    show(axes[1, 2], images[0][near], "what the camera sees")
    outline(axes[1, 2], mask[near], BLUE)
    return figure, axes.flat


def draw_folds():
    """Images of patients, and the folds they go to."""
    figure, axes = sheet(
        "Folds of whole groups: a patient's images stay together", height=3.6, note="A letter is a "
        "patient; the width of an image is its share of the row's positive pixels. Each fold\nis "
        "held out in turn: a patient's score comes from a network that saw none of these images.")
    rng = np.random.default_rng(4)
    counts = dict(zip("ABCDEFGHI", (3, 2, 2, 4, 1, 2, 1, 3, 2)))
    groups = np.repeat(list(counts), list(counts.values()))
    positives, colours = rng.integers(20, 100, len(groups)), dict(zip(counts, PALETTE))
    folds = np.array(minseg.group_folds(groups.tolist(), positives.tolist(), 3))
    rows = {"all images": folds >= 0, **{f"fold {fold}": folds == fold for fold in range(3)}}
    for y, row in enumerate(rows.values()):
        left, widths = 0.0, positives[row] / positives[row].sum()
        for group, width in zip(groups[row], widths):
            bar = axes.barh(y, width, 0.7, left, color=colours[group], edgecolor="white")
            axes.bar_label(bar, [group], label_type="center",
                           color="black" if group in "BEFG" else "white")
            left += width
    axes.set(xticks=[], ylim=(3.5, -0.5), xlim=(0, 1), yticks=range(4), yticklabels=[
        f"{name}:\n{positives[row].sum()} positive" for name, row in rows.items()])
    return figure, [axes]


@torch.inference_mode()
def draw_unet(net: nn.Module):
    """The letter U of maps: down the encoder, across by the skips, up the decoder."""
    image, mask = unseen()
    x = image.permute(2, 0, 1)[None] / 255
    probability = net(x)[0, 0].sigmoid()
    figure, axes = sheet(
        "A U-Net at work: how strong each map is, the mean over its channels",
        [["x0", "x0", "d0", "d0", "probability"], ["x1", "x1", "d1", "d1", "probability"],
         ["x2", "x2", "d2", "d2", "outlines"], ["x3", "x3", "d3", "d3", "outlines"],
         ["x4", "x4", "d4", "d4", "."], [".", "x5", "x5", ".", "."]],
        height=9.2, height_ratios=(2.8, 2.4, 2, 1.7, 1.4, 1.2), width_ratios=(1, 1, 1, 1, 2),
        note="Sizes: channels × height × width. Dark: weak, yellow: strong.")
    show(axes["x0"], image, "image")
    for k, maps in enumerate(net.encoder.features((x - net.mean) / net.std), 1):
        show_map(axes[f"x{k}"], maps, f"x{k}: {size_of(maps)}")
    for k, (_, maps) in enumerate(watched(net, image, [f"block{k}" for k in range(5)])):
        show_map(axes[f"d{k}"], maps, f"d{k}: {size_of(maps)}")
    for tail, head in (*((f"x{k}", f"d{k}") for k in range(1, 5)), ("d0", "probability")):
        arrow(axes[head], (1.05, 0.5), (-0.05, 0.5), axes[tail].transAxes)
    arrow(axes["x5"], (0.5, -0.1), (-0.1, 0.5), axes["x4"].transAxes)
    arrow(axes["d4"], (1.1, 0.5), (0.5, -0.1), axes["x5"].transAxes)
    for k in range(5):
        axes[f"x{k}"].set_ylabel(f"stride {2**k}", rotation=0, ha="right", va="center")
    axes["x5"].set_xlabel("stride 32")
    show(axes["probability"], probability, "probability")
    show(axes["outlines"], 160 + image // 3, "above 1/2 (orange, thin),\nlabel (blue, wide)")
    outline(axes["outlines"], mask, BLUE, 5)
    outline(axes["outlines"], probability >= 0.5, ORANGE, 2)
    return figure, [axes[name] for name in ("x0", "d0", "x2", "d2")]


def draw_gates(net: nn.Module):
    """The map of each of three gates, over the image."""
    image, mask = unseen()
    figure, axes = sheet("What three gates let through: alpha, over the image", 1, 4, height=3.5)
    show(axes[0], image, "image and label")
    outline(axes[0], mask, BLUE)
    gates = [f"block{k}.gate" for k in (4, 3, 2)]
    for plot, gate, stride, ((skip, deeper), _) in zip(axes[1:], gates, (16, 8, 4),
                                                       watched(net, image, gates)):
        with torch.inference_mode():
            alpha = net.get_submodule(gate).attention(skip, deeper)[0, 0]  # (h, w)
        plot.imshow(image.float().mean(2).numpy(), cmap="gray", extent=(0, 1, 0, 1))
        show_map(plot, alpha, f"skip of stride {stride}", range_and_means(alpha, mask),
                 alpha=0.65, interpolation="bilinear", extent=(0, 1, 0, 1))
    return figure, axes[2:]


@torch.inference_mode()
def draw_scse(net: nn.Module):
    """One feature map, its channels' weights, its places' weights, and the sum."""
    block, (image, mask) = "block1.attention", unseen()
    ((x,), result), (_, c), (_, s) = watched(
        net, image, [block, f"{block}.expand", f"{block}.spatial"])
    s = s[0, 0].sigmoid()
    figure, axes = sheet(f"SCSE on the decoder's map of stride 2 ({size_of(x)})", 1, 4, height=3.5)
    show_map(axes[0], x, "x", "mean |x| over\nchannels")
    show_channels(axes[1], c.sigmoid(), f"c: {c.numel()} channels, sorted")
    show_map(axes[2], s, "s: every place", range_and_means(s, mask))
    show_map(axes[3], result, "c x + s x", "mean |x| over\nchannels")
    return figure, axes[1:3]


@torch.inference_mode()
def draw_cbam(net: nn.Module):
    """One feature map on its way through CBAM."""
    name, (image, mask) = "block1.attention", unseen()
    ((x,), result), ((maps,), _), (_, s) = watched(
        net, image, [name, f"{name}.spatial", f"{name}.norm"])
    s = s[0, 0].sigmoid()
    mlp = net.get_submodule(name).mlp
    c = (mlp(x.amax((2, 3), keepdim=True)) + mlp(x.mean((2, 3), keepdim=True))).sigmoid()
    figure, axes = sheet(
        f"CBAM on the decoder's map of stride 2 ({size_of(x)})", 2, 4, height=5.5, note="x, x' and "
        "s x': mean of the absolute values over channels. Each map has colours of its own range.")
    show_map(axes[0, 0], x, "x")
    show_channels(axes[0, 1], c, f"first c: {c.numel()} channels,\nsorted")
    show_map(axes[0, 2], x * c, "x' = c x")
    axes[0, 3].set_axis_off()
    show_map(axes[1, 0], maps[0, 0], "max of x'\nover channels")
    show_map(axes[1, 1], maps[0, 1], "mean of x'\nover channels")
    show_map(axes[1, 2], s, "then s", range_and_means(s, mask))
    show_map(axes[1, 3], result, "s x'")
    return figure, axes[1, 1:3]


@torch.inference_mode()
def draw_hypercolumn(net: nn.Module):
    """The sum of five projected maps, and the projection of their stack: the same picture."""
    [((maps,), _)] = watched(net, unseen()[0], ["hypercolumn"])
    projections, size = net.hypercolumn.project, maps[0].shape[2:]
    projected = [project(m) for project, m in zip(projections, maps)]  # (1, out, h, w)
    terms = [F.interpolate(m, size, mode="bilinear") for m in projected]
    stack = torch.cat([F.interpolate(m, size, mode="bilinear") for m in maps], 1)
    literal = F.conv2d(stack, torch.cat([project.weight for project in projections], 1))
    channel = int(literal[0].flatten(1).std(1).argmax())
    difference = ((sum(terms) - literal).abs().max() / literal.abs().max()).item()
    figure, axes = sheet(
        "The same hypercolumn, built in two ways",
        [[f"d{k}" for k in range(5)], [f"up{k}" for k in range(5)],
         ["stack", "stack", "stack", "literal", "sum"]], height=6.6,
        note="Literally: enlarge the maps, stack them, multiply by W. The cheap way: multiply each "
        "by its part of W while\nit is small, enlarge, add. They differ by "
        f"{difference:.0e} of the largest value. d0 to d4: mean over channels of\nthe absolute "
        f"values; the others: channel {channel} of {literal.shape[1]}, before norm and ReLU.")
    widths = [m.shape[1] for m in maps]
    bars = axes["stack"].barh([0] * 5, widths, 1, np.cumsum(widths) - widths, ec="white",
                              color=[BLUE, RED, BLUE, RED, BLUE])
    axes["stack"].bar_label(bars, range(5), label_type="center", color="white")
    for k, (m, term, small) in enumerate(zip(maps, terms, projected)):
        show_map(axes[f"d{k}"], m, f"d{k}\n{size_of(m)}")
        show_map(axes[f"up{k}"], term[0, channel], f"up(W{k} d{k})" if k else "W0 d0",
                 f"from\n{size_of(small)}")
    axes["stack"].set(title=f"d0 to d4, stacked: {size_of(stack)}", xticks=[], yticks=[],
                      ylim=(-1, 1))
    show_map(axes["literal"], literal[0, channel], "W stack",
             f"{stack.numel() / 1e6:.1f} million\nnumbers")
    show_map(axes["sum"], sum(terms)[0, channel], "the sum",
             f"{sum(m.numel() for m in projected) / 1e6:.1f} million\nnumbers")
    return figure, [axes[name] for name in ("d0", "d2", "d4", "up0", "up2", "up4")]


@torch.inference_mode()
def draw_deep_supervision(net: nn.Module):
    """Five answers and the five targets that they are compared with."""
    image, mask = unseen()
    (_, finest), *blocks = watched(net, image, ["head", *(f"block{k}" for k in (1, 2, 3, 4))])
    logits = [finest, *(head(d) for head, (_, d) in zip(net.deep_heads, blocks))]
    figure, axes = sheet(
        "Five answers, and the target at the size of each", 2, 5, height=4.2,
        note="Above: the sigmoid of the logits. Below: the targets (nearest pixel).\nThe last has "
        "no weight, and so has learned nothing.")
    limits = {"vmin": 0, "vmax": 1}
    for k, (z, weight) in enumerate(zip(logits, deep_supervision_weights(5))):
        target = F.interpolate(mask[None, None].float(), z.shape[2:], mode="nearest-exact")
        show(axes[0, k], z[0, 0].sigmoid(), f"1/{2**k}: {z.shape[2]} × {z.shape[3]}", **limits)
        show(axes[1, k], target[0, 0], note=f"weight {weight:.3f}", **limits)
    return figure, axes[:, :3].flat


def costliest_place(cost: Tensor, tile: int) -> tuple[slice, slice]:
    """Where four tiles meet and the mean of `cost` (H, W) over these four is the highest."""
    means = F.avg_pool2d(cost[None], 2 * tile, tile)[0]
    row, column = divmod(int(means.argmax()), means.shape[1])
    return (slice(row * tile, (row + 2) * tile), slice(column * tile, (column + 2) * tile))


@torch.inference_mode()
def draw_seam(net: nn.Module):
    """Where the seams of a slide cost most that was predicted without overlap, and with it."""
    (image, mask), tile = unseen(1024), TILE // 2  # as small as those of `lab.study`
    found = [minseg.predict_image(lambda tiles: net(tiles / 255).sigmoid(), image.numpy(),
                                  tile=tile, stride=stride, window=window)[0] >= 0.5
             for stride, window in ((tile, "uniform"), (tile // 2, "linear"))]
    wrong = [one != (mask > 0) for one in found]
    here = costliest_place(wrong[0].float() - wrong[1].float(), tile)
    figure, axes = sheet(
        "What seams cost: four tiles that meet, and the same with overlap", 1, 3, height=3.9,
        note="Yellow: found, orange: wrong. Of all places where four tiles meet, the one where "
        "overlap repairs most pixels.")
    show(axes[0], image[here], "image and label", "dashes: where tiles meet")
    outline(axes[0], mask[here], BLUE, 3)
    for plot, one, errors, name in zip(axes[1:], found, wrong,
                                       ("no overlap", "overlap 1/2, linear window")):
        dice = 1 - errors.sum() / (one.sum() + (mask > 0).sum())
        show(plot, torch.tensor(COLOURS)[torch.where(errors, 2, one.long())[here]], name,
             f"wrong here: {errors[here].float().mean():.1%}\nDice of the whole slide: {dice:.3f}")
    for plot, colour in zip(axes, (INK, "white")):
        for line in (plot.axvline, plot.axhline):
            line(tile - 0.5, color=colour, linestyle="--", linewidth=2)
    return figure, axes[1:]


FIGURES = {draw.__name__.removeprefix("draw_"): draw for draw in (
    draw_efficientnet, draw_dice, draw_sorting, draw_lovasz, draw_losses, draw_sampling,
    draw_augment, draw_training, draw_overlap, draw_windows, draw_tta, draw_synthetic, draw_folds)}
NETWORK_FIGURES = {draw.__name__.removeprefix("draw_"): draw for draw in (
    draw_unet, draw_gates, draw_scse, draw_cbam, draw_hypercolumn, draw_deep_supervision,
    draw_seam)}
CHARTS = [*(f"study-{name}-{kind}" for name in ("nuclei", "synthetic") for kind in KINDS),
          "study-patients-effects", "study-synthetic-1200-lengths", "pretrained", "shifts"]


def make(name: str, runs: Path):
    """A figure by name, and those of its axes that go into its small copy."""
    if name in NETWORK_FIGURES:
        return NETWORK_FIGURES[name](trained("cbam" if name == "cbam" else "every-trick", runs))
    if name in FIGURES:
        return FIGURES[name]()
    figure = stored_chart(name, RESULTS)
    return figure, figure.axes if name == "pretrained" else []


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = Parser(prog="python -m lab.figures", description=__doc__.split("\n")[0])
    names = [*FIGURES, *NETWORK_FIGURES, *CHARTS]
    add = parser.add_argument
    add("figures", nargs="*", metavar="NAME", choices=[[], *names],
        help="which (default all): " + ", ".join(names))
    add("--runs", type=Path, default=Path("runs"), metavar="DIR",
        help="folder of the networks that some figures show (default runs)")
    add("--out", type=Path, default=Path("docs/figures"), metavar="DIR",
        help="folder to draw into (default docs/figures)")
    args = parser.parse_args(argv)
    try:
        style.need_matplotlib()
        for name in args.figures or names:
            figure, small = make(name, args.runs)
            print(style.save(figure, args.out / f"{name}.png", small), flush=True)
    except (ValueError, OSError) as error:
        parser.error(error)


if __name__ == "__main__":
    main()
