"""FaceEncoder: the one face-recognition network that attacks, defenses and metrics see."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from fa_utils.data.faceset import FaceSet, check_images

CHANNEL_ORDERS = ("rgb", "bgr")


class FaceEncoder(nn.Module):
    """RGB images in [0, 1] of any size in, L2-normalised embeddings out; differentiable in the images.

    Parameters
    ----------
    backbone : network that maps (B, 3, input_size, input_size) to (B, D).
    name : how tables and error messages call it.
    input_size : side in pixels of the square images that the backbone takes.
    mean, std : the backbone takes (images - mean) / std, on the [0, 1] scale; a number or one per RGB
        channel.
    channels : "rgb" or "bgr", the order that the backbone takes; images are always given as RGB.
    whitening : optional module from (B, D) to (B, D') applied before normalisation.
    classifier : optional module from the backbone's output to class logits, for label-level attacks.

    Parameters are frozen, the network is in evaluation mode and in channels_last layout after construction.

    Raises
    ------
    ValueError : input_size below 1, a std that is not positive, or an unknown channel order.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        name: str,
        input_size: int,
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.5,
        channels: str = "rgb",
        whitening: nn.Module | None = None,
        classifier: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if input_size < 1:
            raise ValueError(f"input_size must be at least 1 pixel, not {input_size}")
        if channels not in CHANNEL_ORDERS:
            raise ValueError(f"channels must be 'rgb' or 'bgr', not {channels!r}")
        self.backbone = backbone
        self.whitening = whitening
        self.classifier = classifier
        self.name = name
        self.input_size = input_size
        self.channels = channels
        self.register_buffer("mean", per_channel(mean, "mean"), persistent=False)
        self.register_buffer("std", per_channel(std, "std"), persistent=False)
        if not bool((self.std > 0).all()):
            raise ValueError(f"std must be positive, not {std}")
        self.requires_grad_(False)
        self.eval()
        self.to(memory_format=torch.channels_last)

    @property
    def device(self) -> torch.device:
        return self.mean.device

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, D) of unit length for images (B, 3, H, W) in [0, 1].

        Checks shape and dtype only: looking at values would wait for the device in every attack step.
        `embed` and `fa_utils.data.faceset.check_images` look at values too.

        Raises
        ------
        TypeError, ValueError : not a float tensor of shape (B, 3, H, W).
        """
        features = self.features(images)
        if self.whitening is not None:
            features = self.whitening(features)
        return F.normalize(features)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """The backbone's output (B, D), before whitening and normalisation."""
        check_layout(images)
        return self.backbone(self.prepare(images))

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Class logits (B, classes) of the training identities.

        Raises
        ------
        RuntimeError : the network has no classification head.
        """
        if self.classifier is None:
            raise RuntimeError(
                f"network {self.name!r} has no classification head, so label-level losses cannot use it; "
                "use a feature-level loss, or a network trained with softmax whose head was kept"
            )
        return self.classifier(self.features(images))

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        """Resize, normalise and order the channels as the backbone wants them."""
        images = resize(images.to(self.mean.dtype), self.input_size)
        images = (images - self.mean) / self.std
        if self.channels == "bgr":
            images = images.flip(1)
        return images.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def embed(
        self, images: torch.Tensor | FaceSet, *, batch_size: int = 64, progress: bool = False
    ) -> torch.Tensor:
        """Embeddings (N, D), float32 on the CPU, of a float tensor (N, 3, H, W) in [0, 1] or of a `FaceSet`.

        Raises
        ------
        TypeError, ValueError : not floats (N, 3, H, W) in [0, 1], NaN, no images; also a batch size below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        if not isinstance(images, (torch.Tensor, FaceSet)):
            given = type(images).__name__
            raise TypeError(f"images must be a float tensor (N, 3, H, W) or a FaceSet, not {given}")
        if isinstance(images, torch.Tensor):
            check_layout(images)
        starts = range(0, len(images), batch_size)
        embeddings = []
        was_training = self.training
        self.eval()
        try:
            for start in tqdm(starts, desc=f"embed {self.name}", disable=not progress):
                batch = take(images, start, min(start + batch_size, len(images)))
                check_images(batch)
                embeddings.append(self(batch.to(self.device)).float().cpu())
        finally:
            self.train(was_training)
        return torch.cat(embeddings)

    def convolutions(self, *, squeeze_excite: bool = False) -> list[tuple[str, nn.Conv2d]]:
        """All convolutions of the backbone by name, in the order of registration.

        Shortcut and depth-wise ones are included; the two 1x1 convolutions inside squeeze-and-excitation,
        which act on channel means and not on feature maps, only on demand.
        """
        return [
            (name, module)
            for name, module in self.backbone.named_modules(prefix="backbone")
            if isinstance(module, nn.Conv2d)
            and (squeeze_excite or not getattr(module, "squeeze_excite", False))
        ]

    def residual_units(self) -> list[tuple[str, nn.Module]]:
        """All residual units by name: modules with the branches ``.residual`` and ``.shortcut``."""
        return [
            (name, module)
            for name, module in self.named_modules()
            if isinstance(getattr(module, "residual", None), nn.Module)
            and isinstance(getattr(module, "shortcut", None), nn.Module)
        ]

    def extra_repr(self) -> str:
        return f"name={self.name!r}, input_size={self.input_size}, channels={self.channels!r}"


def per_channel(value: float | Sequence[float], name: str) -> torch.Tensor:
    """A (1, 3, 1, 1) tensor, or (1, 1, 1, 1) for a single number."""
    tensor = torch.as_tensor(value, dtype=torch.float32).reshape(1, -1, 1, 1)
    if tensor.shape[1] not in (1, 3):
        raise ValueError(f"{name} must be a number or three numbers (RGB), not {value}")
    return tensor


def resize(images: torch.Tensor, size: int) -> torch.Tensor:
    """To ``size`` x ``size``: the mean of whole blocks where that is exact, else antialiased bilinear."""
    height, width = images.shape[-2:]
    if height == width == size:
        return images
    if height == width and height % size == 0:
        return F.avg_pool2d(images, height // size)
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True)


def take(images: torch.Tensor | FaceSet, start: int, stop: int) -> torch.Tensor:
    """Rows of a tensor, or of a `FaceSet` as floats."""
    if isinstance(images, FaceSet):
        return images.batch(np.arange(start, stop))
    return images[start:stop]


def check_layout(images: torch.Tensor, name: str = "images") -> None:
    """Raise unless ``images`` is a non-empty float tensor of shape (B, 3, H, W); never waits for a device."""
    if not isinstance(images, torch.Tensor):
        raise TypeError(f"{name} must be a torch tensor, not {type(images).__name__}")
    if not images.is_floating_point():
        raise TypeError(
            f"{name} must be floats in [0, 1], not {images.dtype}; fa_utils.data.to_float converts bytes"
        )
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"{name} must have the shape (B, 3, H, W), RGB, not {tuple(images.shape)}")
    if images.numel() == 0:
        raise ValueError(f"{name} must not be empty, but the shape is {tuple(images.shape)}")
