"""Network layouts, public checkpoint names, and the encoder around a network."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from fa_utils.data.faceset import FaceSet
from fa_utils.models import FaceEncoder, build_backbone, load_public_state_dict
from fa_utils.models.backbones import FULL, SMALL, public_keys
from fa_utils.models.encoder import resize
from fa_utils.models.iresnet import ARCFACE_UNITS, EVOLVE_UNITS
from fa_utils.models.prelu import PReLU
from fa_utils.models.shufflenet import ChannelShuffle

WIDTHS = (64, 128, 256, 512)


def small_encoder(layout: str = "irse", **options) -> FaceEncoder:
    torch.manual_seed(0)
    return FaceEncoder(build_backbone(layout), name=layout, input_size=56, **options)


def images(count: int = 2, size: int = 112) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


# --- layouts


@pytest.mark.parametrize("layout", SMALL)
def test_small_networks_embed_and_have_small_size(layout):
    encoder = small_encoder(layout)
    assert encoder.backbone.input_size == 56
    assert encoder(images()).shape == (2, 128)
    assert 0.3e6 < sum(p.numel() for p in encoder.parameters()) < 1.5e6
    assert build_backbone(layout, embedding=16).eval()(torch.zeros(1, 3, 56, 56)).shape == (1, 16)


@pytest.mark.parametrize("layout", [layout for layout in SMALL if layout != "vgg16"])  # a plain chain has no units
def test_units_sum_their_two_branches(layout):
    encoder = small_encoder(layout)
    units = encoder.residual_units()
    assert len(units) >= 3
    for name, unit in units:
        seen = {}
        hooks = [
            unit.residual.register_forward_hook(
                lambda m, i, out, seen=seen: seen.update(residual=out.clone())
            ),
            unit.shortcut.register_forward_hook(
                lambda m, i, out, seen=seen: seen.update(shortcut=out.clone())
            ),
            unit.register_forward_hook(lambda m, i, out, seen=seen: seen.update(out=out.clone())),
        ]
        encoder(images())
        for hook in hooks:
            hook.remove()
        total = seen["shortcut"] + seen["residual"]
        expected = total.relu() if layout in ("incres", "resnet50", "shuffle") else total
        assert torch.equal(seen["out"], expected), name


def test_unknown_layout_and_width_offer_the_nearest_name():
    with pytest.raises(ValueError, match="Did you mean 'mobile'"):
        build_backbone("mobil")
    with pytest.raises(ValueError, match="Did you mean 'small'"):
        build_backbone("ires", width="smal")
    with pytest.raises(ValueError, match="at least 1"):
        build_backbone("ires", embedding=0)


# --- public names, shapes and sizes


def norm(prefix: str, channels: int) -> dict[str, tuple[int, ...]]:
    parts = ("weight", "bias", "running_mean", "running_var")
    return {f"{prefix}.{part}": (channels,) for part in parts} | {f"{prefix}.num_batches_tracked": ()}


def conv_norm(prefix: str, conv: str, bn: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}{conv}.weight": shape} | norm(f"{prefix}{bn}", shape[0])


def arcface_keys(units) -> dict[str, tuple[int, ...]]:
    keys = {"prelu.weight": (64,), "fc.weight": (512, 25088), "fc.bias": (512,)}
    keys |= conv_norm("", "conv1", "bn1", 64, 3, 3, 3) | norm("bn2", 512) | norm("features", 512)
    before = 64
    for stage, (count, width) in enumerate(zip(units, WIDTHS, strict=True), 1):
        for i in range(count):
            prefix = f"layer{stage}.{i}."
            keys |= norm(prefix + "bn1", before) | {prefix + "prelu.weight": (width,)}
            keys |= conv_norm(prefix, "conv1", "bn2", width, before, 3, 3)
            keys |= conv_norm(prefix, "conv2", "bn3", width, width, 3, 3)
            if i == 0:
                keys |= conv_norm(prefix, "downsample.0", "downsample.1", width, before, 1, 1)
            before = width
    return keys


def evolve_keys(units, excite: bool) -> dict[str, tuple[int, ...]]:
    keys = conv_norm("input_layer.", "0", "1", 64, 3, 3, 3) | {"input_layer.2.weight": (64,)}
    keys |= norm("output_layer.0", 512) | norm("output_layer.4", 512)
    keys |= {"output_layer.3.weight": (512, 25088), "output_layer.3.bias": (512,)}
    before, index = 64, 0
    for count, width in zip(units, WIDTHS, strict=True):
        for _ in range(count):
            prefix = f"body.{index}.res_layer."
            keys |= norm(prefix + "0", before) | {prefix + "2.weight": (width,)}
            keys |= {prefix + "1.weight": (width, before, 3, 3)}
            keys |= conv_norm(prefix, "3", "4", width, width, 3, 3)
            if excite:
                keys |= {prefix + "5.fc1.weight": (width // 16, width, 1, 1)}
                keys |= {prefix + "5.fc2.weight": (width, width // 16, 1, 1)}
            if before != width:
                keys |= conv_norm(f"body.{index}.shortcut_layer.", "0", "1", width, before, 1, 1)
            before, index = width, index + 1
    return keys


def mobile_keys() -> dict[str, tuple[int, ...]]:
    def block(prefix, *shape, linear=False):
        keys = conv_norm(prefix + ".", "conv", "bn", *shape)
        return keys if linear else keys | {f"{prefix}.prelu.weight": (shape[0],)}

    def depthwise(prefix, before, after, inner):
        return (
            block(prefix + ".conv", inner, before, 1, 1)
            | block(prefix + ".conv_dw", inner, 1, 3, 3)
            | block(prefix + ".project", after, inner, 1, 1, linear=True)
        )

    keys = block("conv1", 64, 3, 3, 3) | block("conv2_dw", 64, 1, 3, 3)
    for name, *shape in (("conv_23", 64, 64, 128), ("conv_34", 64, 128, 256), ("conv_45", 128, 128, 512)):
        keys |= depthwise(name, *shape)
    for name, count, width, inner in (
        ("conv_3", 4, 64, 128),
        ("conv_4", 6, 128, 256),
        ("conv_5", 2, 128, 256),
    ):
        for i in range(count):
            keys |= depthwise(f"{name}.model.{i}", width, width, inner)
    keys |= block("conv_6_sep", 512, 128, 1, 1) | block("conv_6_dw", 512, 1, 7, 7, linear=True)
    return keys | {"linear.weight": (512, 512)} | norm("bn", 512)


def xiaoccer_keys() -> dict[str, tuple[int, ...]]:
    """MobileFaceNet for 112 x 96 as Xiaoccer/MobileFaceNet_Pytorch names it: (factor, width, units, stride) by stage."""

    def block(prefix, *shape, linear=False):
        keys = conv_norm(prefix + ".", "conv", "bn", *shape)
        return keys if linear else keys | {f"{prefix}.prelu.weight": (shape[0],)}

    keys = block("conv1", 64, 3, 3, 3) | block("dw_conv1", 64, 1, 3, 3)
    before, index = 64, 0
    for factor, width, count in ((2, 64, 5), (4, 128, 1), (2, 128, 6), (4, 128, 1), (2, 128, 2)):
        for _ in range(count):
            prefix, inner = f"blocks.{index}.conv.", before * factor
            keys |= conv_norm(prefix, "0", "1", inner, before, 1, 1) | {prefix + "2.weight": (inner,)}
            keys |= conv_norm(prefix, "3", "4", inner, 1, 3, 3) | {prefix + "5.weight": (inner,)}
            keys |= conv_norm(prefix, "6", "7", width, inner, 1, 1)
            before, index = width, index + 1
    keys |= block("conv2", 512, 128, 1, 1) | block("linear7", 512, 1, 7, 6, linear=True)
    return keys | block("linear1", 512, 512, 1, 1, linear=True)


def inception_keys() -> dict[str, tuple[int, ...]]:
    def basic(prefix, *shape):
        return conv_norm(prefix + ".", "conv", "bn", *shape)

    def unit(prefix, channels, width, kernels):
        keys = basic(f"{prefix}.branch0", width, channels, 1, 1)
        for branch, chain in enumerate(kernels, 1):
            keys |= basic(f"{prefix}.branch{branch}.0", width, channels, 1, 1)
            for i, kernel in enumerate(chain, 1):
                keys |= basic(f"{prefix}.branch{branch}.{i}", width, width, *kernel)
        joined = width * (1 + len(kernels))
        return keys | {
            f"{prefix}.conv2d.weight": (channels, joined, 1, 1),
            f"{prefix}.conv2d.bias": (channels,),
        }

    keys = {}
    stem = {"1a": (32, 3, 3), "2a": (32, 32, 3), "2b": (64, 32, 3), "3b": (80, 64, 1), "4a": (192, 80, 3)}
    for name, (after, before, side) in (stem | {"4b": (256, 192, 3)}).items():
        keys |= basic(f"conv2d_{name}", after, before, side, side)
    for i in range(5):
        keys |= unit(f"repeat_1.{i}", 256, 32, [[(3, 3)], [(3, 3), (3, 3)]])
    for i in range(10):
        keys |= unit(f"repeat_2.{i}", 896, 128, [[(1, 7), (7, 1)]])
    for prefix in [f"repeat_3.{i}" for i in range(5)] + ["block8"]:
        keys |= unit(prefix, 1792, 192, [[(1, 3), (3, 1)]])
    keys |= basic("mixed_6a.branch0", 384, 256, 3, 3) | basic("mixed_6a.branch1.0", 192, 256, 1, 1)
    keys |= basic("mixed_6a.branch1.1", 192, 192, 3, 3) | basic("mixed_6a.branch1.2", 256, 192, 3, 3)
    for branch, widths in enumerate(((384,), (256,), (256, 256))):
        keys |= basic(f"mixed_7a.branch{branch}.0", 256, 896, 1, 1)
        for i, width in enumerate(widths, 1):
            keys |= basic(f"mixed_7a.branch{branch}.{i}", width, 256, 3, 3)
    return keys | {"last_linear.weight": (512, 1792)} | norm("last_bn", 512)


def resnet50_keys() -> dict[str, tuple[int, ...]]:
    keys = conv_norm("", "conv1", "bn1", 64, 3, 7, 7) | {"fc.weight": (512, 2048), "fc.bias": (512,)}
    before = 64
    for stage, (count, width) in enumerate(zip((3, 4, 6, 3), WIDTHS, strict=True), 1):
        for i in range(count):
            prefix = f"layer{stage}.{i}."
            keys |= conv_norm(prefix, "conv1", "bn1", width, before, 1, 1)
            keys |= conv_norm(prefix, "conv2", "bn2", width, width, 3, 3)
            keys |= conv_norm(prefix, "conv3", "bn3", 4 * width, width, 1, 1)
            if i == 0:
                keys |= conv_norm(prefix, "downsample.0", "downsample.1", 4 * width, before, 1, 1)
            before = 4 * width
    return keys


PUBLIC = {f"ires{depth}": arcface_keys(units) for depth, units in ARCFACE_UNITS.items()}
PUBLIC |= {f"ir{depth}": evolve_keys(units, False) for depth, units in EVOLVE_UNITS.items()}
PUBLIC |= {f"irse{depth}": evolve_keys(units, True) for depth, units in EVOLVE_UNITS.items()}
PUBLIC |= {"mobile": mobile_keys(), "mobile96": xiaoccer_keys(), "incres": inception_keys(), "resnet50": resnet50_keys()}


@pytest.mark.parametrize("layout", PUBLIC)
def test_public_keys_and_shapes(layout):
    with torch.device("meta"):
        net = build_backbone(layout, "full")
    assert {key: tuple(shape) for key, shape in public_keys(net).items()} == PUBLIC[layout]


def test_every_full_layout_has_its_public_names_tested():
    assert set(FULL) - {"ires", "irse", "vgg16"} == set(PUBLIC)  # VGG16 has torchvision's names without a translation


@pytest.mark.parametrize(
    ("layout", "millions"),
    [
        ("ires18", 24.03),
        ("ires34", 34.14),
        ("ires50", 43.59),
        ("ires100", 65.16),
        ("mobile", 1.20),
        ("mobile96", 1.20),
        ("incres", 23.48),
    ],
)
def test_parameter_counts_are_the_published_ones(layout, millions):
    with torch.device("meta"):
        net = build_backbone(layout, "full")
    assert round(sum(p.numel() for p in net.parameters()) / 1e6, 2) == millions


@pytest.mark.parametrize(("layout", "units"), [("ires", 24), ("irse", 24), ("mobile", 12), ("mobile96", 12), ("incres", 21)])
def test_full_networks_expose_every_residual_unit(layout, units):
    with torch.device("meta"):
        net = build_backbone(layout, "full")
    branches = {
        name.rsplit(".", 1)[0]
        for name, _ in net.named_modules()
        if re.search(r"\.(residual|shortcut)$", name)
    }
    assert len(branches) == units


def public_mobile() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    net = build_backbone("mobile", "full")
    generator = torch.Generator().manual_seed(2)
    return net, {key: torch.rand(shape, generator=generator) for key, shape in public_keys(net).items()}


def test_public_weights_end_where_they_belong():
    net, state = public_mobile()
    load_public_state_dict(net, {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")})
    loaded = net.conv_4.model[2].residual.conv_dw.conv.weight
    assert torch.equal(loaded, state["conv_4.model.2.conv_dw.conv.weight"])
    assert torch.equal(net.conv_34.project.bn.running_var, state["conv_34.project.bn.running_var"])


def test_public_facenet_classification_layer_is_ignored():
    net = build_backbone("incres", "full")
    state = {key: torch.zeros(shape) for key, shape in public_keys(net).items()}
    load_public_state_dict(
        net, state | {"logits.weight": torch.zeros(8631, 512), "logits.bias": torch.zeros(8631)}
    )
    assert not net.last_linear.weight.any()


def test_a_mismatch_lists_keys_and_loads_nothing():
    net, state = public_mobile()
    before = net.linear.weight.clone()
    del state["conv_3.model.1.conv.conv.weight"], state["bn.bias"]
    state |= {"head.kernel": torch.zeros(1), "conv1.conv.weight": torch.zeros(32, 3, 3, 3)}
    with pytest.raises(ValueError, match="does not fit MobileFaceNet") as caught:
        load_public_state_dict(net, state)
    message = str(caught.value)
    assert "2 missing: conv_3.model.1.conv.conv.weight, bn.bias" in message
    assert "1 unexpected: head.kernel" in message
    assert "conv1.conv.weight: (32, 3, 3, 3) instead of (64, 3, 3, 3)" in message
    assert torch.equal(net.linear.weight, before)


# --- PReLU


@pytest.mark.parametrize("shape", [(3, 5, 4, 4), (3, 5)])
@pytest.mark.parametrize("slopes", [5, 1])
def test_prelu_equals_pytorchs(shape, slopes):
    torch.manual_seed(3)
    x = torch.randn(shape, requires_grad=True)
    with torch.no_grad():
        x.view(-1)[0] = 0  # the kink
    ours, theirs = PReLU(slopes), nn.PReLU(slopes)
    with torch.no_grad():
        ours.weight.copy_(torch.linspace(-0.2, 1.3, slopes))
        theirs.weight.copy_(ours.weight)
    weight = torch.randn(shape)
    grads = [torch.autograd.grad((m(x) * weight).sum(), (x, m.weight)) for m in (ours, theirs)]
    assert torch.equal(ours(x), theirs(x))
    for got, wanted in zip(*grads, strict=True):
        torch.testing.assert_close(got, wanted)
    ours.requires_grad_(False)
    (frozen,) = torch.autograd.grad((ours(x) * weight).sum(), x)
    assert torch.equal(frozen, grads[0][0])


# --- the encoder


def test_encoder_is_frozen_normalised_and_differentiable():
    encoder = small_encoder()
    assert not encoder.training and not any(p.requires_grad for p in encoder.parameters())
    x = images().requires_grad_()
    out = encoder(x)
    torch.testing.assert_close(out.norm(dim=1), torch.ones(2))
    (grad,) = torch.autograd.grad(out[:, 0].sum(), x)
    assert grad.isfinite().all() and grad.abs().sum() > 0


def test_preprocessing_is_resize_normalise_reorder():
    class Mean(nn.Module):
        def forward(self, x):
            assert x.shape[-2:] == (56, 56)
            return x.mean((2, 3))

    x = torch.stack([torch.full((112, 112), value) for value in (0.2, 0.4, 0.9)])[None]
    plain = FaceEncoder(Mean(), name="m", input_size=56)
    torch.testing.assert_close(plain.features(x), torch.tensor([[-0.6, -0.2, 0.8]]))
    bgr = FaceEncoder(Mean(), name="m", input_size=56, mean=(0.2, 0.2, 0.5), std=(1, 2, 4), channels="bgr")
    torch.testing.assert_close(bgr.features(x), torch.tensor([[0.1, 0.1, 0.0]]))


def test_halving_is_the_exact_block_mean_and_other_sizes_are_antialiased():
    x = images(1)
    assert torch.equal(resize(x, 112), x)
    blocks = x.reshape(1, 3, 56, 2, 56, 2).mean((3, 5))
    torch.testing.assert_close(resize(x, 56), blocks)
    # Without antialiasing, a shrunk checkerboard would keep its contrast.
    board = ((torch.arange(120)[:, None] + torch.arange(120)) % 2).float().expand(1, 3, 120, 120)
    assert (resize(board, 56) - 0.5).abs().max() < 0.2
    assert resize(images(1, 40), 56).shape == (1, 3, 56, 56)


def test_whitening_acts_before_normalisation_and_not_on_features():
    plain = small_encoder()
    doubled = small_encoder(whitening=nn.Linear(128, 8))
    assert torch.equal(plain.features(images()), doubled.features(images()))
    wanted = nn.functional.normalize(doubled.whitening(plain.features(images())))
    torch.testing.assert_close(doubled(images()), wanted)


def test_logits_need_a_classification_head():
    with pytest.raises(RuntimeError, match="'irse' has no classification head"):
        small_encoder().logits(images())
    head = nn.Linear(128, 7)
    encoder = small_encoder(classifier=head)
    torch.testing.assert_close(encoder.logits(images()), head(encoder.features(images())))


def test_convolutions_leave_out_squeeze_excitation_unless_asked():
    encoder = small_encoder("irse")
    plain, every = encoder.convolutions(), encoder.convolutions(squeeze_excite=True)
    assert len(every) == len(plain) + 2 * 3 and set(plain) < set(every)
    assert all(dict(encoder.named_modules())[name] is conv for name, conv in every)
    assert plain[0][0] == "backbone.input_layer.0"
    assert any("shortcut" in name for name, _ in plain)
    mobile = small_encoder("mobile").convolutions()
    assert any(conv.groups > 1 for _, conv in mobile)


def test_embed_takes_tensors_and_face_sets_in_batches():
    encoder = small_encoder()
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 112, 112), dtype=np.uint8)
    faces = FaceSet(
        images=pixels, identity=np.arange(5), attributes=pd.DataFrame(index=range(5)), name="noise"
    )
    whole = encoder.embed(faces)
    assert whole.shape == (5, 128) and whole.dtype == torch.float32 and not whole.requires_grad
    torch.testing.assert_close(encoder.embed(torch.from_numpy(pixels) / 255, batch_size=2), whole)


BAD = {
    "numpy": (np.zeros((1, 3, 8, 8), np.float32), TypeError, "FaceSet"),
    "bytes": (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), TypeError, "to_float"),
    "one image": (torch.zeros(3, 8, 8), ValueError, r"\(B, 3, H, W\)"),
    "grey": (torch.zeros(1, 1, 8, 8), ValueError, r"\(1, 1, 8, 8\)"),
    "empty": (torch.zeros(0, 3, 8, 8), ValueError, "empty"),
    "0..255": (torch.full((1, 3, 8, 8), 200.0), ValueError, "255"),
    "NaN": (torch.full((1, 3, 8, 8), torch.nan), ValueError, "NaN"),
}


@pytest.mark.parametrize("case", BAD)
def test_embed_refuses_bad_images(case):
    value, error, message = BAD[case]
    with pytest.raises(error, match=message):
        small_encoder().embed(value)


@pytest.mark.parametrize("case", ["numpy", "bytes", "one image", "grey", "empty"])
def test_forward_refuses_bad_shapes_and_types(case):
    value, error, _ = BAD[case]
    with pytest.raises(error):
        small_encoder()(value)


def test_bad_encoder_options():
    for options, message in (
        ({"channels": "gbr"}, "rgb"),
        ({"std": 0.0}, "std"),
        ({"mean": (0.1, 0.2)}, "three"),
    ):
        with pytest.raises(ValueError, match=message):
            small_encoder(**options)
    with pytest.raises(ValueError, match="batch_size"):
        small_encoder().embed(images(), batch_size=0)


def test_channel_shuffle_interleaves_the_groups():
    channels = torch.arange(6.0).view(1, 6, 1, 1)
    assert ChannelShuffle(2)(channels).flatten().tolist() == [0, 3, 1, 4, 2, 5]
    assert torch.equal(ChannelShuffle(3)(ChannelShuffle(2)(channels)), channels)


@pytest.mark.parametrize(("layout", "units"), [("ires", 3), ("ires12", 5), ("ires16", 7), ("ir20", 9), ("mobilenet", 4)])
def test_depth_in_the_name_counts_layers(layout, units):
    encoder = small_encoder(layout)
    assert len(encoder.residual_units()) == units
    if layout[-1].isdigit():  # two layers a unit, stem and head
        assert int(layout.lstrip("ires")) == 2 * units + 2
