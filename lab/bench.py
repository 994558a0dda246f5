"""How fast and how large things are. Prints each row and writes docs/results/bench-WHAT.json.

    python -m lab.bench lovasz --against smp --model runs/synthetic/fold0/model.pt
    python -m lab.bench hypercolumn
    python -m lab.bench tiling --model runs/synthetic/fold0/model.pt --against monai onnxruntime
    python -m lab.bench precision --model runs/synthetic/fold0/model.pt
    python -m lab.bench train --against smp --amp --compile
    python -m lab.bench spread --amp --device cuda
    python -m lab.bench limit --images 8 --size 256
    python -m lab.bench memory
    python -m lab.bench slides
"""

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from minseg.dice import dice_score
from minseg.efficientnet import SCALES, SqueezeExcite
from minseg.files.masks import Item
from minseg.files.slides import shrink
from minseg.hypercolumn import Hypercolumn
from minseg.losses import make_loss
from minseg.lovasz import lovasz_hinge
from minseg.predictor import fold_batch_norm, fuse, is_first, predictor
from minseg.run.checkpoint import load_model
from minseg.run.memory import keep_memory
from minseg.run.report import Parser
from minseg.run.tiles import cut
from minseg.synthetic import synthetic_slide
from minseg.tiling import predict_image
from minseg.training import autocast_dtype, blocks, recompute_activations
from minseg.unet import UNet

from . import measure
from .measure import RESULTS, alive_after, in_turn, in_turn_apart, measured

TILE, OVERLAP = 512, 0.25  # of the tiling bench
SIDE, SMALL_TILE = 2048, 256  # of the image and the tiles against MONAI
ENCODER, LOSS = "efficientnet-b0", "dice+lovasz"  # of the training steps
TRICKS = {
    "plain": {}, "gates": {"gates": True}, "scse": {"attention": "scse"},
    "cbam": {"attention": "cbam"}, "hypercolumn": {"hypercolumn": True},
    "deep": {"deep_supervision": True},
    "all": {"gates": True, "attention": "scse", "hypercolumn": True, "deep_supervision": True},
}
UNUSED = "encoder._conv_head", "encoder._bn1"  # parts that smp's U-Net has but never computes
# Freed memory stays in the process only if a program asks for it. These ways do not ask for it:
NOT_KEPT = "smp", "monai + smp", "minseg, memory not kept"
FLOAT32 = "smp", "smp, memory kept"  # as documented
Step = Callable[[], Tensor]  # takes one training step


def rounded(values: dict[str, float], digits: int) -> dict[str, float]:
    """The same dictionary with rounded values."""
    return {name: round(value, digits) for name, value in values.items()}


@torch.no_grad()
def trained_logits(model: Path, images: int, size: int) -> tuple[Tensor, Tensor]:
    """A trained network's logits (images, 1, size, size) on new synthetic slides, and the truth."""
    net, facts = load_model(model)
    scale = facts["scale"]
    logits, targets = [], []
    for i in range(images):
        image, mask = synthetic_slide(10_000 + i, size * scale, size * scale)
        x = torch.from_numpy(shrink(image, scale)).permute(2, 0, 1)[None].float() / 255
        logits.append(net(x))
        targets.append(torch.from_numpy(shrink(mask * 255, scale) >= 128)[None, None].float())
    return torch.cat(logits), torch.cat(targets)


def bench_lovasz(args: argparse.Namespace) -> Iterator[dict]:
    """Forward and backward pass of the Lovász hinge on random and on a trained network's logits."""
    shape = (args.images, 1, args.size, args.size)
    torch.manual_seed(0)
    batches = {"random": (torch.randn(shape), (torch.rand(shape) < 0.1).float())}
    if args.model:
        batches["trained"] = trained_logits(args.model, args.images, args.size)
    losses = {"minseg": lovasz_hinge}
    if "smp" in args.against:
        from segmentation_models_pytorch.losses import LovaszLoss

        losses["smp"] = LovaszLoss("binary", per_image=True)
    for source, batch in batches.items():
        logits, target = (tensor.to(args.device) for tensor in batch)
        logits.requires_grad_()

        def step(loss, logits=logits, target=target) -> None:
            logits.grad = None
            loss(logits, target).backward()

        steps = {name: partial(step, loss) for name, loss in losses.items()}
        seconds = in_turn(steps, args.rounds)
        positive = (logits * (2 * target - 1) < 1).float().mean().item()
        row = {"logits": source, "shape": list(shape), "positive_hinges": round(positive, 4),
               "seconds": rounded(seconds, 4)}
        if "smp" in seconds:
            row["ratio"] = round(seconds["minseg"] / seconds["smp"], 3)
        yield row


class Concatenation(nn.Module):
    """The hypercolumn taken literally: upsample, concatenate, convolve."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.project = nn.Conv2d(sum(in_channels), out_channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, maps):
        large = [F.interpolate(x, maps[0].shape[2:], mode="bilinear") for x in maps[1:]]
        return F.relu(self.norm(self.project(torch.cat([maps[0], *large], 1))))


def hypercolumn_step(kind: type[nn.Module], images: int, size: int,
                     device: str) -> Callable[[], None]:
    """A forward and backward pass of `kind` on the five decoder maps of the plain U-Net."""
    channels = (16, 32, 64, 128, 256)
    torch.manual_seed(0)
    module = kind(channels, 16).to(device)
    maps = [torch.rand(images, c, size >> k, size >> k, device=device).requires_grad_()
            for k, c in enumerate(channels)]
    return lambda: module(maps).sum().backward()


def bench_hypercolumn(args: argparse.Namespace) -> Iterator[dict]:
    """Time, and memory beyond maps and weights, of the hypercolumn and of the concatenation."""
    makers = {name: partial(hypercolumn_step, kind, args.images, args.size, args.device)
              for name, kind in (("minseg", Hypercolumn), ("concatenation", Concatenation))}
    memory = {name: measured(make, threads=1, device=args.device)[2]
              for name, make in makers.items()}
    seconds = in_turn({name: make() for name, make in makers.items()}, args.rounds)
    yield {"shape": [args.images, 496, args.size, args.size], "peak_gib": rounded(memory, 3),
           "seconds": rounded(seconds, 4)}


def find_discs(tiles: Tensor) -> Tensor:
    """A network that costs nothing: it finds a disc in each tile (N, 3, T, T)."""
    x = torch.linspace(-1, 1, tiles.shape[2])
    return (1 - x.hypot(x[:, None])).clamp(min=0).expand(len(tiles), 1, -1, -1)


def prepare_slide(folder: str, height: int, width: int, model: Path | None, device: str,
                  amp: bool) -> Callable[[], None]:
    """Writes a slide and returns a function that segments it, with the network of `model` or, where
    that is None, with `find_discs`."""
    path, predict = Path(folder, "slide.tiff"), find_discs
    measure.write_large(path, height, width)
    if model:
        predict = predictor([load_model(model)[0]], device=device, amp=amp)
        predict(torch.zeros(8, 3, TILE, TILE, dtype=torch.uint8))
    return partial(measure.segment_slide, path, Path(folder, "masks"), predict, 1, TILE, 0.5,
                   "--overlap", str(OVERLAP), "--device", device)


def bench_tiling(args: argparse.Namespace) -> Iterator[dict]:
    """infer.py's loop over large slides without a network and with one; then against MONAI."""
    jobs = [(args.size, args.size, None), (2 * args.size, args.size, None)]
    if args.model:  # on a CPU a network takes long, and a smaller slide tells as much
        side = args.size if args.device == "cuda" else min(args.size, 4096)
        jobs.append((side, side, args.model))
    for height, width, model in jobs:
        with tempfile.TemporaryDirectory(prefix="minseg-bench-") as folder:
            _, seconds, memory = measured(prepare_slide, folder, height, width, model, args.device,
                                          args.amp)
        yield {"predictor": "network" if model else "free", "size": [height, width],
               "tile": TILE, "overlap": OVERLAP, "seconds": round(seconds, 1),
               "megapixels_a_second": round(height * width / 1e6 / seconds, 2),
               "peak_gib_above_idle": round(memory, 3)}
    if args.against:
        yield from against_others(args)


def image_for(model: Path) -> np.ndarray:
    """A synthetic slide at the model's scale, repeated: uint8 (SIDE, SIDE, 3)."""
    scale = load_model(model)[1]["scale"]
    image, _ = synthetic_slide(1, scale * SIDE // 2, scale * SIDE // 2)
    return np.tile(shrink(image, scale), (2, 2, 1))


def predict_with_monai(model: Path, device: str) -> Callable[[], Tensor]:
    """A function that predicts `image_for` with MONAI's sliding window over
    segmentation_models.pytorch's U-Net, which gets the model's weights."""
    import segmentation_models_pytorch as smp
    from monai.inferers import sliding_window_inference

    net, _ = load_model(model)
    theirs = smp.Unet("efficientnet-b0", encoder_weights=None)
    names = [name for name in theirs.state_dict() if not name.startswith(UNUSED)]
    if len(names) != len(net.state_dict()):
        raise ValueError(f"{model}: is not the plain U-Net with an EfficientNet-B0")
    theirs.load_state_dict(dict(zip(names, net.state_dict().values())), strict=False)
    theirs = theirs.eval().to(device)
    mean, std, image = net.mean.to(device), net.std.to(device), image_for(model)

    @torch.inference_mode()
    def predict() -> Tensor:
        x = torch.from_numpy(image).to(device).permute(2, 0, 1)[None]
        return sliding_window_inference(
            (x / 255 - mean) / std, SMALL_TILE, 8, lambda tiles: theirs(tiles).sigmoid(),
            overlap=OVERLAP, mode="gaussian")[0].cpu()

    return predict


def in_tiles(predict: Callable[[Tensor], Tensor], model: Path,
             device: str = "cpu") -> Callable[[], Tensor]:
    """A function that predicts `image_for` with this project's tiling."""
    return partial(predict_image, predict, image_for(model), tile=SMALL_TILE, window="gaussian",
                   stride=round(SMALL_TILE * (1 - OVERLAP)), batch=8, device=device)


def predict_here(model: Path, device: str, amp: bool = False,
                 compiled: bool = False) -> Callable[[], Tensor]:
    """A function that predicts `image_for` with this project's tiling and network."""
    predict = predictor([load_model(model)[0]], device=device, amp=amp, compile=compiled, batch=8)
    return in_tiles(predict, model, device)


def predict_with_onnxruntime(model: Path, device: str, dynamo: bool) -> Callable[[], Tensor]:
    """A function that predicts `image_for` with this project's tiling, and its network exported as
    docs/export.md shows, with the newer exporter (`dynamo`) or the older one."""
    import onnxruntime

    net = nn.Sequential(load_model(model)[0], nn.Sigmoid()).eval().requires_grad_(False)
    names = {"input_names": ["image"], "output_names": ["probability"]}
    if dynamo:
        vary = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
        how = {"dynamic_shapes": (vary,), "external_data": False}
    else:
        vary = {0: "images", 2: "rows", 3: "columns"}
        how = {"dynamic_axes": {"image": vary, "probability": vary}}
    with tempfile.TemporaryDirectory(prefix="minseg-bench-") as folder:
        file = Path(folder, "model.onnx")
        torch.onnx.export(net, (torch.rand(2, 3, 256, 256),), file, dynamo=dynamo, **names, **how)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        kinds = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
        session = onnxruntime.InferenceSession(file, options, providers=[kinds[device]])

    def predict(tiles: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"image": (tiles.float() / 255).numpy()})[0])

    return in_tiles(predict, model, device)


def against_others(args: argparse.Namespace) -> Iterator[dict]:
    """The same weights, pixels, tiles, overlap and window in this project, in MONAI's sliding
    window over segmentation_models.pytorch's U-Net, and in onnxruntime, in turn."""
    if not args.model:
        raise ValueError("--against needs --model: its weights go into all networks")
    ours = partial(predict_here, args.model, args.device)
    makers = {"minseg": ours, "minseg, memory not kept": ours,
              "minseg, bfloat16": partial(ours, amp=True)}
    if args.compile:
        makers["minseg, compiled"] = partial(ours, compiled=True)
    if "monai" in args.against:
        theirs = partial(predict_with_monai, args.model, args.device)
        makers = {"monai + smp": theirs, "monai + smp, memory kept": theirs, **makers}
    if "onnxruntime" in args.against:
        for way, dynamo in (("onnxruntime", True), ("onnxruntime, older exporter", False)):
            makers[way] = partial(predict_with_onnxruntime, args.model, args.device, dynamo)
    first = next(iter(makers))
    expected = makers[first]()()
    seconds = in_turn_apart(makers, args.rounds, NOT_KEPT)
    for name, make in makers.items():
        result = make()()
        yield {"bench": "tiling against others", "way": name, "size": [SIDE, SIDE],
               "tile": SMALL_TILE, "overlap": OVERLAP, "window": "gaussian",
               "seconds": round(seconds[name], 3),
               "times_as_fast": round(seconds[first] / seconds[name], 2),
               "largest_difference": (result - expected).abs().max().item(),
               "dice_of_masks": dice_score(result >= 0.5, expected >= 0.5)}


def bench_precision(args: argparse.Namespace) -> Iterator[dict]:
    """What must be computed in float32 when the rest of the network computes in bfloat16: the masks
    of `image_for`, and the time of a batch of tiles."""
    if not args.model:
        raise ValueError("precision needs --model")
    exact: dict[str, Callable[[str, nn.Module], bool]] = {
        "everything": lambda path, layer: True, "nothing": lambda path, layer: False,
        "the first convolution": is_first,
        "squeeze and excite": lambda path, layer: isinstance(layer, SqueezeExcite),
        "the head": lambda path, layer: path == "head",
        "the last block and the head": lambda path, layer: path.startswith(("block0", "head")),
        "the decoder": lambda path, layer: not path.startswith("encoder")}
    net, predicts = load_model(args.model)[0], {}
    for part, says in exact.items():
        mixed = fuse(fold_batch_norm(net), torch.float32 if part == "everything"
                     else torch.bfloat16, says)

        @torch.inference_mode()
        def predict(tiles: Tensor, mixed=mixed) -> Tensor:
            return mixed(tiles.float() / 255).float().sigmoid()

        predicts[part] = predict
    tiles = torch.randint(0, 256, (8, 3, SMALL_TILE, SMALL_TILE), dtype=torch.uint8)
    seconds = in_turn({part: partial(do, tiles) for part, do in predicts.items()}, args.rounds)
    expected = in_tiles(predicts["everything"], args.model)()
    for part, predict in predicts.items():
        result = in_tiles(predict, args.model)()
        yield {"in_float32": part, "size": [SIDE, SIDE], "tile": SMALL_TILE,
               "milliseconds": round(1e3 * seconds[part], 1),
               "largest_difference": (result - expected).abs().max().item(),
               "dice_of_masks": dice_score(result >= 0.5, expected >= 0.5)}


def minseg_step(args: argparse.Namespace, recompute: bool = False, **options: Any) -> Step:
    """train.py's own step on one batch that lies on the device already; nothing is augmented.
    `options` are those of `measure.train_step`."""
    net = UNet(ENCODER).to(args.device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(net.parameters(), 1e-4, fused=True)
    if recompute:
        recompute_activations(net)
    batch = measure.random_batch(args.images, args.size, args.device)
    return measure.train_step(net, optimizer, make_loss(LOSS), batch, args.amp, **options)


def smp_step(args: argparse.Namespace, added: bool = False, compiled: bool = False) -> Step:
    """segmentation_models.pytorch's U-Net in the loop that its documentation shows. `added`: with
    channels-last memory, a fused optimiser and, with --amp, autocast. `compiled`: with the network
    compiled."""
    import segmentation_models_pytorch as smp

    images, masks = measure.random_batch(args.images, args.size, args.device)
    net = smp.Unet(ENCODER, encoder_weights=None).to(args.device).train()
    dice, lovasz = smp.losses.DiceLoss("binary"), smp.losses.LovaszLoss("binary", per_image=True)
    if added:
        net = net.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-4, fused=added)
    mean, std = (torch.tensor(values, device=args.device).view(1, 3, 1, 1)
                 for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    amp, kind, dtype = args.amp and added, args.device, autocast_dtype(args.device)
    scaler = torch.amp.GradScaler(kind, enabled=amp and dtype == torch.float16)

    forward = torch.compile(net, dynamic=False) if compiled else net

    def step() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast(kind, dtype, enabled=amp):
            logits = forward((images - mean) / std)
            loss = dice(logits, masks) + lovasz(logits, masks)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()

    return step


def two_steps(make: Callable[[], Step], keep: bool) -> Callable[[], None]:
    """Makes a network, so that all is imported, and drops it. The function that is returned makes
    another one and takes two steps. `keep`: freed memory stays in the process."""
    if keep:
        keep_memory()
    make()

    def job() -> None:
        step = make()
        step()
        step()

    return job


def bench_train(args: argparse.Namespace) -> Iterator[dict]:
    """Images a second and peak memory of a training step. On a CPU a compiler's own memory would
    count, so that of compiled steps is left out there."""
    ours, theirs = partial(minseg_step, args), partial(smp_step, args)
    makers = {"minseg": ours, "minseg, memory not kept": ours,
              "minseg, recomputed": partial(ours, recompute=True)}
    if args.compile:
        makers["minseg, compiled"] = partial(ours, compiled=True)
    if "smp" in args.against:
        makers |= {"smp": theirs, "smp, memory kept": theirs,
                   "smp, everything added": partial(theirs, added=True)}
        if args.compile:
            makers["smp, everything added, compiled"] = partial(theirs, True, compiled=True)
    cuda, steps, memory = args.device == "cuda", {}, {}
    if cuda:  # whether freed memory is kept is a question of CPUs
        makers = {way: make for way, make in makers.items() if "memory" not in way}
    for way, make in makers.items():
        if cuda:
            steps[way], memory[way] = measure.step_and_peak(make)
        elif "compiled" not in way:
            memory[way] = measured(two_steps, make, way not in NOT_KEPT, threads=1)[2]
    seconds = (in_turn(steps, args.rounds, calls=2) if cuda
               else in_turn_apart(makers, args.rounds, NOT_KEPT))
    for way in makers:
        yield {"encoder": ENCODER, "way": way, "images": args.images, "size": args.size,
               "loss": LOSS, "amp": args.amp and way not in FLOAT32,
               "seconds_a_step": round(seconds[way], 4),
               "images_a_second": round(args.images / seconds[way], 3),
               "peak_gib": round(memory[way], 3) if way in memory else None}


def bench_spread(args: argparse.Namespace) -> Iterator[dict]:
    """Where a training step's time goes: for each group of operators, the bytes that it moves on
    paper and its milliseconds. Then a row for the whole step, with the images a second that the
    bandwidth would allow if each operator moved its bytes at full speed."""
    traffic = measure.Traffic()

    def begin(part: str) -> None:
        traffic.part = part
        measure.mark(part)

    step = minseg_step(args, begin=begin)
    step()  # makes the optimiser's moments
    with traffic:
        step()
    seconds = in_turn({"step": step}, args.rounds, calls=5)["step"]
    spent, speed = measure.milliseconds(step, args.device), measure.bandwidth(args.device)
    total = sum(traffic.moved.values())
    row = {"encoder": ENCODER, "images": args.images, "size": args.size, "amp": args.amp}
    for group in {**traffic.moved, **spent}:
        yield {**row, "operators": group, "gib": round(traffic.moved[group] / 2**30, 3),
               "milliseconds": round(spent.get(group, 0), 3)}
    yield {**row, "operators": "all", "gib": round(total / 2**30, 2),
           "milliseconds": round(1e3 * seconds, 2),
           "images_a_second": round(args.images / seconds, 2),
           "bandwidth_tb_a_second": round(speed / 1e12, 3),
           "bound_images_a_second": round(args.images * speed / total, 1),
           "share_of_bound": round(total / speed / seconds, 3)}


def bench_limit(args: argparse.Namespace) -> Iterator[dict]:
    """Tiles and a training step beside what the device does in a large matrix product and in a
    large copy: a step can take no less time than its operations there, or its bytes here."""
    torch.manual_seed(0)
    net, speed = UNet(ENCODER).eval(), measure.bandwidth(args.device)
    tiles = torch.randint(0, 256, (args.images, 3, args.size, args.size), dtype=torch.uint8)
    for amp in (False, True):
        half = argparse.Namespace(**{**vars(args), "amp": amp})
        predict = partial(predictor([net], device=args.device, amp=amp), tiles)
        step = minseg_step(half)
        step()  # makes the optimiser's moments
        peak = measure.product_speed(
            args.device, autocast_dtype(args.device) if amp else torch.float32)
        # PyTorch's counter does not know fused layers, and counts the backward pass of depthwise
        # convolutions many times: so the forward pass counts, and the backward pass as two of them.
        forward = measure.operations(
            partial(fold_batch_norm(net).to(args.device), (tiles / 255).to(args.device)))
        for work, do, flops in (("tiles", predict, forward), ("training step", step, 3 * forward)):
            traffic = measure.Traffic()
            with traffic:
                do()
            moved = sum(traffic.moved.values())
            seconds = in_turn({work: do}, args.rounds)[work]
            yield {"encoder": ENCODER, "work": work, "images": args.images, "size": args.size,
                   "amp": amp, "milliseconds": round(1e3 * seconds, 1),
                   "gflop": round(flops / 1e9, 1), "gib": round(moved / 2**30, 2),
                   "product_tflop_a_second": round(peak / 1e12, 3),
                   "copy_gb_a_second": round(speed / 1e9, 1),
                   "share_of_product": round(flops / seconds / peak, 3),
                   "share_of_copy": round(moved / seconds / speed, 3)}


def kept_bytes(name: str, tricks: str, size: int, recompute: bool = False) -> int:
    """Bytes of each image that a training step in bfloat16 keeps for the backward pass, once the
    forward pass has ended; with `recompute` also the inside of the block that then needs most. A
    batch of two less a batch of one leaves out what does not depend on the images, as 16-bit copies
    of weights. It is counted at half the size, since maps grow with the area."""
    side = max(64, size // 64 * 32)  # a multiple of 32, as others are padded
    torch.manual_seed(0)
    net = UNet(name, **TRICKS[tricks]).train().to(memory_format=torch.channels_last)
    inside, kept = [], []
    if recompute:
        recompute_activations(net)
        for block in blocks(net):
            block.register_forward_hook(lambda block, inputs, output: inside.append(
                alive_after(partial(type(block).forward, block, *inputs))))
    for images in (1, 2):
        x = torch.rand(images, 3, side, side).contiguous(memory_format=torch.channels_last)
        inside.clear()
        with torch.autocast("cpu", torch.bfloat16):
            kept.append(alive_after(partial(net, x)) + max(inside, default=0))
    return round((size / side) ** 2 * (kept[1] - kept[0]))


def bench_memory(args: argparse.Namespace) -> Iterator[dict]:
    """What a batch needs at least: the maps that are kept for the backward pass, and 20 bytes for
    each parameter (weight, gradient, two moments and moving average). Every encoder with all
    tricks, then B0 with each. It is counted, not measured, so it holds on every device, but leaves
    out what single operators need while they run."""
    names = [name for name in SCALES if "lite" not in name]
    for name, tricks in [*((name, "all") for name in names),
                         *((ENCODER, each) for each in TRICKS if each != "all")]:
        parameters = sum(p.numel() for p in UNet(name, **TRICKS[tricks]).parameters())
        for recompute in (False, True):
            kept = kept_bytes(name, tricks, args.size, recompute)
            yield {"encoder": name, "tricks": tricks, "recomputed": recompute,
                   "images": args.images, "size": args.size, "parameters": parameters,
                   "kept_mib_an_image": round(kept / 2**20, 1),
                   "gib": round((args.images * kept + 20 * parameters) / 2**30, 2)}


def prepare_slides(folder: str, work: str, count: int, side: int) -> Callable[[], dict]:
    """Writes a slide in Deflate tiles with a mask as PNG, and cuts it or segments it. Returns a
    function that does the same with `count` - 1 copies, and returns how many more files are open
    then, and the most memory that was held between two of them, beyond that after the first."""
    measure.write_large(Path(folder, "0.tiff"), side, side)
    mask = np.zeros((side, side), np.uint8)
    mask[side // 4 : side // 2, side // 4 : side // 2] = 255
    Image.fromarray(mask).save(Path(folder, "0.png"))

    def do(number: int) -> None:
        image, mask = Path(folder, f"{number}.tiff"), Path(folder, f"{number}.png")
        if number:
            os.link(Path(folder, "0.tiff"), image)
            os.link(Path(folder, "0.png"), mask)
        if work == "cut":
            cut(Item(str(number), image, mask, "a"), Path(folder), scale=8, tile=128, stride=128,
                margin=16)
        else:
            measure.segment_slide(image, Path(folder, "out"), find_discs, 1, TILE, 0.5, "--overlap",
                                  str(OVERLAP), "--geojson")

    def rest() -> dict:
        files, before, most = len(os.listdir("/proc/self/fd")), measure.resident(), 0.0
        for number in range(1, count):
            do(number)
            most = max(most, measure.resident() - before)
        return {"more_open_files": len(os.listdir("/proc/self/fd")) - files,
                "mib_above_the_first": round(1024 * most, 1)}

    do(0)
    return rest


def bench_slides(args: argparse.Namespace) -> Iterator[dict]:
    """Cutting many slides, and segmenting them without a network: the memory and the open files
    beyond those of the first."""
    for work in ("cut", "segment"):
        with tempfile.TemporaryDirectory(prefix="minseg-bench-") as folder:
            more, _, _ = measured(prepare_slides, folder, work, args.images, args.size)
        yield {"work": work, "slides": args.images, "size": [args.size, args.size], **more}


BENCHES = {"lovasz": bench_lovasz, "hypercolumn": bench_hypercolumn, "tiling": bench_tiling,
           "precision": bench_precision, "train": bench_train, "spread": bench_spread,
           "limit": bench_limit, "memory": bench_memory, "slides": bench_slides}


def main(argv: list[str] | None = None) -> None:
    """The command line: `python -m lab.bench WHAT`."""
    parser = Parser(prog="python -m lab.bench", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("what", choices=BENCHES)
    add("--against", nargs="+", default=(), choices=("smp", "monai", "onnxruntime"),
        help="lovasz, train: segmentation_models.pytorch; tiling: MONAI with it, or onnxruntime")
    add("--model", type=Path, metavar="FILE",
        help="lovasz, tiling, precision: model.pt of a run on synthetic slides")
    add("--images", type=int, help="of a batch (default 16; hypercolumn 2); slides: 100 of them")
    add("--size", type=int, help="side in pixels (default 640; tiling 30000; slides 5120)")
    add("--amp", action="store_true", help="tiling, train, spread: 16-bit numbers")
    add("--compile", action="store_true", help="tiling, train: also with torch.compile")
    add("--rounds", type=int, default=7, help="that count, after one of warm-up (default 7)")
    add("--device", default="cpu", choices=("cpu", "cuda"), help="default cpu")
    add("--out", type=Path, default=RESULTS, help="default docs/results")
    args = parser.parse_args(argv)
    parser.device(args.device)
    args.images = args.images or {"hypercolumn": 2, "slides": 100}.get(args.what, 16)
    args.size = args.size or {"tiling": 30_000, "slides": 5120}.get(args.what, 640)
    try:
        measure.record(args.out / f"bench-{args.what}.json", args.device,
                       ({"bench": args.what, **row} for row in BENCHES[args.what](args)))
    except ImportError as error:
        parser.error(f"--against: {error.name} is not installed: "
                     "pip install -e '.[audit,export]'")
    except ValueError as error:
        parser.error(error)


if __name__ == "__main__":
    main()
