"""The recipe that `lab.race` runs beside train.py, put together from what other libraries document.

segmentation_models.pytorch's U-Net; BCE + Dice; AdamW and OneCycle, up to 1e-3 and for the encoder
3e-4; random crops of the tiles with their margin, flips and quarter turns; MONAI's sliding window,
Gaussian, overlap 0.25. It is set up for Lite0 to Lite4, has not been tuned here, and takes void
pixels for background.
"""

import argparse
import math
import time
from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from minseg.files.masks import Item, Mask
from minseg.pretrained import load_weights
from minseg.run.bands import enlarge
from minseg.run.prepare import make_sampler
from minseg.run.scores import count_known
from minseg.run.tiles import Tiles
from minseg.training import autocast_dtype
from minseg.unet import UNet

from .measure import synchronize

RATE, ENCODER_RATE, OVERLAP = 1e-3, 3e-4, 0.25


def installed() -> bool:
    """Whether the libraries are there. If not, says so."""
    found = all(find_spec(name) for name in ("segmentation_models_pytorch", "monai", "timm"))
    if not found:
        print("minseg runs alone: the peers are not installed (pip install -e '.[audit]')")
    return found


class Normalised(nn.Module):
    """A network that takes images in [0, 1]."""

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - self.mean) / self.std)


def build(args: argparse.Namespace) -> Normalised:
    """segmentation_models.pytorch's U-Net, with the encoder weights that train.py starts from."""
    import segmentation_models_pytorch as smp

    torch.manual_seed(args.seed)
    name = args.encoder.replace("efficientnet-lite", "tu-tf_efficientnet_lite")  # "tu": of timm
    net = smp.Unet(name, encoder_weights=None)
    ours = UNet(args.encoder)
    mean, std = ours.mean.flatten().tolist(), ours.std.flatten().tolist()
    if args.weights:
        mean, std = load_weights(ours.encoder, args.weights)
        state = net.encoder.state_dict()
        names = [name for name in state if not name.startswith(("_conv_head", "_bn1"))]
        state.update(zip(names, ours.encoder.state_dict().values(), strict=True))
        net.encoder.load_state_dict(state)
    return Normalised(net, mean, std).to(args.device)


def flipped_crop(image: Tensor, size: int) -> Tensor:
    """A random crop of `size` pixels of an image (C, H, W), flipped and turned at random."""
    y, x = (int(torch.randint(length - size + 1, ())) for length in image.shape[1:])
    crop = image[:, y : y + size, x : x + size]
    crop = crop.flip(-1) if torch.rand(()) < 0.5 else crop
    return crop.rot90(int(torch.randint(4, ())), (-2, -1))


def train(args: argparse.Namespace, tiles: Tiles, train_on: Tensor,
          steps: int) -> tuple[nn.Module, float]:
    """A run of so many steps. Returns the network, and seconds."""
    import segmentation_models_pytorch as smp

    net, device = build(args).train(), torch.device(args.device)
    encoder = list(net.net.encoder.parameters())
    others = [*net.net.decoder.parameters(), *net.net.segmentation_head.parameters()]
    optimizer = torch.optim.AdamW([{"params": encoder}, {"params": others}])
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, [ENCODER_RATE, RATE], steps)
    bce, dice = nn.BCEWithLogitsLoss(), smp.losses.DiceLoss("binary")
    dtype = autocast_dtype(device)
    scaler = torch.amp.GradScaler(device.type, enabled=args.amp and dtype == torch.float16)
    numbers_of = make_sampler(args, tiles, train_on)
    start = time.monotonic()
    epochs = math.ceil(steps / len(numbers_of(0)))
    numbers = torch.cat([numbers_of(epoch).flatten(0, 1) for epoch in range(epochs)])[:steps]
    for images, masks in tiles.batches(numbers, args.device, args.workers):
        both = torch.stack([flipped_crop(tile, args.tile)
                            for tile in torch.cat([images, masks], 1)])
        images, masks = both[:, :3] / 255, (both[:, 3:] == 1).float()
        with torch.autocast(device.type, dtype, enabled=args.amp):
            logits = net(images)
            loss = bce(logits, masks) + dice(logits, masks)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
    synchronize()
    return net.eval(), time.monotonic() - start


@torch.inference_mode()
def predict(net: nn.Module, items: Sequence[Item], args: argparse.Namespace) -> list[Tensor]:
    """What `scores.predict` returns, with MONAI's sliding window."""
    from monai.inferers import sliding_window_inference

    counts = []
    for item in items:
        slide = item.open(args.scale, args.microns)
        image = torch.tensor(slide.read_all()).permute(2, 0, 1)[None].to(args.device) / 255
        with torch.autocast(image.device.type, autocast_dtype(image.device), enabled=args.amp):
            result = sliding_window_inference(image, args.tile, args.batch,
                                              lambda tiles: net(tiles).float().sigmoid(),
                                              overlap=OVERLAP, mode="gaussian")[0].cpu()
        mask, total = Mask(item, slide.full_height, slide.full_width), torch.zeros(2, 256).long()
        for y, band in enlarge(slide, [(0, result)]):
            probability = (band[0] * 255).round().byte().numpy()
            total += count_known(probability, mask.read(y, 0, *probability.shape))
        counts.append(total)
    return counts
