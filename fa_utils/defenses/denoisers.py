"""Denoisers in front of a classifier: pixel guided and guided by what the classifier computes (chapter 1).

The network is UDnCNN (github.com/lychengr3x/Image-Denoising-with-Deep-CNNs, named by Rezgui et al. 2022, section 5.2). It sees
an adversarial picture x_adv and learns from the clean one x: ``|| f(x) - f(D(x_adv)) ||_1``, f being the identity ("pixel", their
PGD) or a layer of the attacked classifier ("last_conv" FGD, "fc2" FC2GD, "logits" LGD; Liao et al. 2018). Section 4.3 prints both
losses without D; the code of Liao et al. (github.com/lfz/Guided-Denoise) has it, and without it nothing could be learned.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn
from tqdm import tqdm

from fa_utils.data.faceset import to_float, to_uint8
from fa_utils.models.encoder import FaceEncoder
from fa_utils.models.recipes import nearest
from fa_utils.models.resnet import ResNet50
from fa_utils.models.train import bf16_pays
from fa_utils.models.vgg import VGG16
from fa_utils.models.weights import write_atomically
from fa_utils.paths import CACHE

__all__ = ["LOSSES", "DenoiserRecipe", "UDnCNN", "denoise", "guidance", "train_denoiser"]

LOSSES = ("pixel", "last_conv", "fc2", "logits")
DROPS = (0.6, 0.9)  # shares of training after which the learning rate falls tenfold (Guided-Denoise, GD_train/train.py)
PUBLISHED_GAIN = 1.25


class UDnCNN(nn.Module):
    """U-shaped DnCNN: RGB images in [0, 1] in, images of that size out, not clipped; inside they lie in [-1, 1].

    ``depth`` convolutions with batch normalization and ReLU between a first and a last convolution. Each of the first
    ``depth / 2 - 1`` ends in a 2 x 2 maximum; as many of the last start with the skip connection, ``(h + skip) / sqrt(2)``,
    and put their values back to where that maximum was. The last convolution gives what is added to the input.

    Parameters
    ----------
    width : channels inside; published: 64.
    depth : even number of convolutions with batch normalization; published: 6.
    bn_eps : added to the variances in batch normalization. The published code writes ``BatchNorm2d(C, C)``, whose second
        argument is this, so that it became C = 64; 1e-5 is what was meant.

    Convolutions start as He et al. (2015), the last one as torch does. The gains of batch normalization start at
    ``1.25 sqrt(max(bn_eps, 1))``: at 64 that is 10, as published (there ``1.25 sqrt(C)``, C being eps too), and features pass with
    1.25 / sqrt(1 + variance / 64). At 1e-5 the variance is divided out, so they keep the 1.25; a gain of 10 would add up to 10^6.

    Raises
    ------
    ValueError
        If a number is out of its range.
    """

    def __init__(self, *, width: int = 64, depth: int = 6, bn_eps: float = 64.0) -> None:
        super().__init__()
        _whole("width", width, 1)
        if _whole("depth", depth, 2) % 2:
            raise ValueError(f"depth must be even (as many convolutions up as down), not {depth}")
        _positive("bn_eps", bn_eps)
        self.levels = depth // 2 - 1
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.inner = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(depth))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width, eps=bn_eps) for _ in range(depth))
        self.last = nn.Conv2d(width, 3, 3, padding=1)
        for convolution in (self.first, *self.inner):
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        for norm in self.norms:
            nn.init.constant_(norm.weight, PUBLISHED_GAIN * math.sqrt(max(bn_eps, 1.0)))
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Denoised images (B, 3, H, W); H and W of ``2 ** (depth / 2 - 1)`` or more, odd ones too.

        Raises
        ------
        ValueError
            If the images are too small to be halved that often.
        """
        if min(images.shape[-2:]) < 2**self.levels:
            raise ValueError(f"images of {tuple(images.shape[-2:])} pixels cannot be halved {self.levels} times")
        h = F.relu(self.first(2 * images.contiguous(memory_format=torch.channels_last) - 1), inplace=True)
        skips = []
        blocks = list(zip(self.inner, self.norms))
        for index, (convolution, norm) in enumerate(blocks):
            up = index >= len(blocks) - self.levels
            if up:
                skip, places, size = skips.pop()
                h = (h + skip).mul_(math.sqrt(0.5))
            h = F.relu(norm(convolution(h)), inplace=True)
            if index < self.levels:
                size = h.shape[-2:]
                h, places = F.max_pool2d(h, 2, return_indices=True)
                skips.append((h, places, size))
            elif up:
                h = F.max_unpool2d(h, places, 2, output_size=size)
        return images + 0.5 * self.last(h)  # the residual belongs to [-1, 1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenoiserRecipe:
    """How a denoiser is trained.

    Parameters
    ----------
    loss : "pixel" (PGD), "last_conv" (FGD), "fc2" (FC2GD) or "logits" (LGD)
    width, bn_eps : of `UDnCNN`
    epochs, batch : int
        Passes through the pictures, and pictures a step.
    learning_rate : float
        Of Adam; a tenth of it after 60% and a hundredth after 90% of the steps. Published: 0.01 by Liao et al., 1e-3 with UDnCNN.
    seed : int
        Of the weights and of the order of pictures.

    Raises
    ------
    ValueError
        If the loss is unknown (the nearest is offered) or a number is out of its range.
    """

    loss: str
    width: int = 64
    bn_eps: float = 64.0
    epochs: int = 10
    batch: int = 16
    learning_rate: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"loss {self.loss!r} is unknown{nearest(self.loss, LOSSES)}")
        for name, least in (("width", 1), ("epochs", 1), ("batch", 1), ("seed", 0)):
            _whole(name, getattr(self, name), least)
        for name in ("bn_eps", "learning_rate"):
            _positive(name, getattr(self, name))


def train_denoiser(
    recipe: DenoiserRecipe,
    classifier: FaceEncoder | None,
    clean: np.ndarray,
    adversarial: np.ndarray,
    *,
    device: str | torch.device = "cpu",
    progress: bool = True,
    cache: bool = True,
) -> UDnCNN:
    """Train a denoiser, or take it from the cache if it was trained before on the same.

    As Liao et al. do: only adversarial pictures are denoised, and the classifier is frozen, in evaluation mode. Its input is
    not clipped, so that gradients never vanish; `denoise` clips.

    Parameters
    ----------
    recipe : DenoiserRecipe
    classifier : FaceEncoder
        The attacked network, on ``device``; left as it was. The pixel loss needs none (None).
    clean, adversarial : uint8 (N, 3, H, W)
        Row i of both is the same picture.
    device : str or torch.device
        Where to train. On a CPU, one seed gives one network, bit for bit.
    progress : bool
        Show a progress bar with the loss.
    cache : bool
        Look in the cache and write there: a file for each recipe, classifier, pictures and version of this module. A damaged
        one is made again.

    Returns
    -------
    UDnCNN
        In evaluation mode, on ``device``.

    Raises
    ------
    TypeError, ValueError
        If the pictures are no such arrays, or the classifier has no such layer or is on another device.
    RuntimeError
        If the loss needs logits and the classifier has none.
    FloatingPointError
        If the loss is not finite; names the step.
    """
    device = torch.device(device)
    _check_pictures(clean, adversarial)
    _check_classifier(recipe, classifier, device)
    path = CACHE / "denoisers" / f"{_key(recipe, classifier, clean, adversarial)[:32]}.safetensors"
    model = _cached(recipe, path) if cache else None
    if model is None:
        if cache:
            path.parent.mkdir(parents=True, exist_ok=True)  # fails before the training, not after it
        model = _new(recipe).to(device)
        with guidance(recipe.loss, classifier) as layer:
            _fit(recipe, model, layer, clean, adversarial, device, progress)
        if cache:
            state = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
            write_atomically(path, safetensors.torch.save(state))
    return model.to(device).eval().requires_grad_(False)


@contextlib.contextmanager
def guidance(loss: str, classifier: FaceEncoder | None) -> Iterator[Callable[[Tensor], Tensor]]:
    """What a loss compares, as a function of images; inside, the classifier is in evaluation mode.

    VGG16: "last_conv" is the output of its last convolution, "fc2" that of its second fully connected layer, before the rectifier.
    ResNet-50: "logits" is what enters the layer of logits (section 5.5.1), "last_conv" the last convolution, "fc2" does not exist.
    Other networks: "last_conv" is the convolution that was registered last.
    """
    if loss == "pixel":
        yield lambda images: images
        return
    training = classifier.training
    classifier.eval()
    found, hook = {}, None
    try:
        if loss == "last_conv":
            hook = _last_convolution(classifier).register_forward_hook(lambda _, __, out: found.update(maps=out))

            def maps(images: Tensor) -> Tensor:
                classifier.features(images)
                return found.pop("maps")

            yield maps
        elif loss == "fc2" or isinstance(classifier.backbone, ResNet50):
            yield classifier.features
        else:
            yield classifier.logits
    finally:
        if hook is not None:
            hook.remove()
        classifier.train(training)


@torch.no_grad()
def denoise(model: nn.Module, images: np.ndarray, *, batch_size: int = 64) -> np.ndarray:
    """Denoised pictures, uint8 (N, 3, H, W): clipped to the gray scale and rounded to the nearest level.

    Parameters
    ----------
    model : nn.Module
        As `train_denoiser` gives it; works on its own device, in evaluation mode.
    images : uint8 (N, 3, H, W)

    Raises
    ------
    TypeError, ValueError
        If ``images`` is no such array, the batch size is below 1, or a result is not finite.
    """
    _check_array(images, "images")
    _whole("batch_size", batch_size, 1)
    device, training = next(model.parameters()).device, model.training
    model.eval()
    cleaned = np.empty(images.shape, np.uint8)
    try:
        for start in range(0, len(images), batch_size):
            part = slice(start, start + batch_size)
            cleaned[part] = to_uint8(model(_batch(images, part, device)).clamp(0, 1)).cpu().numpy()
    finally:
        model.train(training)
    return cleaned


# ---------------------------------------------------------------- training


def _new(recipe: DenoiserRecipe) -> UDnCNN:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return UDnCNN(width=recipe.width, bn_eps=recipe.bn_eps)


def _fit(
    recipe: DenoiserRecipe,
    model: UDnCNN,
    layer: Callable[[Tensor], Tensor],
    clean: np.ndarray,
    adversarial: np.ndarray,
    device: torch.device,
    progress: bool,
) -> None:
    steps = math.ceil(len(clean) / recipe.batch) * recipe.epochs
    parameters = list(model.parameters())
    optimizer = torch.optim.Adam(parameters, lr=recipe.learning_rate)
    bf16 = bf16_pays(model, device)
    order = torch.Generator().manual_seed(recipe.seed)
    model.train()
    with tqdm(total=steps, desc=f"denoiser, {recipe.loss}", disable=not progress, leave=False) as bar:
        for step, index in enumerate(_batches(recipe, len(clean), order)):
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * 0.1 ** sum(step >= share * steps for share in DROPS)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                with torch.no_grad():
                    wanted = layer(_batch(clean, index, device))
                loss = _distance(wanted, layer(model(_batch(adversarial, index, device))))
            value = loss.item()
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"the {recipe.loss} loss of step {step + 1} of {steps} is {value}; lower the learning rate "
                    f"({recipe.learning_rate:g})"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward(inputs=parameters)  # whatever the classifier's parameters say, they receive nothing
            optimizer.step()
            bar.update()
            bar.set_postfix_str(f"loss {value:.4g}", refresh=False)


def _batches(recipe: DenoiserRecipe, count: int, generator: torch.Generator) -> Iterator[np.ndarray]:
    for _ in range(recipe.epochs):
        for index in torch.randperm(count, generator=generator).split(recipe.batch):
            yield index.numpy()


def _batch(images: np.ndarray, index: np.ndarray | slice, device: torch.device) -> Tensor:
    """Some pictures as floats in [0, 1]; they travel as bytes."""
    return to_float(torch.from_numpy(np.array(images[index])).to(device))


def _distance(wanted: Tensor, found: Tensor) -> Tensor:
    return (wanted.float() - found.float()).abs().mean()


def _last_convolution(classifier: FaceEncoder) -> nn.Conv2d:
    if isinstance(classifier.backbone, VGG16):
        return classifier.backbone.last_convolution
    return classifier.convolutions()[-1][1]


# ---------------------------------------------------------------- cache


def _key(recipe: DenoiserRecipe, classifier: FaceEncoder | None, clean: np.ndarray, adversarial: np.ndarray) -> str:
    """SHA-256 of all that a denoiser depends on."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(recipe), sort_keys=True).encode())
    digest.update(Path(__file__).read_bytes())
    for images in (clean, adversarial):
        digest.update(str(images.shape).encode())
        for start in range(0, len(images), 1024):
            digest.update(np.ascontiguousarray(images[start : start + 1024]))
    if recipe.loss != "pixel":
        digest.update(f"{classifier.input_size} {classifier.channels} {type(classifier.backbone).__name__}".encode())
        for name, tensor in (*classifier.state_dict().items(), ("mean", classifier.mean), ("std", classifier.std)):
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy())
    return digest.hexdigest()


def _cached(recipe: DenoiserRecipe, path: Path) -> UDnCNN | None:
    """A denoiser from the cache; None where there is none or it is damaged."""
    model = _new(recipe)
    try:
        model.load_state_dict(safetensors.torch.load(path.read_bytes()))
    except (FileNotFoundError, SafetensorError, RuntimeError):
        return None
    return model


# ---------------------------------------------------------------- checks


def _check_classifier(recipe: DenoiserRecipe, classifier: FaceEncoder | None, device: torch.device) -> None:
    if recipe.loss == "pixel":
        return
    if classifier is None:
        raise ValueError(f"the {recipe.loss} loss needs the attacked classifier, not None")
    if recipe.loss == "fc2" and not isinstance(classifier.backbone, VGG16):
        raise ValueError(
            f"network {classifier.name!r} ({type(classifier.backbone).__name__}) has no second fully connected layer; "
            f"use one of {', '.join(loss for loss in LOSSES if loss != 'fc2')}"
        )
    if classifier.device.type != device.type:
        raise ValueError(f"the classifier is on {classifier.device}, the denoiser on {device}; both must be on one device")


def _check_pictures(clean: np.ndarray, adversarial: np.ndarray) -> None:
    _check_array(clean, "clean")
    _check_array(adversarial, "adversarial")
    if clean.shape != adversarial.shape:
        raise ValueError(
            f"clean {clean.shape} and adversarial {adversarial.shape} differ in shape; row i of both must be the same picture"
        )


def _check_array(images: np.ndarray, name: str) -> None:
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        raise TypeError(f"{name} must be a numpy array of uint8 (0..255), not {getattr(images, 'dtype', type(images).__name__)}")
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise ValueError(f"{name} must have the shape (N, 3, H, W) with at least one picture, not {images.shape}")


def _whole(name: str, value: int, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of {least} or more, not {value!r}")
    return value


def _positive(name: str, value: float) -> None:
    if not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ValueError(f"{name} must be finite and above 0, not {value!r}")
