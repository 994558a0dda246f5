"""The figures that show a trained network at work: what it keeps, weighs, adds up and answers.

Two small networks are trained for them, on `train.py`'s synthetic slides: one with every trick (and
SCSE), one with CBAM. The picture that they are shown, and its patient, were in neither's training.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import train
from minseg.data.synthetic import synthetic_slide
from minseg.deep_supervision import deep_supervision_weights
from minseg.run.checkpoint import load_model
from minseg.run.report import BLUE, INK, ORANGE, draw_outlines
from minseg.tiling import predict_image

from .plots import GREY
from .sheet import Sheet, heat

SEED, SCALE, TILE = 5001, 4, 128  # of the picture; of `train.py`'s synthetic slides
RUNS = {
    "every-trick": ("--gates", "--attention", "scse", "--hypercolumn", "--deep-supervision"),
    "cbam": ("--attention", "cbam"),
}
SHARES = 0.02, 0.98  # a map's colours run between these quantiles of its values


def trained(name: str, runs: Path) -> nn.Module:
    """One of `RUNS`, from `runs`, or trained into it: some minutes on one thread, so that it is the
    same whatever the number of cores."""
    model = runs / f"figures-{name}" / "fold0" / "model.pt"
    if not model.exists():
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            train.main(["--encoder", "efficientnet-lite0", *RUNS[name], "--device", "cpu",
                        "--resume", "--out", str(runs / f"figures-{name}")])
        finally:
            torch.set_num_threads(threads)
    return load_model(model, "cpu")[0]


def picture(size: int = 256) -> tuple[Tensor, Tensor]:
    """An image that no network has seen, at the training scale, uint8 (size, size, 3), and its
    mask, (size, size) in {0, 1}."""
    image, mask = (torch.from_numpy(array).float().reshape(size, SCALE, size, SCALE, -1)
                   .mean((1, 3)) for array in synthetic_slide(SEED, size * SCALE, size * SCALE))
    return image.round().byte(), (mask[..., 0] >= 0.5).byte()


def watched(net: nn.Module, image: Tensor, parts: Sequence[str]) -> list[tuple[tuple, Tensor]]:
    """What goes into the network's `parts` and what comes out, for an image (H, W, 3)."""
    seen, hooks = {}, []
    for part in parts:
        def keep(module, given, result, part=part):
            seen[part] = given, result
        hooks.append(net.get_submodule(part).register_forward_hook(keep))
    with torch.inference_mode():
        net(image.permute(2, 0, 1)[None] / 255)
    for hook in hooks:
        hook.remove()
    return [seen[part] for part in parts]


def span(values: Tensor) -> tuple[float, float]:
    """The values that the darkest and the brightest colour stand for, in a map of its own range."""
    low, high = values.float().quantile(torch.tensor(SHARES)).tolist()
    return low, max(high, low + 1e-6)


def shown(values: Tensor) -> Image.Image:
    """A map (H, W) in colours that its own values fill, but for the outermost."""
    return heat(values, *span(values))


def strength(maps: Tensor) -> Image.Image:
    """(1, C, H, W): how strong each place is, the mean over channels of their size, in colours."""
    return shown(maps[0].abs().mean(0))


def size_of(maps: Tensor) -> str:
    """Channels and size, as words."""
    return "{} x {} x {}".format(*maps.shape[1:])


def draw_unet(path: Path, net: nn.Module) -> None:
    """The letter U of maps: down the encoder, across by the skips, up the decoder."""
    image, mask = picture()
    sheet = Sheet(1640, "A U-Net at work: how strong each map is, the mean over its channels")
    blocks = [f"block{k}" for k in (4, 3, 2, 1, 0)]
    with torch.inference_mode():
        x = (image.permute(2, 0, 1)[None] / 255 - net.mean) / net.std
        features = net.encoder.features(x)
        probability = net(image.permute(2, 0, 1)[None] / 255)[0, 0].sigmoid()
    decoded = [result for _, result in watched(net, image, blocks)]
    rows, y = ((280, "1"), (240, "2"), (200, "4"), (160, "8"), (130, "16"), (110, "32")), 150
    left = [Image.fromarray(image.numpy()), *map(strength, features)]
    right = [*map(strength, reversed(decoded)), None]
    names = ["image", *(f"x{k}: {size_of(m)}" for k, m in enumerate(features, 1))]
    for k, (width, stride) in enumerate(rows):
        x0, x1 = 330 - width // 2, 900 - width // 2
        sheet.text(30, y + width / 2, f"stride {stride}", GREY)
        if k == 5:
            x0 = 615 - width // 2
        sheet.paste(left[k], x0, y, width, names[k])
        if k < 5:
            sheet.paste(right[k], x1, y, width, f"d{k}: {size_of(decoded[4 - k])}")
        if 0 < k < 5:
            sheet.arrow((x0 + width + 12, y + width / 2), (x1 - 12, y + width / 2), GREY)
        y += width + 60
    sheet.text(615, 586, "skip: exactly where", GREY, 26, "mm")
    sheet.arrow((400, 1412), (545, 1500), GREY)
    sheet.arrow((690, 1500), (830, 1412), GREY)
    sheet.text(440, 1480, "what", GREY, 26, "rm")
    sheet.paste(heat(probability), 1200, 150, 340, "probability")
    sheet.arrow((1052, 290), (1188, 290), GREY)
    sheet.paste(draw_outlines(image.numpy(), probability >= 0.5, mask, width=1), 1200, 560, 340,
                "over 1/2 (orange), label (blue)")
    sheet.text(1200, 950, "sizes: channels x height x width", GREY, 24)
    sheet.text(1200, 986, "dark: weak, yellow: strong", GREY, 24)
    sheet.save(path)


def draw_gates(path: Path, net: nn.Module) -> None:
    """The map of each of three gates, over the image."""
    image, mask = picture()
    sheet = Sheet(620, "What three gates let through")
    whole = Image.fromarray(image.numpy())
    grey = np.asarray(whole.convert("L"))[..., None]
    sheet.paste(draw_outlines(image.numpy(), mask.numpy(), width=1), 30, 150, 370,
                "image and label", smooth=True)
    gates = [f"block{k}.gate" for k in (4, 3, 2)]
    for k, (gate, ((skip, deeper), _)) in enumerate(zip(gates, watched(net, image, gates))):
        with torch.inference_mode():
            alpha = net.get_submodule(gate).attention(skip, deeper)  # (1, 1, h, w)
        low, high = span(alpha)
        colours = shown(alpha[0, 0]).resize(whole.size, Image.Resampling.BILINEAR)
        mixed = np.uint8(0.35 * grey + 0.65 * np.asarray(colours))
        x = 420 + k * 390
        sheet.paste(Image.fromarray(mixed), x, 150, 370, f"skip of stride {16 >> k}", smooth=True)
        sheet.text(x, 545, f"alpha from {low:.2f} (dark)", GREY, 26)
        sheet.text(x, 580, f"to {high:.2f} (yellow)", GREY, 26)
    sheet.save(path)


def channel_bars(sheet: Sheet, gates: Tensor, x: int, y: int, width: int, height: int) -> None:
    """A bar a channel, from 0 to 1, the largest first."""
    values = gates.flatten().sort(descending=True).values.tolist()
    step = width / len(values)
    for i, value in enumerate(values):
        sheet.draw.rectangle([x + i * step, y + height * (1 - value), x + (i + 0.8) * step,
                              y + height], BLUE)
    for share in (0, 0.5, 1):
        at = y + height * (1 - share)
        sheet.draw.line([(x, at), (x + width, at)], GREY, 1)
        sheet.text(x - 8, at, f"{share:g}", GREY, 24, "rm")


def draw_scse(path: Path, net: nn.Module) -> None:
    """One feature map, its channels' weights, its places' weights, and the sum."""
    image, _ = picture()
    [((x,), result)] = watched(net, image, ["block1.attention"])
    block = net.block1.attention
    with torch.inference_mode():
        c = block.expand(F.relu(block.reduce(x.mean((2, 3), keepdim=True)))).sigmoid()
        s = block.spatial(x).sigmoid()
    sheet = Sheet(600, f"SCSE on the decoder's map of stride 2 ({size_of(x)})")
    sheet.paste(strength(x), 30, 150, 340, "x")
    sheet.text(470, 126, f"c: {c.numel()} channels, sorted")
    channel_bars(sheet, c, 470, 150, 300, 340)
    sheet.paste(shown(s[0, 0]), 830, 150, 340, "s: every place")
    sheet.text(830, 520, "{:.2f} (dark) to {:.2f} (yellow)".format(*span(s)), GREY, 26)
    sheet.paste(strength(result), 1220, 150, 340, "c x + s x")
    for x0 in (30, 1220):
        sheet.text(x0, 520, "mean |x| over channels", GREY, 26)
    sheet.save(path)


def draw_cbam(path: Path, net: nn.Module) -> None:
    """One feature map on its way through CBAM."""
    image, _ = picture()
    [((x,), result)] = watched(net, image, ["block1.attention"])
    block = net.block1.attention
    with torch.inference_mode():
        c = sum(block.mlp(v) for v in (x.amax((2, 3), keepdim=True),
                                       x.mean((2, 3), keepdim=True))).sigmoid()
        maps = [(x * c).amax(1, keepdim=True), (x * c).mean(1, keepdim=True)]
        s = block.norm(block.spatial(torch.cat(maps, 1))).sigmoid()
    sheet = Sheet(1090, f"CBAM on the decoder's map of stride 2 ({size_of(x)})")
    sheet.paste(strength(x), 30, 150, 340, "x")
    sheet.text(30, 515, "mean |x| over channels;", GREY, 26)
    sheet.text(30, 550, "each map in its own range", GREY, 26)
    sheet.text(480, 126, f"first c: {c.numel()} channels, sorted")
    channel_bars(sheet, c, 480, 150, 340, 340)
    sheet.paste(strength(x * c), 900, 150, 340, "x' = c x")
    for k, (name, part) in enumerate((("max of x' over channels", maps[0]),
                                      ("mean of x' over channels", maps[1]), ("then s", s))):
        sheet.paste(shown(part[0, 0]), 30 + 390 * k, 640, 340, name)
    sheet.paste(strength(result), 1200, 640, 340, "s x'")
    sheet.text(810, 1006, "{:.2f} (dark) to {:.2f} (yellow)".format(*span(s)), GREY, 26)
    sheet.save(path)


def draw_hypercolumn(path: Path, net: nn.Module) -> None:
    """The sum of five projected maps, and the projection of their stack: the same picture."""
    image, _ = picture()
    [((maps,), _)] = watched(net, image, ["hypercolumn"])
    parts, size = net.hypercolumn.project, maps[0].shape[2:]
    with torch.inference_mode():
        small = [part(m) for part, m in zip(parts, maps)]  # (1, out, h, w)
        terms = [F.interpolate(m, size, mode="bilinear") for m in small]
        total = sum(terms)
        stack = torch.cat([F.interpolate(m, size, mode="bilinear") for m in maps], 1)
        literal = F.conv2d(stack, torch.cat([part.weight for part in parts], 1))
    channel = int(total[0].flatten(1).std(1).argmax())
    difference = ((total - literal).abs().max() / literal.abs().max()).item()
    sheet = Sheet(1560, "A hypercolumn, built in two ways")
    width, step = 236, 312
    sheet.text(30, 110, "The decoder's maps: mean |x| over channels, colours by each one's range",
               GREY)
    for k, m in enumerate(maps):
        sheet.paste(strength(m), 30 + k * step, 190, width, f"d{k}: {size_of(m)}")
    sheet.text(30, 500, "Taken literally: enlarge, stack, then one matrix W in each pixel", INK, 32)
    sheet.paste(shown(literal[0, channel]), 1278, 560, width)
    x, wide = 330, 900 / stack.shape[1]
    for k, m in enumerate(maps):
        end = x + m.shape[1] * wide
        sheet.draw.rectangle([x, 600, end - 3, 720], BLUE if k % 2 else ORANGE)
        sheet.text((x + end) / 2, 744, f"d{k}", GREY, 24, "mm")
        x = end
    sheet.text(30, 640, f"{stack.shape[1]} x {size[0]} x {size[1]}")
    sheet.text(30, 680, f"= {stack.numel() / 1e6:.1f} million numbers", GREY, 24)
    sheet.text(1254, 660, "W", size=32, anchor="mm")
    sheet.text(30, 890, "The cheap way: a part of W in each map, while it is small; then enlarge "
               "and add", INK, 32)
    for k, (term, m) in enumerate(zip(terms, small)):
        sheet.paste(shown(term[0, channel]), 30 + k * step, 990, width, f"W{k} d{k}"
                    if not k else f"up(W{k} d{k})")
        sheet.text(30 + k * step, 1250, "before up: " * (k > 0) + size_of(m), GREY, 22)
        sheet.text(30 + k * step + width + 38, 1108, "+" if k < 4 else "=", anchor="mm", size=40)
    sheet.text(30, 1410, f"before up {sum(m.numel() for m in small) / 1e6:.1f} million numbers; "
               "the sum:")
    sheet.paste(shown(total[0, channel]), 1278, 1296, width)
    sheet.text(30, 1460, f"largest difference of the two: {difference:.0e} of the largest value",
               GREY)
    sheet.text(30, 1500, f"shown: channel {channel} of {total.shape[1]}, before norm and ReLU",
               GREY)
    sheet.save(path)


def draw_deep_supervision(path: Path, net: nn.Module) -> None:
    """Five answers and the five targets that they are compared with."""
    image, mask = picture()
    seen = watched(net, image, [f"block{k}" for k in (1, 2, 3, 4)] + ["head"])
    with torch.inference_mode():
        logits = [seen[-1][1], *(head(d) for head, (_, d) in zip(net.deep_heads, seen[:-1]))]
    sheet = Sheet(900, "Five answers, and the target at the size of each")
    for k, (z, weight) in enumerate(zip(logits, deep_supervision_weights(5))):
        x, target = 110 + k * 296, mask[None, None].float()
        target = F.interpolate(target, z.shape[2:], mode="nearest-exact")
        sheet.paste(heat(z[0, 0].sigmoid()), x, 150, 270, f"1/{2**k}: {z.shape[2]} x {z.shape[3]}")
        sheet.paste(heat(target[0, 0]), x, 470, 270)
        sheet.text(x, 790, f"weight {weight:.3f}")
    sheet.text(30, 840, "above: the sigmoid of the logits, below: targets (nearest pixel). The "
               "last has no weight and so has learned nothing.", GREY, 26)
    sheet.save(path)


def worst_seam(probability: Tensor, tile: int) -> tuple[int, int, int]:
    """The vertical seam of `probability` (H, W) with the largest jump: its column, and the rows
    half a tile above and below."""
    jumps = {}
    for column in range(tile, probability.shape[1] - tile // 2, tile):
        jump = (probability[:, column] - probability[:, column - 1]).abs()
        jump = F.avg_pool1d(jump[None], 15, 1, 7)[0]
        jump[: tile // 2] = jump[len(jump) - tile // 2 :] = 0
        jumps[column, int(jump.argmax())] = jump.max().item()
    column, row = max(jumps, key=jumps.get)
    return column, row - tile // 2, row + tile // 2


def draw_seam(path: Path, net: nn.Module) -> None:
    """The worst seam of a slide that was predicted without overlap, and the same place with it."""
    image, mask = picture(1024)

    def predict(tiles: Tensor) -> Tensor:
        with torch.inference_mode():
            return net(tiles / 255).sigmoid()

    ways = {"no overlap": dict(stride=TILE, window="uniform"),
            "overlap 1/2, linear window": dict(stride=TILE // 2, window="linear")}
    found = {name: predict_image(predict, image.numpy(), tile=TILE, **way)[0]
             for name, way in ways.items()}
    column, top, bottom = worst_seam(found["no overlap"], TILE)
    part = slice(top, bottom), slice(column - TILE // 2, column + TILE // 2)
    sheet = Sheet(700, "A seam, and what overlap makes of it")
    width = 480
    shapes = draw_outlines(image[part].numpy(), mask[part].numpy(), width=1)
    sheet.paste(shapes, 30, 150, width, "image and label", smooth=True)
    for k, (name, probability) in enumerate(found.items(), 1):
        wrong = ((probability[part] >= 0.5) != (mask[part] > 0)).float().mean()
        x = 30 + k * 520
        sheet.paste(heat(probability[part]), x, 150, width, name)
        sheet.text(x, 660, f"wrong here: {wrong:.1%} of pixels", GREY)
    for y in range(150, 150 + width, 24):
        for x in (30, 550):
            sheet.draw.line([(x + width / 2, y), (x + width / 2, y + 12)], ORANGE, 4)
    for row in range(-(-top // TILE) * TILE, bottom, TILE):
        y = 150 + (row - top) * width / TILE
        for x in range(30, 30 + width, 24):
            sheet.draw.line([(x, y), (x + 12, y)], ORANGE, 4)
            sheet.draw.line([(x + 520, y), (x + 532, y)], ORANGE, 4)
    sheet.text(30, 660, "dashes: where tiles meet", GREY)
    sheet.save(path)


NETWORK_FIGURES: dict[str, tuple[Callable[[Path, nn.Module], None], str]] = {
    "unet": (draw_unet, "every-trick"), "gates": (draw_gates, "every-trick"),
    "scse": (draw_scse, "every-trick"), "cbam": (draw_cbam, "cbam"),
    "hypercolumn": (draw_hypercolumn, "every-trick"),
    "deep_supervision": (draw_deep_supervision, "every-trick"), "seam": (draw_seam, "every-trick"),
}
