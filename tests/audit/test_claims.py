"""What this project's docstrings say of other libraries: that they differ, and how."""

import inspect
import math

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import train
from minseg import SCSE, UNet, dice_loss
from minseg.augment import STAINS
from minseg.efficientnet import SCALES
from minseg.pretrained import adapt_stem

INSTALL = "python -m pip install -e '.[audit]'"


@pytest.fixture
def smp():
    return pytest.importorskip("segmentation_models_pytorch",
                               reason=f"needs segmentation-models-pytorch: {INSTALL}")


def test_the_plain_unet_has_smps_parameters_less_those_never_used(smp):
    nets = smp.Unet("efficientnet-b0", encoder_weights=None), UNet("efficientnet-b0")
    counts = [sum(p.numel() for p in net.parameters()) for net in nets]
    assert counts[0] - counts[1] == 412_160


@pytest.mark.parametrize("logit", [0, -7])
def test_smps_dice_of_an_all_empty_batch_teaches_nothing(smp, logit):
    logits = torch.full((1, 1, 8, 8), float(logit), requires_grad=True)
    value = smp.losses.DiceLoss("binary")(logits, torch.zeros(1, 1, 8, 8))
    value.backward()
    assert value.item() == 0 and not logits.grad.any()


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_smps_scse_fails_below_16_channels_where_ours_keeps_one_hidden_channel(smp):
    with pytest.raises(RuntimeError, match="at least 1"):
        smp.base.modules.SCSEModule(8)(torch.randn(1, 8, 4, 4))
    assert SCSE(8)(torch.randn(1, 8, 4, 4)).shape == (1, 8, 4, 4)


@pytest.mark.parametrize("logit, loss, slope", [(0, 1.000, 2.4e-9), (-7, 1.000, 2.7e-6)])
def test_monais_empty_image_costs_one_and_hardly_teaches(logit, loss, slope):
    losses = pytest.importorskip("monai.losses", reason=f"needs monai: {INSTALL}")
    logits = torch.full((1, 1, 8, 8), float(logit), dtype=torch.float64, requires_grad=True)
    empty = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    value = losses.DiceLoss(sigmoid=True)(logits, empty)
    value.backward()
    assert value.item() == pytest.approx(loss, abs=6e-4)
    assert logits.grad[0, 0, 0, 0].item() == pytest.approx(slope, rel=0.03)
    assert dice_loss(logits, empty) < 1


@pytest.mark.parametrize("size, bn_eps, momentum", [("b0", 1e-5, 0.1), ("b5", 1e-3, 0.01)])
def test_torchvisions_norms_are_as_the_table_says(size, bn_eps, momentum):
    models = pytest.importorskip("torchvision.models", reason=f"needs torchvision: {INSTALL}")
    with torch.device("meta"):
        net = getattr(models, f"efficientnet_{size}")()
    assert {(m.eps, m.momentum) for m in net.modules()
            if isinstance(m, torch.nn.BatchNorm2d)} == {(bn_eps, momentum)}


@pytest.mark.parametrize("size", range(8))
def test_dropout_and_image_size_are_the_authors(size):
    models = pytest.importorskip("torchvision.models", reason=f"needs torchvision: {INSTALL}")
    lukemelas = pytest.importorskip("efficientnet_pytorch",
                                    reason=f"needs efficientnet-pytorch: {INSTALL}")
    _, _, dropout, pixels = SCALES[f"efficientnet-b{size}"]
    with torch.device("meta"):
        assert getattr(models, f"efficientnet_b{size}")().classifier[0].p == dropout
    assert lukemelas.EfficientNet.get_image_size(f"efficientnet-b{size}") == pixels


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_stems_for_other_channels_are_made_as_by_timm_and_smp(smp, channels):
    helpers = pytest.importorskip("timm.models", reason=f"needs timm: {INSTALL}")
    weight = torch.rand(8, 3, 3, 3)
    ours = adapt_stem(weight, channels)
    torch.testing.assert_close(ours, helpers.adapt_input_conv(channels, weight))
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, bias=False))
    net[0].weight.data = weight
    smp.encoders._utils.patch_first_conv(net, channels)
    torch.testing.assert_close(ours, net[0].weight.data)


def test_timms_cbam_has_no_bias_unless_asked():
    cbam = pytest.importorskip("timm.layers.cbam", reason=f"needs timm: {INSTALL}")
    assert cbam.CbamModule(16).channel.fc1.bias is None


def test_the_stains_are_those_of_scikit_image():
    color = pytest.importorskip("skimage.color", reason=f"needs scikit-image: {INSTALL}")
    assert color.rgb_from_hed.tolist() == [list(row) for row in STAINS]


def test_torchvisions_retinanet_first_predicts_a_hundredth():
    retinanet = pytest.importorskip("torchvision.models.detection.retinanet",
                                    reason=f"needs torchvision: {INSTALL}")
    head = retinanet.RetinaNetClassificationHead(8, 1, 1)
    assert torch.allclose(head.cls_logits.bias.sigmoid(), torch.tensor(0.01))


def test_monais_schedule_is_ours_but_begins_at_0():
    schedulers = pytest.importorskip("monai.optimizers.lr_scheduler",
                                     reason=f"needs monai: {INSTALL}")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0)
    rate = schedulers.WarmupCosineSchedule(optimizer, 10, 100).lr_lambda
    for step in range(10):
        assert rate(step) == pytest.approx(step / 10)
        assert train.learning_rate_share(step, 100, 100) == pytest.approx((step + 1) / 10)
    for step in range(10, 100):
        assert rate(step) == pytest.approx(train.learning_rate_share(step, 100, 100))


def test_timms_average_spans_ten_thousand_steps():
    utils = pytest.importorskip("timm.utils", reason=f"needs timm: {INSTALL}")
    decay = inspect.signature(utils.ModelEmaV3).parameters["decay"].default
    assert 1 / (1 - decay) == pytest.approx(10_000)


def test_a_norm_that_torch_recomputes_counts_each_batch_twice():
    norm, x = torch.nn.BatchNorm2d(2), torch.rand(2, 2, 3, 3, requires_grad=True)
    checkpoint(norm, x, use_reentrant=False).sum().backward()
    assert norm.num_batches_tracked == 2


def test_monais_last_batch_of_tiles_is_smaller():
    inferers = pytest.importorskip("monai.inferers", reason=f"needs monai: {INSTALL}")
    sizes = []
    inferers.sliding_window_inference(torch.zeros(1, 1, 40, 40), (16, 16), 4, lambda tiles: (
        sizes.append(len(tiles)), tiles)[1], overlap=0)
    assert sizes == [4, 4, 1]


def test_monais_test_image_is_black_with_disks_of_one_brightness():
    synthetic = pytest.importorskip("monai.data.synthetic", reason=f"needs monai: {INSTALL}")
    image, mask = synthetic.create_test_image_2d(90, 90, 1, rad_min=19, rad_max=20)
    assert not image[mask == 0].any() and len(set(image[mask > 0])) == 1
    assert math.isclose((mask > 0).sum(), math.pi * 19**2, rel_tol=0.02)
