"""The whole system in forty lines of code: find the glomeruli in kidney slides.

    python tutorial.py

A glomerulus is one of the kidney's round filters. We draw eight slides whose masks we know, and
train a network on them that tells for each pixel how likely it is part of a glomerulus. Then we
test it on a ninth slide, which it has not seen. This takes about a minute on two CPU cores, and
writes tutorial.png: the slide, its mask (white where a glomerulus is), and what the network says
before and after training. (The slide's other round spots are there to be mistaken for glomeruli.
What the network says before training means nothing: its weights are random.)

The chapters explain these lines one by one; the contents of `minseg/__init__.py` give their order,
and `minseg/unet.py` is the first. The last is `train.py`: the same loop, grown up. Comments give
shapes: (images, channels, rows, columns).
"""

import numpy as np
import torch
from PIL import Image, ImageDraw

from minseg import UNet, dice_score, make_loss, predict_image
from minseg.synthetic import synthetic_slide

CROP = 128  # pixels; real slides do not fit in memory, so the network learns from parts of them


def draw(seed):
    """A slide and its mask, made four times smaller: uint8 (256, 256, 3), (256, 256) of 0 and 1."""
    image, mask = synthetic_slide(seed)  # (1024, 1024, 3), (1024, 1024)
    # A pixel of the small mask is 1 where most of the 4 x 4 pixels are.
    mask = Image.fromarray(mask * 255).reduce(4).point(lambda share: share > 127)
    return np.array(Image.fromarray(image).reduce(4)), np.array(mask, np.uint8)


def main(steps=160):
    """Draw, train, predict, compare."""
    torch.manual_seed(0)
    print("drawing nine slides, the last one for the test")
    images, masks = map(np.stack, zip(*(draw(seed) for seed in range(9))))
    inputs = torch.tensor(images[:8]).permute(0, 3, 1, 2) / 255  # (8, 3, 256, 256) from 0 to 1
    targets = torch.tensor(masks[:8, None]).float()  # (8, 1, 256, 256), 1 in glomeruli

    net = UNet("efficientnet-lite0")
    loss = make_loss("bce+batch_dice")
    optimizer = torch.optim.AdamW(net.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, steps)  # up, then down to 0

    @torch.no_grad()
    def predict(tiles):  # uint8 (n, 3, 128, 128)
        return net.eval()(tiles / 255).sigmoid()  # (n, 1, 128, 128) from 0 to 1

    before = predict_image(predict, images[8], tile=CROP, stride=CROP // 2)  # (1, 256, 256)
    print(f"training for {steps} steps")
    for step in range(1, steps + 1):
        y, x = torch.randint(256 - CROP + 1, (2,)).tolist()
        crop = np.s_[:, :, y : y + CROP, x : x + CROP]  # the same place in all eight slides
        logits = net.train()(inputs[crop])  # (8, 1, 128, 128)
        value = loss(logits, targets[crop])  # one number
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 20 == 0:
            print(f"step {step}: loss {value:.2f}", flush=True)
    after = predict_image(predict, images[8], tile=CROP, stride=CROP // 2)  # (1, 256, 256)

    # 0.5 is a convention; `minseg.crossval` chooses a better threshold.
    dice = [dice_score(p[0] > 0.5, masks[8]) for p in (before, after)]
    print("Dice on the slide that it has not seen: {:.2f} before, {:.2f} after".format(*dice))
    panels = {"a new slide": images[8], "its mask": masks[8] * 255,
              "the network before training": np.uint8(before[0] * 255),
              f"after training: Dice {dice[1]:.2f}": np.uint8(after[0] * 255)}
    sheet = Image.new("RGB", (4 * 388, 412), "white")
    for k, (title, panel) in enumerate(panels.items()):
        sheet.paste(Image.fromarray(panel).convert("RGB").resize((384, 384)), (k * 388, 28))
        ImageDraw.Draw(sheet).text((k * 388 + 4, 6), title, "black", font_size=16)
    sheet.save("tutorial.png")
    print("tutorial.png shows it")


if __name__ == "__main__":
    main()
