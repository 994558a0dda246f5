"""The code that runs on a GPU, on a machine that need not have one.

PyTorch's fake tensors have a device, a shape and a type, but no numbers. With them this file runs
what happens between images and loss, and a prediction, "on cuda", and looks for tensors of two
devices in one operation and for operations that wait: those that need a number from the GPU before
the program can go on. Where there is a GPU, the same runs on it as well, with real numbers.
"""

import contextlib
import itertools
import threading
import time
import warnings
from concurrent.futures import Future
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

import train
from minseg import UNet, deep_supervision_loss, flips_and_turns, make_loss, predict_bands
from minseg.augment import augment
from minseg.dice import dice_loss
from minseg.losses import bce_loss
from minseg.lovasz import lovasz_hinge
from minseg.predictor import predictor, skip_flat
from minseg.run import loop
from minseg.run.report import Progress
from minseg.run.tiles import Tiles
from minseg.training import EMA

pytestmark = pytest.mark.usefixtures("small_networks")
aten = torch.ops.aten
TRICKS = {"gates": True, "hypercolumn": True, "deep_supervision": True}
LOSSES = {"bce": bce_loss, "dice": dice_loss, "batch_dice": make_loss("batch_dice"),
          **{f"lovasz {margin}{' symmetric' * symmetric}{' per image' * per_image}":
             lambda logits, target, o=dict(margin=margin, symmetric=symmetric, per_image=per_image):
             lovasz_hinge(logits, target, **o)
             for margin, symmetric, per_image in itertools.product(
                 ("relu", "elu"), (False, True), (False, True))},
          "with void": make_loss("0.5*bce+dice+lovasz")}


class Bindings(TorchFunctionMode):
    """A build of PyTorch without CUDA refuses some calls although fake tensors could answer them.
    Here they take a way around, which ends in the same operations."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        x = args[0] if args and isinstance(args[0], Tensor) else None
        if function is Tensor.pin_memory:
            pinned = torch.empty_like(x)
            pinned.is_page_locked = True
            return pinned
        if function is Tensor.__deepcopy__:
            copy = x.clone()
            return torch.nn.Parameter(copy) if isinstance(x, torch.nn.Parameter) else copy
        if function is Tensor.to and "cuda" in str((args[1:], kwargs)):
            return to_cuda(*args, **kwargs)
        if x is not None and x.device.type == "cuda":
            if function is Tensor.copy_:
                return aten.copy_(*args, **kwargs)
            if function is Tensor.contiguous:
                return aten.clone(*args, **kwargs)
            if function is Tensor.nonzero:
                return aten.nonzero(x)
            if function is Tensor.__invert__:
                return aten.bitwise_not(x)
            if function is Tensor.__getitem__:
                return item_of(*args)
            if function is Tensor.__setitem__:
                return set_item(*args)
        return function(*args, **kwargs)


def to_cuda(x, *args, non_blocking=False, memory_format=None, **kwargs):
    """`x.to(...)`, where one of the arguments is a CUDA device."""
    given = {"device": x.device, "dtype": x.dtype, **kwargs}
    for value in args:
        if isinstance(value, torch.dtype):
            given["dtype"] = value
        elif isinstance(value, (str, torch.device)):
            given["device"] = torch.device(value)
        else:
            non_blocking = value
    given["device"] = torch.device(given["device"])
    if (x.device.type, x.dtype, memory_format) == (given["device"].type, given["dtype"], None):
        return x
    return aten._to_copy(x, **given, non_blocking=non_blocking, memory_format=memory_format)


def indexed(x, index):
    """The view that the numbers and slices of an index make, and its tensors by dimension."""
    index = index if isinstance(index, tuple) else (index,)
    taken = sum(i.ndim if isinstance(i, Tensor) and i.dtype == torch.bool else 1
                for i in index if i is not None and i is not Ellipsis)
    rest = [slice(None)] * (x.ndim - taken)
    if any(i is Ellipsis for i in index):
        at = next(k for k, i in enumerate(index) if i is Ellipsis)
        index = (*index[:at], *rest, *index[at + 1 :])
    dim, tensors = 0, {}
    for i in index:
        if i is None:
            x = aten.unsqueeze(x, dim)
        elif isinstance(i, slice):
            x = aten.slice(x, dim, i.start, i.stop, i.step or 1)
        elif isinstance(i, Tensor | list):
            tensors[dim] = torch.as_tensor(i)
            dim += tensors[dim].ndim - 1 if tensors[dim].dtype == torch.bool else 0
        else:
            x = aten.select(x, dim, i)
            continue
        dim += 1
    return x, [tensors.get(d) for d in range(max(tensors) + 1)] if tensors else []


def item_of(x, index):
    """`x[index]`"""
    x, tensors = indexed(x, index)
    return aten.index(x, tensors) if tensors else x


def set_item(x, index, value):
    """`x[index] = value`"""
    x, tensors = indexed(x, index)
    if tensors:
        aten.index_put_(x, tensors, torch.as_tensor(value))
    elif isinstance(value, Tensor):
        aten.copy_(x, value)
    else:
        x.fill_(value)


def move_module(module, move, recurse=True):
    """`nn.Module._apply`, which cannot give other numbers to a fake parameter: here each is
    replaced by a new one."""
    for child in module.children():
        move_module(child, move)
    for name, value in module._parameters.items():
        if value is not None:
            module._parameters[name] = torch.nn.Parameter(move(value), False)
    for name, value in module._buffers.items():
        module._buffers[name] = move(value)
    return module


class Mixed(Exception):
    """An operation on tensors of two devices."""


class Waiting(Exception):
    """An operation for which the program waits until the GPU has come that far."""


def convolution(x, weight, bias=None, stride=(1, 1), padding=(0, 0), dilation=(1, 1),
                transposed=False, *others):
    assert x.dtype == weight.dtype
    steps = list(zip(x.shape[2:], weight.shape[2:], stride, padding))
    if transposed:
        return x.new_empty(len(x), weight.shape[1],
                           *((n - 1) * s + k - 2 * p for n, k, s, p in steps))
    return x.new_empty(len(x), len(weight), *((n + 2 * p - k) // s + 1 for n, k, s, p in steps))


def batch_norm(x, *others):
    return torch.empty_like(x), x.new_empty(0), x.new_empty(0)


def grid_sample(x, grid, *others):
    return x.new_empty(*x.shape[:2], *grid.shape[1:3])


def upsample(x, size, *others):
    return x.new_empty(*x.shape[:2], *(size or [round(n * f) for n, f in zip(x.shape[2:],
                                                                             others[-1])]))


# Fake tensors would ask the driver, or take a way that `Bindings` cannot follow, for these.
STAND_INS = {
    "convolution": convolution, "conv2d": lambda *args: convolution(*args[:5]),
    "native_batch_norm": batch_norm,
    "_native_batch_norm_legit": batch_norm, "_native_batch_norm_legit_no_training": batch_norm,
    "cudnn_batch_norm": lambda *args: (*batch_norm(*args), args[0].new_empty(0)),
    "grid_sampler_2d": grid_sample, "upsample_nearest2d": upsample, "upsample_bilinear2d": upsample}


class Watch(TorchDispatchMode):
    """Raises `Mixed` or `Waiting` where an operation deserves it. Blocking copies from one device
    to the other are only listed, in `copies`, as "to cpu" or "to cuda", and so are the operations
    in `allowed`, by name, for which there is a stand-in."""

    allowed: ClassVar = {}

    def __init__(self):
        super().__init__()
        self.copies = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = op.overloadpacket.__name__
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        on_cuda = [x for x in tensors if x.device.type == "cuda"]
        if name in ("_to_copy", "copy_"):
            source, to = ((args[0], kwargs.get("device") or args[0].device) if name == "_to_copy"
                          else (args[1], args[0].device))
            asynchronous = kwargs.get("non_blocking") or args[2:3] == (True,)
            if source.device.type != to.type and not (
                    asynchronous and getattr(source, "is_page_locked", False)):
                self.copies.append(f"to {to.type}")
        elif on_cuda and name in self.allowed:
            self.copies.append(name)
            return self.allowed[name](*args, **kwargs)
        elif on_cuda:
            if any(x.device.type == "cpu" and x.ndim for x in tensors):
                raise Mixed(f"{op} of {[x.device for x in tensors]}")
            if name in ("index", "index_put", "index_put_"):
                waits = any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])
            else:
                waits = {torch.Tag.data_dependent_output,
                         torch.Tag.dynamic_output_shape} & set(op.tags)
            if waits:
                raise Waiting(str(op))
        return STAND_INS.get(name, op)(*args, **kwargs)


@contextlib.contextmanager
def fake_gpu():
    """Inside, "cuda" is a GPU without numbers and gradients. Yields the list of copies that
    wait."""
    with (pytest.MonkeyPatch.context() as patch, torch.no_grad(),
          FakeTensorMode(allow_non_fake_inputs=True), Watch() as watch):
        patch.setattr(torch.nn.Module, "_apply", move_module)
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
        with Bindings():
            try:
                yield watch.copies
            except RuntimeError as error:
                if "CUDA driver" not in str(error):
                    raise
                pytest.skip("this PyTorch (2.6, say) asks the driver even about fake tensors")


@contextlib.contextmanager
def real_gpu():
    """Inside, PyTorch itself watches for operations that wait. Yields the list of them."""
    with warnings.catch_warnings(record=True) as waits:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode("default")
            waits[:] = [w for w in waits if "synchronizing CUDA operation" in str(w.message)]


@pytest.fixture(params=[fake_gpu, real_gpu] if torch.cuda.is_available() else [fake_gpu],
                ids=lambda gpu: gpu.__name__)
def gpu(request):
    return request.param


# The watch itself

PROVOKED = {
    "the sum of two devices": lambda x: x + torch.ones(4, 4),
    "a list of two devices": lambda x: torch.cat([x, torch.ones(4, 4)]),
    "an index of the other device": lambda x: x[torch.tensor([0, 1])],
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x.sum()),
    "int": lambda x: int(x.max()),
    "bool": lambda x: bool((x > 0).all()),
    "if": lambda x: 1 if x.sum() > 0 else 0,
    "tolist": lambda x: x.tolist(),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0),
    "a boolean index": lambda x: x[x > 0],
    "a boolean index that is written to": lambda x: x.__setitem__(x > 0, 1.0),
    "masked_select": lambda x: x.masked_select(x > 0),
    "bincount": lambda x: torch.bincount(x.long().flatten()),
    "unique": lambda x: x.unique(),
    "equal": lambda x: torch.equal(x, x),
}


@pytest.mark.parametrize("provoke", PROVOKED.values(), ids=PROVOKED)
def test_the_watch_finds_mixed_devices_and_waiting(provoke):
    with fake_gpu():
        x = torch.zeros(4, 4, device="cuda")
        with pytest.raises((Mixed, Waiting, RuntimeError)):  # some fake tensors refuse themselves
            provoke(x)


@pytest.mark.parametrize("provoke, copies", [
    (lambda x: x.cpu(), ["to cpu"]),
    (lambda x: torch.ones(4).to("cuda"), ["to cuda"]),
    (lambda x: torch.ones(4).to("cuda", non_blocking=True), ["to cuda"]),  # not from pinned memory
    (lambda x: x.copy_(torch.ones(4)), ["to cuda"]),
    # Where there is a GPU, PyTorch makes this one without asking fake tensors.
    (lambda x: torch.tensor([1.0, 2.0], device="cuda"),
     [] if torch.cuda.is_available() else ["to cuda"]),
    (lambda x: torch.ones(4).pin_memory().to("cuda"), ["to cuda"]),
    (lambda x: torch.ones(4).pin_memory().to("cuda", non_blocking=True), []),
    (lambda x: x[:, None, ..., 1:].sum() * 2 + torch.tensor(1.0), []),
    (lambda x: x[0].fill_(1.0) + x[torch.zeros(4, dtype=torch.long, device="cuda")], []),
])
def test_the_watch_lists_copies_that_wait(provoke, copies):
    with fake_gpu() as listed:
        provoke(torch.zeros(4, 4, device="cuda"))
    assert listed == copies


# Between images and loss


def batch(n=2, size=64):
    """Images, and targets with void pixels."""
    images = torch.rand(n, 3, size, size, device="cuda")
    return images, torch.full((n, 1, size, size), 255.0, device="cuda")


def network(**options):
    return UNet(**{"encoder": "efficientnet-lite0", **options}).to(
        "cuda", memory_format=torch.channels_last)


def test_augmentation(gpu):
    with gpu() as waits:
        images = torch.zeros(2, 96, 96, 4, dtype=torch.uint8, device="cuda").permute(0, 3, 1, 2)
        images, masks = augment(images[:, :3], images[:, 3:], 64, torch.Generator())
    assert (images.device.type, masks.device.type) == ("cuda", "cuda")
    assert images.shape == (2, 3, 64, 64) and masks.shape == (2, 1, 64, 64)
    assert not waits


@pytest.mark.parametrize("encoder, attention, dtype", [
    ("efficientnet-b0", "scse", None), ("efficientnet-lite0", "cbam", torch.bfloat16),
    ("efficientnet-lite0", "cbam3", torch.float16)])
def test_the_network_and_the_loss_of_all_its_maps(gpu, encoder, attention, dtype):
    with gpu() as waits:
        net = network(encoder=encoder, attention=attention, **TRICKS).train()
        images, targets = batch()
        waits.clear()
        with torch.autocast("cuda", dtype, enabled=dtype is not None):
            logits = net(images)
        loss = deep_supervision_loss(make_loss("bce+dice+lovasz"), logits, targets)
    assert [z.shape[2] for z in logits] == [64, 32, 16, 8, 4]
    assert all(z.device.type == "cuda" for z in (*logits, loss))
    assert {z.dtype for z in logits} == {dtype or torch.float32}
    assert loss.dtype == torch.float32 and loss.shape == ()
    assert not waits


@pytest.mark.parametrize("size", [33, 64])
def test_the_network_in_eval_mode_at_any_size(gpu, size):
    with gpu() as waits:
        net = network(**TRICKS).eval()
        images, _ = batch(1, size)
        waits.clear()
        logits = net(images)
    assert logits.device.type == "cuda" and logits.shape == (1, 1, size, size)
    assert not waits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_losses(gpu, loss, dtype):
    with gpu() as waits:
        logits = torch.zeros(2, 2, 16, 16, device="cuda", dtype=dtype)
        value = loss(logits, torch.ones(2, 2, 16, 16, device="cuda"))
    assert value.device.type == "cuda" and value.shape == () and value.dtype == torch.float32
    assert not waits


def test_the_moving_average_of_the_weights(gpu):
    with gpu() as waits:
        net = network()
        average = EMA(net, 0.9)
        waits.clear()
        average.update()
    assert all(value.device.type == "cuda" for value in average.net.state_dict().values())
    assert not waits


@pytest.mark.skipif(not torch.cuda.is_available(), reason="gradients need a GPU")
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_a_training_step(dtype):
    net, images, targets = network(attention="scse", **TRICKS).train(), *batch()
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3, fused=True)
    scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
    for _ in range(2):  # the first step also sets up the optimiser and the scaler
        with real_gpu() as waits:
            value = train.training_step(net, make_loss("bce+lovasz"), [(images, targets)],
                                        optimizer, scaler, dtype)
    assert not waits, [str(wait.message) for wait in waits]
    assert value.isfinite()


class WithoutGradients(torch.amp.GradScaler):
    """A scaler for fake tensors, which have no gradients: nothing goes backward."""

    def scale(self, outputs):
        super().scale(outputs)
        return SimpleNamespace(backward=lambda: None)

    def step(self, optimizer):
        pass

    def update(self):
        pass


@pytest.mark.parametrize("spec, parts", [("bce+lovasz", 1), ("bce+batch_dice", 2)])
@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_a_training_step_does_not_wait_for_its_loss(spec, parts, dtype, monkeypatch):
    monkeypatch.setattr(torch.autograd, "backward", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "get_rng_state", torch.get_rng_state)
    monkeypatch.setattr(torch.cuda, "set_rng_state", torch.set_rng_state)
    with fake_gpu() as waits:
        net, given = network(attention="scse", **TRICKS).train(), [batch() for _ in range(parts)]
        optimizer = SimpleNamespace(zero_grad=lambda: None)
        scaler = WithoutGradients("cuda", enabled=dtype == torch.float16)
        scaler.scale(torch.zeros((), device="cuda"))  # sets itself up
        waits.clear()
        value = train.training_step(net, make_loss(spec), given, optimizer, scaler, dtype, parts)
    assert value.device.type == "cuda" and value.shape == ()
    assert not waits


@pytest.mark.parametrize("scaled", [False, True])
def test_what_follows_a_step_does_not_wait_for_its_loss(scaled):
    with fake_gpu() as waits:
        loss, scaler = torch.zeros((), device="cuda"), torch.amp.GradScaler("cuda", enabled=scaled)
        scaler.scale(loss)  # sets itself up
        run = object.__new__(loop.Run)
        run.__dict__.update(
            loss_sum=torch.zeros((), device="cuda"), watch=loop.Watch(str), step=0, epoch=0,
            rows=[], scaler=scaler, stop=threading.Event(), last_save=time.monotonic(),
            plan=SimpleNamespace(steps_per_epoch=9, steps=9, epochs=1), progress=Progress(9, ""))
        waits.clear()
        for _ in range(3):
            run.after_step(loss, 1e-3, torch.tensor([[0]]))
    assert run.loss_sum.device.type == "cuda" and len(run.watch.unseen) == 3
    assert not waits


def test_tiles_come_from_pinned_memory_in_the_background(monkeypatch):
    class Inline(contextlib.AbstractContextManager):
        """A pool without threads, which would not know of fake tensors."""

        def __init__(self, workers):
            pass

        def __exit__(self, *error):
            pass

        def submit(self, work, *args):
            (future := Future()).set_result(work(*args))
            return future

    monkeypatch.setattr("minseg.run.tiles.ThreadPoolExecutor", Inline)
    tiles = object.__new__(Tiles)
    tiles.read = lambda indices, pin: (lambda read: read.pin_memory() if pin else read)(
        torch.zeros(len(indices), 8, 8, 4, dtype=torch.uint8))
    numbers = torch.tensor([[0, 1], [2, 3]])
    with fake_gpu() as waits:
        for images, masks in tiles.batches(numbers, "cuda"):
            assert (images.device.type, masks.device.type) == ("cuda", "cuda")
            assert images.shape == (2, 3, 8, 8) and masks.shape == (2, 1, 8, 8)
    assert not waits


# Prediction


def test_tiles_of_bare_glass_are_told_once_and_answered_on_the_gpu(monkeypatch):
    monkeypatch.setattr(Watch, "allowed", {
        "nonzero": lambda keep: torch.zeros(len(keep), 1, dtype=torch.long, device=keep.device)})
    with fake_gpu() as waits:
        answers = skip_flat(lambda tiles: tiles[:, :1].float(), 5.0)(
            torch.zeros(4, 3, 32, 32, dtype=torch.uint8, device="cuda"))
    assert answers.device.type == "cuda" and answers.shape == (4, 1, 32, 32)
    assert waits == ["nonzero"]


@pytest.mark.parametrize("tta, amp", [(False, True), (True, False)])
def test_bands_wait_once_for_each_slide_and_once_for_each_band(gpu, tta, amp, monkeypatch):
    sizes, forward = [], UNet.forward
    monkeypatch.setattr(UNet, "forward", lambda net, x: sizes.append(len(x)) or forward(net, x))
    with gpu() as waits:
        net = UNet("efficientnet-lite0", attention="scse", **TRICKS)
        predict = predictor([net], device="cuda", tta=tta, amp=amp)
        waits.clear()  # of copying the networks
        bands = list(predict_bands(predict, lambda y, x, h, w: np.zeros((h, w, 3), np.uint8),
                                   50, 90, tile=32, stride=24, batch=3, device="cuda"))
    assert sum(band.shape[1] for _, band in bands) == 50
    assert {band.device.type for _, band in bands} == {"cpu"}
    assert len(waits) == 1 + len(bands)  # the window, and the result of each row of tiles
    assert len(sizes) == 4 and set(sizes) == {24 if tta else 3}  # 3 and 1 tiles, filled up


@pytest.mark.skipif(not torch.cuda.is_available(), reason="compares numbers of a GPU")
@pytest.mark.parametrize("tta", [False, True])
def test_a_gpu_predicts_what_a_cpu_predicts(tta):
    net = UNet("efficientnet-lite0", attention="cbam", **TRICKS).eval()
    image = np.random.default_rng(0).integers(0, 256, (50, 90, 3), np.uint8)
    image[:, 50:] = 200  # flat
    cpu, gpu = (torch.cat([band for _, band in predict_bands(
        skip_flat(predictor([net], device=device, tta=tta), 5.0),
        lambda y, x, h, w: image[y : y + h, x : x + w], 50, 90, tile=32, stride=16, batch=3,
        device=device)], 1) for device in ("cpu", "cuda"))
    torch.testing.assert_close(gpu, cpu, atol=1e-2, rtol=0)
    assert cpu[0, :, :40].all() and not cpu[0, :, 82:].any()


def test_eight_views(gpu):
    with gpu() as waits:
        tiles = torch.zeros(2, 3, 32, 32, device="cuda")
        mean = flips_and_turns(lambda views: views[:, :1])(tiles)
    assert mean.device.type == "cuda" and mean.shape == (2, 1, 32, 32)
    assert not waits
