"""# Attention gates

**In `tutorial.py`**, `net = UNet("efficientnet-lite0")` becomes
`UNet("efficientnet-lite0", gates=True)`.

**Idea.** In a U-Net (see `minseg.unet`) a *skip* hands an encoder map on to the decoder map of its
size: everything that the encoder saw, most of it irrelevant. The map one level deeper already knows
roughly *where* the object is. Let it weight the skip, by one number from 0 to 1 for each pixel.

    q      = psi(ReLU(theta(x) + phi(g)))         x: the skip, g: the deeper map, the "gate"
    alpha  = up(sigmoid(q))                       one map, in (0, 1)
    output = BN(W(alpha x))

theta is a 2 x 2 convolution of stride 2 (it brings the skip down to the gate's size) without bias,
because phi already adds one to the same sum; phi, psi and W are 1 x 1 convolutions; up is bilinear
upsampling (`align_corners=False`). W and BN are in the authors' code, not in the paper. Here W is
`project` (without bias, because BN would cancel it) and BN is `norm`; `theta`, `phi` and `psi` have
their own names.

**Shapes.** `skip` (N, Cs, H, W), H and W at least 2, and `gate` (N, Cg, H/2, W/2) -> (N, Cs, H, W).
A gate of any other size is resized. theta and phi output `inter_channels`; `attention` returns
alpha, (N, 1, H, W).

![The maps of three gates over a slide](../docs/figures/gates.png)

*alpha of a trained network's three gates, laid over a slide that it has not seen. The finest gate
(on the map at 1/4 of the image's size) lets 0.89 through in glomeruli and 0.15 elsewhere, on
average; the next (1/8) 0.89 and 0.44; and the deepest (1/16) hardly tells them apart. Nothing in
the loss tells a gate where to open.*

| what | paper | authors' code | MONAI | here |
|---|---|---|---|---|
| theta | 1 x 1, skip downsampled | 2 x 2, stride 2, no bias | 1 x 1, BN | as the authors' code |
| g | one level deeper | as the paper (*) | as the paper, upsampled | as the paper |
| psi | bias | bias | bias, BN | bias |
| `inter_channels` | - | default Cs / 2, but their CT networks pass Cs | an argument | Cs / 2 |
| alpha at the start | near 1 | near 1/2 | near 1/2 | near 1/2 |
| W | - | 1 x 1, BN; in CT networks 1 x 1, BN, ReLU after it | none | 1 x 1, BN |
| finest skip | not gated | not gated | gated | not gated (see `minseg.unet`) |

(*) Only the deepest map of all passes a 1 x 1 convolution, BN and ReLU before it serves as g.

The paper says that its gates start open, but nothing in its code opens them: the usual
initialisation keeps q near 0. Starting with open gates (psi's bias is 3, so alpha starts near 0.95)
did not help here (below).

segmentation_models.pytorch and HuBMAP's winner (see `minseg.cbam`) have no such gates: what Kaggle
calls attention is mostly `minseg.scse` or `minseg.cbam`, where a map computes its own weights.

**Measured.** +0.002 on nuclei, -0.011 on synthetic slides, -0.010 [-0.018, -0.003] on those of
forty patients: not told from chance after the correction for seven tricks, but rather a loss. Gates
that start open: +0.002 and -0.031 ([how](../docs/study.md)).

**Source.** Oktay et al., *Attention U-Net: Learning Where to Look for the Pancreas*, MIDL 2018,
arXiv 1804.03999, equations 1 and 2 and figure 2. W, BN and the 2 x 2 theta: the authors' code,
ozan-oktay/Attention-Gated-Networks, `grid_attention_layer.py`, `unet_CT_single_att_dsv_3D.py`.

>>> import torch
>>> from torch import nn
>>> from minseg import AttentionGate
>>> block = AttentionGate(skip_channels=1, gate_channels=1)
>>> # theta ignores the skip, phi copies the gate, psi makes q = 8 ReLU(g) - 4 of it
>>> for layer, weight in ((block.theta, 0), (block.phi, 1), (block.psi, 8)):
...     _ = nn.init.constant_(layer.weight, weight)
>>> _ = nn.init.zeros_(block.phi.bias), nn.init.constant_(block.psi.bias, -4)
>>> skip, gate = torch.randn(1, 1, 2, 4), torch.tensor([[[[0., 1.]]]])  # "it is on the right"
>>> block.attention(skip, gate)[0, 0, 0].detach()  # sigmoid(-4) to sigmoid(4)
tensor([0.0180, 0.2590, 0.7410, 0.9820])

**Exercises.**
1. *By hand.* With psi's weights at 0, alpha is the same for all pixels: 1/2 if psi's bias is 0, and
   1 if it is 100. How many times larger is the output in training, if alpha is 1 instead of 1/2?
2. *Break it.* In a copy of this file, my_attention_gate.py, replace `F.relu(theta + phi)` by
   `(theta + phi)`. Predict, then run: which test fails, and what can such a gate not do?
3. *Write it.* `AttentionGate(skip_channels, gate_channels, inter_channels=None)`, with `attention`
   and `forward`, and the layers theta, phi, psi, `project` and `norm`, in this order.
   `python -m pytest tests/test_attention_gate.py --mine my_attention_gate.py` grades it, and the
   copy, too.

Next: `minseg.scse`, where a map needs no other map to weight itself.

**Answers.**
1. It is the same: in training, BN divides by the deviation, and with it by alpha. Only differences
   between pixels matter.
2. `test_it_is_its_equation`: q is then one sum over the skip plus one over the gate, so the gate
   can raise or lower q, but not change which channels of the skip count.

>>> skip, gate, outputs = torch.randn(2, 1, 8, 8), torch.randn(2, 1, 4, 4), []
>>> _ = nn.init.zeros_(block.psi.weight), nn.init.ones_(block.project.weight)
>>> for bias in (0, 100):
...     _ = nn.init.constant_(block.psi.bias, bias)
...     outputs.append(block.train()(skip, gate))
>>> torch.allclose(*outputs, atol=1e-3)
True
"""

from torch import Tensor, nn
from torch.nn import functional as F


class AttentionGate(nn.Module):
    """Weights each pixel of the skip by what the skip and the gate say about it (arXiv 1804.03999,
    equations 1 and 2, as its authors coded them). "Additive", because the two are added and not
    multiplied; "grid", because the gate is a map and not one vector for the whole image."""

    def __init__(self, skip_channels: int, gate_channels: int, inter_channels: int | None = None):
        super().__init__()
        inter = inter_channels or max(1, skip_channels // 2)
        self.theta = nn.Conv2d(skip_channels, inter, 2, stride=2, bias=False)
        self.phi = nn.Conv2d(gate_channels, inter, 1)
        self.psi = nn.Conv2d(inter, 1, 1)
        self.project = nn.Conv2d(skip_channels, skip_channels, 1, bias=False)  # W
        self.norm = nn.BatchNorm2d(skip_channels)

    def attention(self, skip: Tensor, gate: Tensor) -> Tensor:
        """alpha, the weight of each pixel of `skip`: (N, 1, H, W), in (0, 1)."""
        theta, phi = self.theta(skip), self.phi(gate)  # both (N, inter, H/2, W/2)
        if phi.shape[2:] != theta.shape[2:]:  # for example where H is odd: theta rounds down
            phi = F.interpolate(phi, theta.shape[2:], mode="bilinear")
        alpha = self.psi(F.relu(theta + phi)).sigmoid()  # (N, 1, H/2, W/2)
        return F.interpolate(alpha, skip.shape[2:], mode="bilinear")  # (N, 1, H, W)

    def forward(self, skip: Tensor, gate: Tensor) -> Tensor:
        """(N, Cs, H, W) and (N, Cg, H/2, W/2) -> (N, Cs, H, W)."""
        return self.norm(self.project(skip * self.attention(skip, gate)))
