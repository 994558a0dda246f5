"""Each part of this project against the best-known implementation of it.

Weights are copied across, inputs are random, and outputs and gradients (of a random weighted sum of
all outputs, with respect to inputs and weights) are compared. What is reported is the largest
difference in a tensor as a share of the tensor's largest value. Where a package is missing, its
comparisons are skipped. `python -m lab.audit` runs this file and makes a table of the results.
"""

import importlib
import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minseg.attention_gate import AttentionGate
from minseg.cbam import CBAM
from minseg.dice import dice_loss
from minseg.efficientnet import SCALES, EfficientNet
from minseg.lovasz import lovasz_hinge
from minseg.pretrained import load_weights, names
from minseg.scse import SCSE
from minseg.tiling import blend_window, predict_image
from minseg.unet import UNet

TOLERANCE = {torch.float32: (1e-5, 1e-4), torch.float64: (1e-9, 1e-7)}  # of values, of gradients
Pair = tuple[Tensor, Tensor]  # ours, theirs
Pairs = tuple[list[Pair], list[Pair]]  # outputs, gradients


class Row(NamedTuple):
    """One line of the audit. `compare_case(module, case)` returns pairs of outputs and gradients,
    where `module` is the imported peer."""

    what: str
    package: str  # on PyPI
    module: str
    cases: Sequence
    compare_case: Callable[..., Pairs]
    remark: str = ""
    differs: bool = False  # by design: the remark says how


def outputs_and_gradients(function: Callable, inputs: Sequence[Tensor],
                          weights: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """What `function(*inputs)` returns, as a list, and the gradients of inputs and weights."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    outputs = function(*inputs)
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    torch.manual_seed(1)
    total = sum((out * torch.randn_like(out)).sum() for out in outputs)
    gradients = torch.autograd.grad(total, [*inputs, *weights])
    return [out.detach() for out in outputs], list(gradients)


def compare(ours: Callable, theirs: Callable, inputs: Sequence[Tensor],
            weights: Sequence[Pair] = ()) -> Pairs:
    """Pairs of outputs and of gradients of two functions with the same inputs."""
    results = (outputs_and_gradients(ours, inputs, [a for a, _ in weights]),
               outputs_and_gradients(theirs, inputs, [b for _, b in weights]))
    outputs, gradients = (list(zip(*pair, strict=True)) for pair in zip(*results))
    return outputs, gradients


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
    """Sets random weights of the norms, and running statistics that fit these inputs, so that no
    layer is dead. Converts to float64."""
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
    """Copies weights across in the order of computation; returns the pairs of parameters."""
    states = ours.state_dict(), theirs.state_dict()
    ours.load_state_dict(dict(zip(states[0], states[1].values(), strict=True)))
    return list(zip(ours.parameters(), theirs.parameters(), strict=True))


def parameter_pairs(encoder: EfficientNet, theirs: nn.Module, family: str) -> list[Pair]:
    """The pairs of parameters, matched by the names in `pretrained`."""
    modules = names(encoder, family) if encoder.head else {
        a: b for a, b in names(encoder, family).items() if not a.startswith("head.")}
    return [(weight, getattr(theirs.get_submodule(other), name))
            for own, other in modules.items()
            for name, weight in encoder.get_submodule(own).named_parameters(recurse=False)]


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


# Family: how to make the peer's encoder, its logits and maps, and the first of our maps among them.
PEERS = {
    "torchvision": (lambda module, name, size: getattr(module, name.replace("-", "_"))(),
                    torchvision_maps, 0),
    "timm": (lambda module, name, size: module.create_model(name.replace("-", "_")), timm_maps, 1),
    "timm-tf": (lambda module, name, size: module.create_model("tf_" + name.replace("-", "_")),
                timm_maps, 1),
    "lukemelas": (lambda module, name, size: module.EfficientNet.from_name(name, image_size=size),
                  lukemelas_maps, 1),
    "lite": (lambda module, name, size: module.EfficientNet.from_name(name, image_size=size),
             lambda net, x: [net(x)], 5),
}


def encoders(family: str) -> Callable[..., Pairs]:
    """Compares EfficientNets with those of `family`."""
    make, their_maps, first_map = PEERS[family]

    def compare_case(module, name: str) -> Pairs:
        torch.manual_seed(0)
        x = torch.randn(2, 3, 75, 109, dtype=torch.float64)
        theirs = settle(make(module, name, (75, 109)), x)
        ours = EfficientNet(name).double().eval()
        load_weights(ours, theirs.state_dict(), family)
        return compare(lambda x: [ours(x), *ours.features(x)[first_map:]],
                       partial(their_maps, theirs), [x], parameter_pairs(ours, theirs, family))

    return compare_case


# The U-Net and its parts


def remake_padding(module: nn.Module, inputs: tuple[Tensor]) -> None:
    """A hook: sets the padding of segmentation_models.pytorch's convolution for this input."""
    (kernel, _), (stride, _) = module.kernel_size, module.stride
    down, right = (max((math.ceil(n / stride) - 1) * stride + kernel - n, 0)
                   for n in inputs[0].shape[2:])
    module.static_padding = nn.ZeroPad2d((right // 2, right - right // 2,
                                          down // 2, down - down // 2))


def unets(smp, name: str, remake: bool = False) -> Pairs:
    """The plain U-Net at 96 x 96 pixels."""
    torch.manual_seed(0)
    theirs = smp.Unet(name, encoder_weights=None)
    for module in theirs.modules():
        if remake and hasattr(module, "static_padding"):
            module.register_forward_pre_hook(remake_padding)
    x = torch.randn(2, 3, 96, 96, dtype=torch.float64)
    theirs = settle(theirs, x)
    ours = UNet(name, mean=(0, 0, 0), std=(1, 1, 1)).double().eval()
    load_weights(ours.encoder, theirs.encoder.state_dict(), "lukemelas")
    pairs = parameter_pairs(ours.encoder, theirs.encoder, "lukemelas")
    own = nn.ModuleList(m for n, m in ours.named_children() if n != "encoder")
    decoder = nn.ModuleList([theirs.decoder, theirs.segmentation_head])
    return compare(ours, theirs, [x], pairs + same_weights(own, decoder))


def scse(smp, channels: int) -> Pairs:
    """SCSE, merged by a sum."""
    torch.manual_seed(0)
    theirs, ours = smp.base.modules.SCSEModule(channels).double(), SCSE(channels).double()
    with torch.no_grad():
        theirs.cSE[1].bias.add_(0.5)  # keeps the ReLU open
    x = torch.randn(2, channels, 12, 10, dtype=torch.float64)
    return compare(ours, theirs, [x], same_weights(ours, theirs))


def cbam(module, channels: int) -> Pairs:
    """CBAM with biases. The two input maps of the spatial convolution are swapped."""
    torch.manual_seed(0)
    x = torch.randn(2, channels, 12, 10, dtype=torch.float64)
    theirs = settle(module.CbamModule(channels, mlp_bias=True), x)
    ours = CBAM(channels).double().eval()
    pairs = same_weights(ours, theirs)
    ours.spatial.weight.data = theirs.spatial.conv.conv.weight.data.flip(1)
    values, gradients = compare(ours, theirs, [x], pairs)
    at = 1 + [name for name, _ in ours.named_parameters()].index("spatial.weight")
    gradients[at] = gradients[at][0].flip(1), gradients[at][1]
    return values, gradients


def gate(module, channels: int) -> Pairs:
    """The gate's map. On a skip that is constant in each 2 x 2 square, our strided 2 x 2 theta of
    four equal weights is their 1 x 1 theta; their norms are made the identity, and their map is
    upsampled."""
    torch.manual_seed(0)
    theirs = module.AttentionBlock(2, f_int=channels // 2, f_g=2 * channels,
                                   f_l=channels).double().eval()
    for part in theirs.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eps = 0.0
    ours = AttentionGate(channels, 2 * channels, channels // 2).double().eval()
    phi, theta, psi = (layers[0].conv for layers in (theirs.W_g, theirs.W_x, theirs.psi))
    nn.init.zeros_(theta.bias)
    ours.theta.weight.data = theta.weight.data.expand(-1, -1, 2, 2).clone() / 4
    ours.phi.load_state_dict(phi.state_dict())
    ours.psi.load_state_dict(psi.state_dict())
    skip = torch.randn(2, channels, 6, 7, dtype=torch.float64)
    deeper = torch.randn(2, 2 * channels, 6, 7, dtype=torch.float64)

    def our_map(skip, deeper):
        return ours.attention(F.interpolate(skip, scale_factor=2), deeper)

    def their_map(skip, deeper):
        alpha = theirs.psi(theirs.relu(theirs.W_g(deeper) + theirs.W_x(skip)))
        return F.interpolate(alpha, scale_factor=2, mode="bilinear")

    weights = [(ours.theta.weight, theta.weight), *zip(ours.phi.parameters(), phi.parameters()),
               *zip(ours.psi.parameters(), psi.parameters())]
    values, gradients = compare(our_map, their_map, [skip, deeper], weights)
    gradients[2] = gradients[2][0][:, :, :1, :1], gradients[2][1]  # theta's four are the same
    return values, gradients


# Losses and tiling


def losses(ours: Callable, make: Callable, dtype: torch.dtype = torch.float64
           ) -> Callable[..., Pairs]:
    """Compares losses on masks of which a share `positives` is 1."""

    def compare_case(module, positives: float) -> Pairs:
        theirs = make(module)
        torch.manual_seed(0)
        logits = 2 * torch.randn(3, 1, 40, 40, dtype=dtype)
        target = (torch.rand(3, 1, 40, 40) < positives).to(dtype)
        return compare(lambda z: ours(z, target), lambda z: theirs(z, target), [logits])

    return compare_case


def tiling(module, window: str | None) -> Pairs:
    """The same predictor and tiles, and this project's `window`; None: the Gaussian window of each.
    In float32, as both blend in it."""
    torch.manual_seed(0)
    image = torch.randint(0, 256, (301, 413, 3), dtype=torch.uint8)
    ramp = torch.linspace(-2, 2, 96).view(1, 1, -1, 1) * torch.linspace(-1, 2, 96)

    def predict(tiles):  # depends on where in its tile a pixel lies
        return (tiles.float().mean(1, keepdim=True) / 64 - 2 + ramp).sigmoid()

    ours = predict_image(predict, image.numpy(), tile=96, stride=72, window=window or "gaussian",
                         batch=4)
    options = ({"roi_weight_map": blend_window(96, window)[None, None]} if window else
               {"mode": "gaussian"})
    theirs = module.sliding_window_inference(image.permute(2, 0, 1)[None].float(), 96, 4, predict,
                                             overlap=0.25, **options)
    return [(ours, theirs[0])], []


B = [name for name in SCALES if "lite" not in name]
LITE = [name for name in SCALES if "lite" in name]
FIXED = "built for the input's size: its padding is fixed"
SMP = "segmentation-models-pytorch", "segmentation_models_pytorch"
ROWS = [
    Row("EfficientNet B0-B7: logits, 5 maps", "torchvision", "torchvision.models", B,
        encoders("torchvision"), "B5-B7 with its epsilon 1e-3"),
    Row("EfficientNet B0-B7, Lite0-4: logits, 4 maps", "timm", "timm", list(SCALES),
        encoders("timm"), "its first map is another: after the first stage"),
    Row("EfficientNet B0-B7, Lite0-4, SAME: logits, 4 maps", "timm", "timm", list(SCALES),
        encoders("timm-tf"), "`tf_efficientnet_*`"),
    Row("EfficientNet B0-B7, SAME: logits, 4 maps", "efficientnet-pytorch", "efficientnet_pytorch",
        B, encoders("lukemelas"), FIXED),
    Row("EfficientNet Lite0-4: logits", "efficientnet-lite-pytorch", "efficientnet_lite_pytorch",
        LITE, encoders("lite"), FIXED),
    Row("U-Net on B0", *SMP, B[:1], unets),
    Row("U-Net on B1-B7, its padding remade for the input", *SMP, B[1:],
        partial(unets, remake=True)),
    Row("U-Net on B1-B7, as it is", *SMP, B[1:], unets,
        "its padding is fixed for the authors' image size, whatever the input's", differs=True),
    Row("SCSE", *SMP, (16, 32, 64), scse),
    Row("CBAM", "timm", "timm.layers.cbam", (16, 32, 64), cbam,
        "its mean and maximum change places; `mlp_bias=True`, which is off there"),
    Row("attention gate: its map", "monai", "monai.networks.nets.attentionunet", (8, 16), gate,
        "without what it lacks, the strided theta, and without its norms"),
    Row("Dice, smooth 1, each image", "monai", "monai.losses", (0.0, 0.3, 1.0),
        losses(dice_loss,
               lambda monai: monai.DiceLoss(sigmoid=True, smooth_nr=1.0, smooth_dr=1.0))),
    Row("Dice, smooth 0, whole batch", *SMP, (0.1, 0.3, 1.0),
        losses(partial(dice_loss, smooth=0, per_image=False),
               lambda smp: smp.losses.DiceLoss("binary", eps=0))),
    Row("Lovász hinge", *SMP, (0.0, 0.2, 1.0),
        losses(lovasz_hinge, lambda smp: smp.losses.LovaszLoss("binary", per_image=True),
               torch.float32), "theirs takes no float64"),
    Row("tiling: overlapping tiles, blended", "monai", "monai.inferers",
        ("linear", "gaussian", "hann", "uniform"), tiling, "with this project's windows"),
    Row("tiling: each one's own Gaussian", "monai", "monai.inferers", (None,), tiling,
        "its weights end at 1e-3, here they end at 1e-3 of the largest", differs=True),
]


def check(row: Row, case) -> dict:
    """One comparison's measurements and verdict. ImportError where the package is missing."""
    values, gradients = row.compare_case(importlib.import_module(row.module), case)
    if any(not theirs.any() for _, theirs in values[:1] + gradients[:1]) and case != 0:
        raise ValueError(f"{row.what}, {case}: nothing but zeros to compare")
    dtype = values[0][1].dtype
    limits = TOLERANCE[dtype]
    apart = difference(values), difference(gradients) if gradients else None
    same = all(value is None or value <= limit for value, limit in zip(apart, limits))
    return {"dtype": str(dtype).removeprefix("torch."), "value": apart[0], "gradient": apart[1],
            "tolerance": list(limits), "verdict": "same" if same else
            "differs by design" if row.differs and math.isfinite(apart[0]) else "DIFFERS"}


@pytest.mark.parametrize("row, case", [
    pytest.param(row, case, id=f"{row.what}, {row.package}, {case}")
    for row in ROWS for case in row.cases])
def test_it_computes_what_the_peer_computes_or_differs_as_stated(row, case, record_property):
    pytest.importorskip(row.module,
                        reason=f"needs {row.package}: python -m pip install -e '.[audit]'")
    result = check(row, case)
    record_property("audit", {"what": row.what, "package": row.package, "remark": row.remark,
                              "case": str(case), **result})
    assert result["verdict"] == ("differs by design" if row.differs else "same"), result


# The comparison itself, on functions whose difference is known

X = torch.linspace(-1, 2, 12, dtype=torch.float64).view(3, 4)


def square(theirs, **options):
    """A comparison of x^2 with `theirs`."""
    return Row("square", "torch", "torch", (1,),
               lambda module, case: compare(torch.square, theirs, [X]), **options)


def test_what_is_the_same_passes_and_what_is_not_does_not():
    assert check(square(lambda x: x * x), 1)["verdict"] == "same"
    result = check(square(lambda x: x * x * (1 + 1e-8)), 1)
    assert result["verdict"] == "DIFFERS" and result["value"] == pytest.approx(1e-8)
    # Values agree, gradients do not.
    result = check(square(lambda x: x.detach() * x), 1)
    assert result["verdict"] == "DIFFERS" and result["value"] == 0 and result["gradient"] > 0.1
    result = check(square(lambda x: x * x * 2, differs=True), 1)
    assert result["verdict"] == "differs by design" and result["value"] == pytest.approx(0.5)


def test_zeros_beside_zeros_are_no_comparison():
    def nothing(x):
        return x * 0

    with pytest.raises(ValueError, match="nothing but zeros"):
        check(Row("zero", "torch", "torch", (1,),
                  lambda module, case: compare(nothing, nothing, [X])), 1)


def test_the_difference_is_a_share_of_the_largest_value_of_each_tensor():
    ones = torch.ones(3)
    assert difference([(ones, ones)]) == 0
    assert difference([(ones, ones), (torch.tensor([0.0, 8]), torch.tensor([1.0, 8]))]) == 1 / 8
    assert difference([(ones, ones[:2])]) == difference([(ones * torch.nan, ones)]) == torch.inf
    assert difference([(ones, ones * 0)]) == torch.inf


def test_weights_are_copied_in_order_and_refused_where_they_do_not_fit():
    ours, theirs = nn.Linear(2, 3), nn.Linear(2, 3)
    pairs = same_weights(ours, theirs)
    assert all(torch.equal(a, b) for a, b in pairs) and len(pairs) == 2
    with pytest.raises(ValueError):
        same_weights(ours, nn.Linear(2, 3, bias=False))


def test_each_peer_of_a_row_is_in_the_extra():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    extra = text[text.index("audit = ["):]
    assert all(f'"{row.package}"' in extra for row in ROWS)


def test_the_published_table_has_these_rows():
    published = Path(__file__).parents[2] / "docs" / "results" / "audit.json"
    rows = json.loads(published.read_text())["rows"]
    assert [(row["what"], row["remark"]) for row in rows] == [(r.what, r.remark) for r in ROWS]
