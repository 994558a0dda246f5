"""# Pretrained encoders: published weights, and which name goes where

**In `tutorial.py`**, `net = UNet("efficientnet-lite0")` starts from random weights. Here it gets an
encoder that has already been trained: "In use", below, has the lines to add.

**Idea.** An encoder that has learnt ImageNet's thousand classes knows edges, textures and shapes
before it sees its first slide; what is left to learn needs fewer images. EfficientNet's weights are
published in five families. All compute the same equations (see `minseg.efficientnet`), but each
names the tensors in its own way, and each was *trained* with its own padding, epsilon and input
statistics, none of which is written in the file. With the wrong ones everything loads without an
error, and the features are slightly wrong: Lite0 gives the cat in a photograph a probability of
0.39, with the other padding 0.37, with ImageNet's mean and deviation 0.36.

| family | trained by | licence | padding | epsilon | mean, deviation |
|---|---|---|---|---|---|
| `torchvision`, B0-B4 | R. Wightman | BSD 3 (code), Apache 2.0 | symmetric | 1e-5 | ImageNet's |
| `torchvision`, B5-B7 | Google | BSD 3 (code), Apache 2.0 | symmetric (1) | 1e-3 | ImageNet's |
| `timm`, `efficientnet_*` | R. Wightman | Apache 2.0 | symmetric | 1e-5 | ImageNet's (2) |
| `timm-tf`, `tf_efficientnet_*` | Google (4) | Apache 2.0 | SAME | 1e-3 | ImageNet's (3) |
| `lukemelas` | Google | Apache 2.0 | SAME | 1e-3 | ImageNet's (3) |
| `lite` | Google | Apache 2.0 | SAME | 1e-3 | 127/255, 128/255 |

Google's weights are ported from TensorFlow; `minseg.weights` lists all addresses. SAME pads as
little as the size needs and puts the odd pixel right and down, symmetric pads half the kernel on
every side, so at even sizes a stride of 2 samples different pixels. ImageNet's mean is 0.485,
0.456, 0.406, its standard deviation 0.229, 0.224, 0.225 (red, green, blue). (1) Trained with SAME;
torchvision runs and scores them with symmetric padding, and so does this. (2) Weights named `ra4`
want 0.5 and 0.5. (3) Weights trained on adversarial images, `_ap` at timm and `adv-` at lukemelas,
want 0.5 and 0.5, and so do timm's `tf_efficientnet_lite*`. (4) "imagenet" loads the Noisy Student
weights (`ns`), trained with 300 million extra unlabelled images.

**The family** follows from the state dict's keys, except for timm's two: those have the same keys
and shapes, and only the file's name or `family` tells them apart. (2) and (3) are also read from
the file's name: a bare state dict of `ra4`, `_ap` or `adv-` gets ImageNet's statistics.

**Wrappers.** The prefixes `module.` (DataParallel, DDP, AveragedModel) and `_orig_mod.`
(torch.compile) are removed if all names have them. A checkpoint that holds one state dict beside
other things (epoch, optimiser) is opened; one that holds several, such as `model` and `model_ema`,
is refused.

**Other input channels.** The stem's filters are for red, green and blue. For one channel they are
summed, which gives the same result as the grey image in all three channels. For n channels they are
repeated, red, green, blue, red ..., and multiplied by 3 / n, which keeps the scale of the sum. timm
and segmentation_models.pytorch do the same. Mean and standard deviation are averaged or repeated.

**Measured.** ImageNet instead of random weights: -0.012 on nuclei, +0.208 on synthetic slides:
clear at first. In runs of 1,200 steps, +0.038 there: not told from chance
([how](../docs/study.md)).

![Held-out Dice during training](../docs/figures/pretrained.png)

*Lite0 with ImageNet's weights and with random ones: held-out Dice along the way, in runs of 600
steps on the nuclei and of 1,200 on synthetic slides. On the slides, random weights need most of the
run to catch up.*

**Source.** Tan and Le, arXiv 1905.11946; AdvProp: Xie et al., arXiv 1911.09665; the code of each
family: pytorch/vision `efficientnet.py`, huggingface/pytorch-image-models `efficientnet.py`,
lukemelas/EfficientNet-PyTorch, tensorflow/tpu `efficientnet/lite`.

In use, with a `minseg.unet.UNet` called `net`, which normalises its input by two buffers:

    mean, std = load_weights(net.encoder, "imagenet")
    net.mean.copy_(torch.tensor(mean).view_as(net.mean))          and the same for std

>>> from minseg import EfficientNet
>>> from minseg.pretrained import names
>>> encoder = EfficientNet("efficientnet-b0", num_classes=0)
>>> for family in ("torchvision", "timm", "lukemelas"):
...     print(names(encoder, family)["blocks.1.branch.3"])  # the first depthwise one of stride 2
features.2.0.block.1.0
blocks.1.0.conv_dw
_blocks.1._depthwise_conv

**Exercises.**
1. *By hand.* A filter of the stem has one pixel, with the weights 1, 2 and 3 for red, green and
   blue. What becomes of it for one channel, and for four?
2. *Break it.* In a copy of this file, my_pretrained.py, replace `module.same = padding == "same"`
   by `pass`. Predict, then run: which test fails?
3. *Write it.* `adapt_stem(weight, channels)`.
   `python -m pytest tests/test_pretrained.py --mine my_pretrained.py` grades it, and the copy, too.

Next: `minseg.attention_gate`, the first trick of the decoder: what a skip lets through.

**Answers.**
1. The sum for one; for four red, green, blue, red, times 3/4.
2. Only `test_each_family_sets_its_padding_epsilon_and_statistics`: every tensor still arrives,
   without an error, and only the features are slightly wrong.

>>> import torch
>>> from minseg.pretrained import adapt_stem
>>> stem = torch.tensor([1., 2., 3.]).view(1, 3, 1, 1)
>>> [adapt_stem(stem, channels).flatten().tolist() for channels in (1, 4)]
[[6.0], [0.75, 1.5, 2.25, 0.75]]
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from . import weights  # downloads, packages and files: no part of the trick
from .efficientnet import EfficientNet, PaddedConv

Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean, deviation, one for each channel
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5,) * 3, (0.5,) * 3
LITE = (127 / 255,) * 3, (128 / 255,) * 3

# family: (column of the names below, padding, epsilon); torchvision's B5 to B7 have 1e-3
FAMILIES = {
    "torchvision": (0, "symmetric", 1e-5), "timm": (1, "symmetric", 1e-5),
    "timm-tf": (1, "same", 1e-3), "lukemelas": (2, "same", 1e-3), "lite": (2, "same", 1e-3),
}

# Every module with weights, in order of computation.
#    torchvision         timm, timm-tf       lukemelas, lite
STEM = (
    ("features.0.0",     "conv_stem",        "_conv_stem"),
    ("features.0.1",     "bn1",              "_bn0"))
# The prefix of a block's names. Counted from 0: s, its stage; b, the block within the stage; i, the
# block among all blocks. t is the stage counted from 1.
BLOCK = ("features.{t}.{b}.", "blocks.{s}.{b}.", "_blocks.{i}.")
FIRST_STAGE = (  # has no expansion
    ("block.0.0",        "conv_dw",          "_depthwise_conv"),
    ("block.0.1",        "bn1",              "_bn1"),
    ("block.1.fc1",      "se.conv_reduce",   "_se_reduce"),
    ("block.1.fc2",      "se.conv_expand",   "_se_expand"),
    ("block.2.0",        "conv_pw",          "_project_conv"),
    ("block.2.1",        "bn2",              "_bn2"))
LATER_STAGES = (
    ("block.0.0",        "conv_pw",          "_expand_conv"),
    ("block.0.1",        "bn1",              "_bn0"),
    ("block.1.0",        "conv_dw",          "_depthwise_conv"),
    ("block.1.1",        "bn2",              "_bn1"),
    ("block.2.fc1",      "se.conv_reduce",   "_se_reduce"),
    ("block.2.fc2",      "se.conv_expand",   "_se_expand"),
    ("block.3.0",        "conv_pwl",         "_project_conv"),
    ("block.3.1",        "bn3",              "_bn2"))
HEAD = (
    ("features.8.0",     "conv_head",        "_conv_head"),
    ("features.8.1",     "bn2",              "_bn1"),
    ("classifier.1",     "classifier",       "_fc"))


def names(encoder: EfficientNet, family: str) -> dict[str, str]:
    """For each module with weights of an `EfficientNet`, in order of computation, its name in
    `family`. Includes the head, even if the encoder has none."""
    column = FAMILIES[family][0]
    pairs = {f"stem.{k}": row[column] for k, row in enumerate(STEM)}
    stages = [(s, b) for s, repeats in enumerate(encoder.repeats) for b in range(repeats)]
    for i, ((s, b), block) in enumerate(zip(stages, encoder.blocks, strict=True)):
        ours = [name for name, module in block.get_submodule("branch").named_modules()
                if next(module.parameters(recurse=False), None) is not None]
        prefix = BLOCK[column].format(s=s, t=s + 1, b=b, i=i)
        theirs = [row[column] for row in (LATER_STAGES if s else FIRST_STAGE)
                  if "lite" not in encoder.name or "_se_" not in row[2]]  # Lite has no squeeze
        for name, other_name in zip(ours, theirs, strict=True):
            pairs[f"blocks.{i}.branch.{name}"] = prefix + other_name
    for k, row in zip((0, 1, 6), HEAD):  # convolution, norm, classifier
        pairs[f"head.{k}"] = row[column]
    return pairs


def load_weights(encoder: EfficientNet, source: Mapping[str, Tensor] | str | Path,
                 family: str | None = None) -> Statistics:
    """Loads published weights into an `EfficientNet` and returns the (mean, standard deviation),
    one number for each channel, of the images in [0, 1] that they were trained on.

    `source` is a state dict or a checkpoint that holds one, a .pth or .safetensors file of either,
    or "imagenet": Lite0 to Lite2 from the installed package, others from where `family` (default
    torchvision) publishes them. `family` is a key of FAMILIES; by default the keys decide, and for
    timm's two the file's name. Also sets the encoder's padding and epsilon. If the encoder has no
    head, the checkpoint's is ignored.

    ValueError says what is missing, left over or of the wrong shape; nothing is loaded then.
    """
    if family is not None and family not in FAMILIES:
        raise ValueError(f"family is one of {', '.join(FAMILIES)}, not {family!r}")
    state, where, file, family = weights.open_weights(source, encoder.name, family)
    state = without_prefixes(state)
    family = weights.tell_family(state, where, file, family, {
        known: list(names(encoder, known).values()) for known in FAMILIES})
    size = weights.tell_size(state)
    if size not in (None, encoder.name):
        raise ValueError(f"{where}: holds the weights of {size}, expected {encoder.name}'s")
    encoder.load_state_dict(translate(encoder, state, where, family))

    _, padding, bn_eps = FAMILIES[family]
    if family == "torchvision" and encoder.name[-2:] in ("b5", "b6", "b7"):
        bn_eps = 1e-3  # ports of TensorFlow's weights
    encoder.padding, encoder.bn_eps = padding, bn_eps
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = bn_eps
        elif isinstance(module, PaddedConv):
            module.same = padding == "same"
    mean, std = (for_channels(values, encoder.in_channels)
                 for values in statistics(family, encoder.name, file))
    return mean, std


def translate(encoder: EfficientNet, state: Mapping[str, Tensor], where: str,
              family: str) -> dict[str, Tensor]:
    """The encoder's state dict, filled from `state`. ValueError if the two do not match."""
    wanted = encoder.state_dict()
    result, known, faults = {}, set(), []
    for ours, theirs in names(encoder, family).items():
        for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            target, key = f"{ours}.{part}", f"{theirs}.{part}"
            if target not in wanted:
                if ours.startswith("head.") and encoder.head is None:
                    known.add(key)  # not needed, but not left over either
                continue
            known.add(key)
            if key in state:
                value = state[key]
                three = value.ndim == 4 and value.shape[1] == 3  # red, green, blue
                if ours == "stem.0" and three and is_finite(value):
                    value = adapt_stem(value, encoder.in_channels)
                if fault := tensor_fault(value, wanted[target]):
                    faults.append(f"{key} {fault}")
                result[target] = value
            elif part == "num_batches_tracked":  # files from before PyTorch 0.4.1 have none
                result[target] = wanted[target]
            else:
                faults.append(f"{key} is missing")
    faults += [f"{key} is left over" for key in state if key not in known]
    if faults:
        more = f", and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise ValueError(f"{where}: does not fit {encoder.name}: {', '.join(faults[:3])}{more}")
    return result


def tensor_fault(value: Tensor, wanted: Tensor) -> str | None:
    """Why a published tensor cannot take the place of `wanted`, or None if it can."""
    if value.shape != wanted.shape:
        return f"is {tuple(value.shape)}, not {tuple(wanted.shape)}"
    if not is_finite(value):
        return "holds no finite numbers"
    if wanted.is_floating_point() and not value.is_floating_point():
        return f"is {value.dtype}, not {wanted.dtype}"
    return None


def is_finite(value: Tensor) -> bool:
    """Whether a tensor holds plain finite numbers: not sparse, quantized, complex or on "meta"."""
    plain = value.layout == torch.strided and not (value.is_meta or value.is_quantized)
    return plain and not value.is_complex() and bool(value.isfinite().all())


def statistics(family: str, name: str, file: str) -> Statistics:
    """Mean and standard deviation that weights of a `family` for the encoder `name` want, going by
    the name of their `file`."""
    if family == "lite":
        return LITE
    wants_half = {"timm": "ra4" in file, "lukemelas": file.startswith("adv-"),
                  "timm-tf": "lite" in name or re.search(r"[._]ap(?![a-z])", file)}
    return HALF if wants_half.get(family) else IMAGENET


def for_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Statistics of red, green and blue for another number of channels: averaged or repeated."""
    if channels == 1:
        return (sum(values) / 3,)
    return tuple(values[i % 3] for i in range(channels))


def adapt_stem(weight: Tensor, channels: int) -> Tensor:
    """(C, 3, k, k) -> (C, channels, k, k): summed for one channel, else repeated and scaled."""
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    if channels == 1:
        return weight.sum(1, keepdim=True)
    if channels == 3:
        return weight
    return weight[:, [i % 3 for i in range(channels)]] * (3 / channels)


def without_prefixes(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A state dict without the prefixes that wrappers (DataParallel, DDP, AveragedModel,
    torch.compile) put before every name, and without the count that AveragedModel adds."""
    while True:
        keys = [key for key in state if key != "n_averaged"]
        shared = [prefix for prefix in ("module.", "_orig_mod.")
                  if keys and all(str(key).startswith(prefix) for key in keys)]
        if not shared:
            return state
        state = {key.removeprefix(shared[0]): state[key] for key in keys}
