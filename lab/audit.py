"""The audit: this project's parts against the best-known implementation of each.

    python -m pip install -e '.[audit]' && python -m lab.audit

Weights are copied across, inputs are random, and outputs and gradients (of a random weighted sum of
all outputs, with respect to inputs and weights) are compared: the largest difference of a tensor as
a share of the tensor's largest value. `python -m pytest tests/audit` runs the same comparisons one
by one; where a package is missing they are skipped and say so.
"""

import importlib.metadata
import importlib.util
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minseg.attention_gate import AttentionGate
from minseg.cbam import CBAM
from minseg.data.files import atomic
from minseg.dice import dice_loss
from minseg.efficientnet import SCALES, EfficientNet
from minseg.lovasz import lovasz_hinge
from minseg.pretrained import load_weights, names
from minseg.run.report import Parser, Progress
from minseg.scse import SCSE
from minseg.tiling import blend_window, predict_image
from minseg.unet import UNet

from .bench import RESULTS, environment

TOLERANCE = {torch.float32: (1e-5, 1e-4), torch.float64: (1e-9, 1e-7)}  # of values, of gradients
Pair = tuple[Tensor, Tensor]  # ours, theirs


class Row(NamedTuple):
    """One line of the audit: `run(case)` gives pairs of outputs and pairs of gradients."""

    what: str
    package: str  # on PyPI
    module: str
    cases: Sequence
    run: Callable[..., tuple[list[Pair], list[Pair]]]
    remark: str = ""
    differs: bool = False  # by design: the remark says how


def outputs_and_gradients(function: Callable, inputs: Sequence[Tensor],
                          weights: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """What `function(*inputs)` gives, one tensor or a list; gradients of inputs and weights."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    outputs = function(*inputs)
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    torch.manual_seed(1)
    total = sum((out * torch.randn_like(out)).sum() for out in outputs)
    gradients = torch.autograd.grad(total, [*inputs, *weights])
    return [out.detach() for out in outputs], list(gradients)


def compare(ours: Callable, theirs: Callable, inputs: Sequence[Tensor],
            weights: Sequence[Pair] = ()) -> tuple[list[Pair], list[Pair]]:
    """Pairs of outputs and of gradients of two functions with the same inputs."""
    results = (outputs_and_gradients(ours, inputs, [a for a, _ in weights]),
               outputs_and_gradients(theirs, inputs, [b for _, b in weights]))
    return tuple(list(zip(*pair, strict=True)) for pair in zip(*results))


def difference(pairs: list[Pair]) -> float:
    """The largest |ours - theirs| of a tensor over the tensor's largest |theirs|, of all pairs."""
    worst = 0.0
    for ours, theirs in pairs:
        if ours.shape != theirs.shape or not (ours.isfinite().all() and theirs.isfinite().all()):
            return math.inf
        largest = theirs.abs().max().item()
        apart = (ours - theirs).abs().max().item()
        worst = max(worst, apart / largest if largest else math.inf if apart else 0.0)
    return worst


def settle(net: nn.Module, *inputs: Tensor) -> nn.Module:
    """Random norms, and running statistics as these inputs give them: no layer is dead. Float64."""
    net.double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
            module.momentum = None  # the mean of all batches, here of one
    with torch.no_grad():
        net.train()(*inputs)
    return net.eval()


def same_weights(ours: nn.Module, theirs: nn.Module) -> list[Pair]:
    """Copies across in the order of computation; returns the parameters that correspond."""
    states = ours.state_dict(), theirs.state_dict()
    ours.load_state_dict(dict(zip(states[0], states[1].values(), strict=True)))
    return list(zip(ours.parameters(), theirs.parameters(), strict=True))


def parameters(encoder: EfficientNet, theirs: nn.Module, family: str) -> list[Pair]:
    """The parameters that correspond, by the names in `pretrained`."""
    modules = names(encoder, family) if encoder.head else {
        a: b for a, b in names(encoder, family).items() if not a.startswith("head.")}
    return [(ours, getattr(theirs.get_submodule(other), part)) for mine, other in modules.items()
            for part, ours in encoder.get_submodule(mine).named_parameters(recurse=False)]


# The encoder


def torchvision_maps(net, x):
    """Logits and all five maps."""
    maps = []
    for i, layer in enumerate(net.features):
        x = layer(x)
        if i in (0, 2, 3, 5, 7):
            maps.append(x)
    return [net.classifier(net.avgpool(x).flatten(1)), *maps]


def timm_maps(net, x):
    """Logits and the last four maps."""
    last, maps = net.forward_intermediates(x)
    return [net.forward_head(last), *maps[1:]]


def lukemelas_maps(net, x):
    """Logits and the last four maps."""
    maps = net.extract_endpoints(x)
    return [net(x), *(maps[f"reduction_{k}"] for k in (2, 3, 4, 5))]


def peer(name: str, family: str, size: tuple[int, int]) -> tuple[nn.Module, Callable, int]:
    """Another library's encoder, how it gives logits and maps, and at which map ours begin."""
    if family == "torchvision":
        from torchvision import models

        return getattr(models, name.replace("-", "_"))(), torchvision_maps, 0
    if family in ("timm", "timm-tf"):
        import timm

        prefix = "tf_" if family == "timm-tf" else ""
        return timm.create_model(prefix + name.replace("-", "_")), timm_maps, 1
    if family == "lite":
        from efficientnet_lite_pytorch import EfficientNet as Lite

        return Lite.from_name(name, image_size=size), lambda net, x: [net(x)], 5
    from efficientnet_pytorch import EfficientNet as Lukemelas

    return Lukemelas.from_name(name, image_size=size), lukemelas_maps, 1


def encoders(family: str) -> Callable:
    """Compares EfficientNets with those of `family`."""

    def run(name: str):
        torch.manual_seed(0)
        x = torch.randn(2, 3, 75, 109, dtype=torch.float64)
        theirs, maps, first = peer(name, family, (75, 109))
        theirs = settle(theirs, x)
        ours = EfficientNet(name).double().eval()
        load_weights(ours, theirs.state_dict(), family)
        return compare(lambda x: [ours(x), *ours.features(x)[first:]],
                       lambda x: maps(theirs, x), [x], parameters(ours, theirs, family))

    return run


# The U-Net and its parts


def remake_padding(module: nn.Module, inputs: tuple[Tensor]) -> None:
    """A hook: sets the padding of segmentation_models.pytorch's convolution for this input."""
    (kernel, _), (stride, _) = module.kernel_size, module.stride
    down, right = (max((math.ceil(n / stride) - 1) * stride + kernel - n, 0)
                   for n in inputs[0].shape[2:])
    module.static_padding = nn.ZeroPad2d((right // 2, right - right // 2,
                                          down // 2, down - down // 2))


def unets(size: int, remake: bool) -> Callable:
    """Compares plain U-Nets at `size` x `size` pixels."""

    def run(name: str):
        import segmentation_models_pytorch as smp

        torch.manual_seed(0)
        theirs = smp.Unet(name, encoder_weights=None)
        if remake:
            for module in theirs.modules():
                if hasattr(module, "static_padding"):
                    module.register_forward_pre_hook(remake_padding)
        x = torch.randn(2, 3, size, size, dtype=torch.float64)
        theirs = settle(theirs, x)
        ours = UNet(name, mean=(0, 0, 0), std=(1, 1, 1)).double().eval()
        load_weights(ours.encoder, theirs.encoder.state_dict(), "lukemelas")
        pairs = parameters(ours.encoder, theirs.encoder, "lukemelas")
        own = nn.ModuleList(m for n, m in ours.named_children() if n != "encoder")
        decoder = nn.ModuleList([theirs.decoder, theirs.segmentation_head])
        return compare(ours, theirs, [x], pairs + same_weights(own, decoder))

    return run


def scse(channels: int):
    """SCSE, its sum."""
    from segmentation_models_pytorch.base.modules import SCSEModule

    torch.manual_seed(0)
    theirs, ours = SCSEModule(channels).double(), SCSE(channels).double()
    with torch.no_grad():
        theirs.cSE[1].bias.add_(0.5)  # keeps the ReLU open
    x = torch.randn(2, channels, 12, 10, dtype=torch.float64)
    return compare(ours, theirs, [x], same_weights(ours, theirs))


def cbam(channels: int):
    """CBAM with biases; the two maps of the spatial convolution change places."""
    from timm.layers.cbam import CbamModule

    torch.manual_seed(0)
    x = torch.randn(2, channels, 12, 10, dtype=torch.float64)
    theirs = settle(CbamModule(channels, mlp_bias=True), x)
    ours = CBAM(channels).double().eval()
    pairs = same_weights(ours, theirs)
    ours.spatial.weight.data = theirs.spatial.conv.conv.weight.data.flip(1)
    values, gradients = compare(ours, theirs, [x], pairs)
    at = 1 + [name for name, _ in ours.named_parameters()].index("spatial.weight")
    gradients[at] = gradients[at][0].flip(1), gradients[at][1]
    return values, gradients


def gate(channels: int):
    """The gate's map: on a skip that is constant in each 2 x 2 square a strided 2 x 2 theta of four
    equal weights is their 1 x 1; their norms are set to do nothing, their map is enlarged."""
    from monai.networks.nets.attentionunet import AttentionBlock

    torch.manual_seed(0)
    theirs = AttentionBlock(2, f_int=channels // 2, f_g=2 * channels, f_l=channels).double().eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0
    ours = AttentionGate(channels, 2 * channels, channels // 2).double().eval()
    phi, theta, psi = (layers[0].conv for layers in (theirs.W_g, theirs.W_x, theirs.psi))
    nn.init.zeros_(theta.bias)
    ours.theta.weight.data = theta.weight.data.expand(-1, -1, 2, 2).clone() / 4
    for mine, other in ((ours.phi, phi), (ours.psi, psi)):
        mine.load_state_dict(other.state_dict())
    skip = torch.randn(2, channels, 6, 7, dtype=torch.float64)
    deeper = torch.randn(2, 2 * channels, 6, 7, dtype=torch.float64)

    def ours_map(skip, deeper):
        return ours.attention(F.interpolate(skip, scale_factor=2), deeper)

    def their_map(skip, deeper):
        alpha = theirs.psi(theirs.relu(theirs.W_g(deeper) + theirs.W_x(skip)))
        return F.interpolate(alpha, scale_factor=2, mode="bilinear")

    weights = [(ours.theta.weight, theta.weight), *zip(ours.phi.parameters(), phi.parameters()),
               *zip(ours.psi.parameters(), psi.parameters())]
    values, gradients = compare(ours_map, their_map, [skip, deeper], weights)
    gradients[2] = gradients[2][0][:, :, :1, :1], gradients[2][1]  # theta's four are the same
    return values, gradients


# Losses and tiling


def losses(ours: Callable, make: Callable[[], Callable],
           dtype: torch.dtype = torch.float64) -> Callable:
    """Compares losses on masks of which a share `positives` is 1."""

    def run(positives: float):
        theirs = make()
        torch.manual_seed(0)
        logits = 2 * torch.randn(3, 1, 40, 40, dtype=dtype)
        target = (torch.rand(3, 1, 40, 40) < positives).to(dtype)
        return compare(lambda z: ours(z, target), lambda z: theirs(z, target), [logits])

    return run


def smp_lovasz():
    """The Lovász hinge, image by image."""
    from segmentation_models_pytorch.losses import LovaszLoss

    return LovaszLoss("binary", per_image=True)


def smp_dice():
    """Dice over the batch, without smoothing."""
    from segmentation_models_pytorch.losses import DiceLoss

    return DiceLoss("binary", eps=0)


def monai_dice():
    """Dice of each image, smoothed by 1."""
    from monai.losses import DiceLoss

    return DiceLoss(sigmoid=True, smooth_nr=1.0, smooth_dr=1.0)


def tiling(window: str | None):
    """The same predictor and tiles, and this project's `window`; None: each one's own Gaussian.
    Float32, as both blend in it."""
    from monai.inferers import sliding_window_inference

    torch.manual_seed(0)
    image = torch.randint(0, 256, (301, 413, 3), dtype=torch.uint8)
    ramp = torch.linspace(-2, 2, 96).view(1, 1, -1, 1) * torch.linspace(-1, 2, 96)

    def predict(tiles):  # tells where in its tile a pixel lies
        return (tiles.float().mean(1, keepdim=True) / 64 - 2 + ramp).sigmoid()

    ours = predict_image(predict, image.numpy(), tile=96, stride=72, window=window or "gaussian",
                         batch=4)
    how = ({"roi_weight_map": blend_window(96, window)[None, None]} if window else
           {"mode": "gaussian"})
    theirs = sliding_window_inference(image.permute(2, 0, 1)[None].float(), 96, 4, predict,
                                      overlap=0.25, **how)
    return [(ours, theirs[0])], []


B = [name for name in SCALES if "lite" not in name]
ROWS = [
    Row("EfficientNet B0-B7: logits, 5 maps", "torchvision", "torchvision", B,
        encoders("torchvision"), "B5-B7 with its epsilon 1e-3"),
    Row("EfficientNet B0-B7, Lite0-4: logits, 4 maps", "timm", "timm", list(SCALES),
        encoders("timm"), "its first map is another: after the first stage"),
    Row("EfficientNet B0-B7, Lite0-4, SAME: logits, 4 maps", "timm", "timm", list(SCALES),
        encoders("timm-tf"), "`tf_efficientnet_*`"),
    Row("EfficientNet B0-B7, SAME: logits, 4 maps", "efficientnet-pytorch", "efficientnet_pytorch",
        B, encoders("lukemelas"), "built for the input's size: its padding is fixed"),
    Row("EfficientNet Lite0-4: logits", "efficientnet-lite-pytorch", "efficientnet_lite_pytorch",
        [name for name in SCALES if "lite" in name], encoders("lite"),
        "built for the input's size: its padding is fixed"),
    Row("U-Net on B0", "segmentation-models-pytorch", "segmentation_models_pytorch", B[:1],
        unets(96, remake=False)),
    Row("U-Net on B1-B7, its padding remade for the input", "segmentation-models-pytorch",
        "segmentation_models_pytorch", B[1:], unets(96, remake=True)),
    Row("U-Net on B1-B7, as it is", "segmentation-models-pytorch", "segmentation_models_pytorch",
        B[1:], unets(96, remake=False),
        "its padding is fixed for the authors' image size, whatever the input's", differs=True),
    Row("SCSE", "segmentation-models-pytorch", "segmentation_models_pytorch", (16, 32, 64), scse),
    Row("CBAM", "timm", "timm", (16, 32, 64), cbam,
        "its mean and maximum change places; `mlp_bias=True`, which is off there"),
    Row("attention gate: its map", "monai", "monai", (8, 16), gate,
        "without what it lacks, the strided theta, and without its norms"),
    Row("Dice, smooth 1, each image", "monai", "monai", (0.0, 0.3, 1.0),
        losses(dice_loss, monai_dice)),
    Row("Dice, smooth 0, whole batch", "segmentation-models-pytorch",
        "segmentation_models_pytorch", (0.1, 0.3, 1.0),
        losses(lambda z, t: dice_loss(z, t, smooth=0, per_image=False), smp_dice)),
    Row("Lovász hinge", "segmentation-models-pytorch", "segmentation_models_pytorch",
        (0.0, 0.2, 1.0), losses(lovasz_hinge, smp_lovasz, torch.float32),
        "theirs takes no float64"),
    Row("tiling: overlapping tiles, blended", "monai", "monai",
        ("linear", "gaussian", "hann", "uniform"), tiling, "with this project's windows"),
    Row("tiling: each one's own Gaussian", "monai", "monai", (None,), tiling,
        "its weights end at 1e-3, here they end at 1e-3 of the largest", differs=True),
]


def check(row: Row, case) -> dict:
    """One comparison's figures and verdict. ImportError where the package is missing."""
    importlib.import_module(row.module)
    values, gradients = row.run(case)
    if any(not b.any() for _, b in values[:1] + gradients[:1]) and case != 0:
        raise ValueError(f"{row.what}, {case}: nothing but zeros to compare")
    dtype = values[0][1].dtype
    bars = TOLERANCE[dtype]
    found = difference(values), difference(gradients) if gradients else None
    same = all(value is None or value <= bar for value, bar in zip(found, bars))
    return {"dtype": str(dtype).removeprefix("torch."), "value": found[0], "gradient": found[1],
            "tolerance": list(bars), "verdict": "same" if same else
            "differs by design" if row.differs and math.isfinite(found[0]) else "DIFFERS"}


def table(rows: list[dict]) -> str:
    """The rows as a Markdown table."""
    lines = ["| what | against | values | gradients | verdict |", "|---|---|---|---|---|"]
    for row in rows:
        figures = ["-" if row[name] is None else f"{row[name]:.1e}" for name in
                   ("value", "gradient")]
        bars = " (≤ {:.0e}, {:.0e})".format(*row["tolerance"]).replace("e-0", "e-")
        verdict = row["verdict"] + bars * (row["verdict"] != "differs by design")
        if row["remark"]:
            verdict += f"; {row['remark']}"
        lines.append(f"| {row['what']} | {row['package']} {row['version']} | "
                     f"{' | '.join(figures)} | {verdict} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Runs every comparison, prints the table and writes audit.json."""
    parser = Parser(prog="python -m lab.audit", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS, help="default docs/results")
    args = parser.parse_args(argv)
    missing = sorted({row.package for row in ROWS
                      if importlib.util.find_spec(row.module) is None})
    if missing:
        parser.error(f"needs {', '.join(missing)}: python -m pip install -e '.[audit]'")
    progress, rows = Progress(sum(len(row.cases) for row in ROWS), "audit"), []
    for row in ROWS:
        results = []
        for case in row.cases:
            results.append(check(row, case))
            progress.step(text=row.what)
        worst = max(results, key=lambda r: (r["verdict"] == "DIFFERS", r["value"]))
        gradients = [r["gradient"] for r in results if r["gradient"] is not None]
        rows.append({"what": row.what, "package": row.package,
                     "version": importlib.metadata.version(row.package), **worst,
                     "gradient": max(gradients, default=None), "remark": row.remark,
                     "cases": {str(c): r["value"] for c, r in zip(row.cases, results)}})
    print(table(rows))
    args.out.mkdir(parents=True, exist_ok=True)
    with atomic(args.out / "audit.json") as temporary:
        temporary.write_text(json.dumps({**environment("cpu"), "rows": rows}, indent=2) + "\n")
    print(args.out / "audit.json")
    if any(row["verdict"] == "DIFFERS" for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
