"""Build a network body by name, and load a public checkpoint into it."""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from fa_utils.models.inception_resnet import InceptionResnetV1, SmallInceptionResnet
from fa_utils.models.iresnet import ARCFACE_UNITS, EVOLVE_UNITS, IResNet, IRNet, fixed_slope
from fa_utils.models.mobilefacenet import MobileFaceNet, MobileWidths, NarrowMobileFaceNet
from fa_utils.models.mobilenet import MobileNetV2
from fa_utils.models.resnet import FaceResNet50, ResNet50
from fa_utils.models.shufflenet import ShuffleNet
from fa_utils.models.vgg import VGG16

Builder = Callable[[int], nn.Module]


# --- small: 56 x 56 pixels, 13 to 22 million multiply-adds; downsampled early, to train on one CPU core


def small_ires(embedding: int, units: Sequence[int] = (1, 1, 1)) -> IResNet:
    return IResNet(
        units,
        widths=(32, 80, 144),
        stem_width=16,
        stem_stride=2,
        activation=fixed_slope,
        input_size=56,
        embedding=embedding,
        dropout=0.1,
    )


def small_ir(embedding: int, units: Sequence[int] = (1, 1, 1), reduction: int | None = None) -> IRNet:
    return IRNet(
        units,
        widths=(32, 80, 128),
        stem_width=16,
        stem_stride=2,
        activation=fixed_slope,
        reduction=reduction,
        input_size=56,
        embedding=embedding,
        dropout=0.1,
    )


def small_mobile(embedding: int) -> MobileFaceNet:
    widths = MobileWidths(
        stem=16,
        stages=(56, 96, 144),
        repeats=(1, 3, 1),
        down_expand=(32, 112, 192),
        repeat_expand=(112, 192, 256),
        last=288,
    )
    return MobileFaceNet(
        widths=widths, depthwise_stem=False, activation=fixed_slope, input_size=56, embedding=embedding
    )


def small_resnet50(embedding: int) -> FaceResNet50:
    return FaceResNet50(
        units=(1, 2, 3, 1),
        widths=(24, 40, 72, 96),
        stem_width=24,
        stem_kernel=3,
        dropout=0.1,
        input_size=56,
        embedding=embedding,
    )


def small_mobilenet(embedding: int) -> MobileNetV2:
    return MobileNetV2(
        stages=((40, 2, 2), (72, 3, 2), (120, 2, 2)),
        stem_width=20,
        expansion=3,
        neck=128,
        dropout=0.1,
        input_size=56,
        embedding=embedding,
    )


def small_shufflenet(embedding: int) -> ShuffleNet:
    return ShuffleNet(
        widths=(80, 160, 256), units=(2, 3, 2), stem_width=24, dropout=0.1, input_size=56, embedding=embedding
    )


def small_vgg16(embedding: int) -> VGG16:
    return VGG16(
        widths=(12, 24, 48, 96, 96), hidden=256, last_pool=False, dropout=0.2, input_size=56, embedding=embedding
    )


# The number after a layout counts its layers with weights along the residual branches, stem and head included.
SMALL: dict[str, Builder] = {
    "ires": small_ires,
    "ires12": lambda embedding: small_ires(embedding, (1, 3, 1)),
    "ires16": lambda embedding: small_ires(embedding, (2, 3, 2)),
    "irse": lambda embedding: small_ir(embedding, reduction=8),
    "irse12": lambda embedding: small_ir(embedding, (1, 3, 1), reduction=8),
    "ir12": lambda embedding: small_ir(embedding, (1, 3, 1)),
    "ir20": lambda embedding: small_ir(embedding, (2, 5, 2)),
    "mobile": small_mobile,
    "mobilenet": small_mobilenet,
    "shuffle": small_shufflenet,
    "incres": lambda embedding: SmallInceptionResnet(embedding=embedding),
    "resnet50": small_resnet50,
    "vgg16": small_vgg16,
}


# --- full size, as the public checkpoints


def _arcface(depth: int) -> Builder:
    return lambda embedding: IResNet(ARCFACE_UNITS[depth], embedding=embedding)


def _evolve(depth: int, reduction: int | None) -> Builder:
    return lambda embedding: IRNet(EVOLVE_UNITS[depth], reduction=reduction, embedding=embedding)


FULL: dict[str, Builder] = {
    "ires": _arcface(50),
    **{f"ires{depth}": _arcface(depth) for depth in ARCFACE_UNITS},
    "irse": _evolve(50, 16),
    **{f"ir{depth}": _evolve(depth, None) for depth in EVOLVE_UNITS},
    **{f"irse{depth}": _evolve(depth, 16) for depth in EVOLVE_UNITS},
    "mobile": lambda embedding: MobileFaceNet(embedding=embedding),
    "mobile96": lambda embedding: NarrowMobileFaceNet(embedding=embedding),
    "incres": lambda embedding: InceptionResnetV1(embedding=embedding),
    "resnet50": lambda embedding: ResNet50(embedding=embedding),
    "vgg16": lambda embedding: VGG16(embedding=embedding),
}
WIDTHS = {"small": SMALL, "full": FULL}


def nearest(name: str, known: Mapping[str, object]) -> str:
    """`` Did you mean 'x'?`` for an error message, or nothing when no known name is near."""
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def build_backbone(layout: str, width: str = "small", embedding: int | None = None) -> nn.Module:
    """A network body with fresh weights: images in, embedding out (not normalised).

    Parameters
    ----------
    layout : "ires" (arcface_torch), "irse" (TreB1eN, squeeze-and-excitation), "mobile" (MobileFaceNet),
        "incres" (Inception-ResNet-V1), "resnet50" or "vgg16" (batch-normalised); small only: "ires12", "ires16", "irse12", "ir12", "ir20",
        "mobilenet" (MobileNetV2), "shuffle" (ShuffleNet); at full width also with a depth: "ires18", "ires34",
        "ires50", "ires100", "ir50", "ir100", "ir152", "irse50", "irse100", "irse152" ("ires" is "ires50",
        "irse" is "irse50"), and "mobile96" (Xiaoccer's MobileFaceNet, which sees 112 x 96 of the picture).
    width : "small" (input 56 x 56) or "full" (the public checkpoints' sizes).
    embedding : length of the embedding; 128 for small and 512 for full networks unless given (VGG-Face has 4096).

    Returns
    -------
    nn.Module with ``input_size``, the side in pixels of its square input.

    Raises
    ------
    ValueError : unknown layout or width (the nearest known name is offered), or an embedding below 1.
    """
    if width not in WIDTHS:
        raise ValueError(f"width must be 'small' or 'full', not {width!r}.{nearest(width, WIDTHS)}")
    builders = WIDTHS[width]
    if layout not in builders:
        known = ", ".join(builders)
        raise ValueError(
            f"no {width} network has the layout {layout!r}; known: {known}.{nearest(layout, builders)}"
        )
    if embedding is None:
        embedding = 128 if width == "small" else 512
    if not isinstance(embedding, int) or embedding < 1:
        raise ValueError(f"embedding must be a whole number of at least 1, not {embedding!r}")
    return builders[layout](embedding)


# --- public checkpoints


SHOWN = 5  # keys of each kind that an error lists


def own_name(net: nn.Module, public: str) -> str:
    """Translate a public key into this package's, where residual units have two named branches."""
    for prefix, own in getattr(net, "public_prefixes", {}).items():
        if public.startswith(prefix):
            return own + public.removeprefix(prefix)
    for pattern, replacement in net.public_names:
        renamed, count = re.subn(pattern, replacement, public)
        if count:
            return renamed
    return public


def load_public_state_dict(net: nn.Module, state_dict: Mapping[str, torch.Tensor]) -> None:
    """Load a state dict with the key names of the public implementation of this layout, strictly.

    The names are those of arcface_torch (`IResNet`), TreB1eN and face.evoLVe (`IRNet`, `MobileFaceNet`),
    facenet-pytorch (`InceptionResnetV1`, whose ``logits`` are ignored), Xiaoccer (`NarrowMobileFaceNet`) and
    torchvision (`ResNet50`). Nothing is loaded unless everything fits. Batch counters (``num_batches_tracked``) may
    be missing.

    Raises
    ------
    ValueError : keys are missing or unexpected, or shapes differ; counted, and the first of each kind listed
        under public names.
    """
    ignored = getattr(net, "public_ignored", ())
    used = {key: value for key, value in state_dict.items() if not key.startswith(ignored)}
    given = {own_name(net, key): (key, value) for key, value in used.items()}
    wanted = net.state_dict()
    needed = [key for key in public_keys(net) if not key.endswith("num_batches_tracked")]
    missing = [key for key in needed if key not in used]
    unexpected = [key for name, (key, _) in given.items() if name not in wanted]
    shapes = [
        f"{key}: {tuple(value.shape)} instead of {tuple(wanted[name].shape)}"
        for name, (key, value) in given.items()
        if name in wanted and value.shape != wanted[name].shape
    ]
    problems = [("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)]
    if any(keys for _, keys in problems):
        lines = [f"{len(keys)} {what}: {', '.join(keys[:SHOWN])}{', ...' * (len(keys) > SHOWN)}" for what, keys in problems if keys]
        raise ValueError(f"the state dict does not fit {type(net).__name__}; keys " + "; ".join(lines))
    net.load_state_dict({name: value for name, (_, value) in given.items()}, strict=False)


def public_keys(net: nn.Module) -> dict[str, torch.Size]:
    """Key names of the public implementation and their shapes, in this network's order."""
    return {public_name(net, name): tensor.shape for name, tensor in net.state_dict().items()}


def public_name(net: nn.Module, own: str) -> str:
    """The inverse of `own_name`: drop or rename the branch so that the key maps back to ``own``."""
    for prefix, mine in getattr(net, "public_prefixes", {}).items():
        if own.startswith(mine):
            return prefix + own.removeprefix(mine)
    replacements = {".residual.": (".", ".res_layer."), ".shortcut.": (".downsample.", ".shortcut_layer.")}
    for branch, candidates in replacements.items():
        for candidate in candidates:
            public = own.replace(branch, candidate, 1)
            if public != own and own_name(net, public) == own:
                return public
    return own
