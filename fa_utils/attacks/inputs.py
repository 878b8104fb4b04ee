"""Copies of the picture that the network sees in its place."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def warp(images: Tensor, matrices: Tensor) -> Tensor:
    """Resample images (B, 3, H, W) under affine maps (B, 2, 3), bilinearly; what falls outside becomes 0.

    A map takes output positions to input positions, both in [-1, 1] across the picture.
    """
    # Drawn on the CPU, so that every device sees the same maps; the copy does not wait for the device.
    matrices = matrices.to(images.device, images.dtype, non_blocking=True)
    grid = _grid(matrices, *images.shape[2:])
    # grid_sample and its backward are about twice as fast on the default layout.
    return torch.nn.functional.grid_sample(images.contiguous(), grid, align_corners=False)


def _grid(matrices: Tensor, height: int, width: int) -> Tensor:
    """Input positions (B, H, W, 2), those beyond the outermost pixel centers moved far outside."""
    grid = matrices.new_empty(len(matrices), height, width, 2)
    rows, columns = (
        (2 * torch.arange(size, dtype=matrices.dtype, device=matrices.device) + 1) / size - 1
        for size in (height, width)
    )
    outside = False
    for axis, size in enumerate((width, height)):
        across, down, shift = (matrices[:, axis, i, None] for i in range(3))
        position = (down * rows + shift).unsqueeze(2) + (across * columns).unsqueeze(1)
        outside = (position.abs() > 1 - 1 / size + 1e-6) | outside
        grid[..., axis] = position
    return grid.masked_fill_(outside.unsqueeze(3), 3.0)


@dataclass(frozen=True)
class DiverseInput:
    """A random affine map, then a random rotation, of each image at each step.

    Parameters
    ----------
    p : float
        Probability, in [0, 1], that an image is moved; 0 is the plain attack, bit for bit.
    affine, rotation : tuple of float
        Ranges from which the standard deviations of the affine noise (added to the identity) and of the
        angle in radians are drawn, anew for each image and step.

    Notes
    -----
    Translation, rotation and scaling as in DI-M-FIM of Zhong and Deng (2021), section III-C, which leaves
    the ranges open; these are TIP-IM's (sheet 3-dfanet, item 3k). The two maps are composed and the picture
    resampled once, where TIP-IM does so twice. Only the source is transformed.
    """

    p: float = 1.0
    affine: tuple[float, float] = (0.01, 0.1)
    rotation: tuple[float, float] = (0.01, 0.1)

    def __post_init__(self) -> None:
        _check_probability(self.p)
        for name in ("affine", "rotation"):
            _check_range(name, getattr(self, name), top=math.inf)

    def bind(self, scope):
        return _Transform(self, scope, uniforms=3, normals=7)

    def matrices(self, uniform: Tensor, normal: Tensor) -> Tensor:
        """Affine maps (B, 2, 3) from uniform draws (B, 2) and normal draws (B, 7)."""
        scale, spread = (
            _between(range_, uniform[:, i]) for i, range_ in enumerate((self.affine, self.rotation))
        )
        noise = scale.view(-1, 1, 1) * normal[:, :6].reshape(-1, 2, 3)
        angle = spread * normal[:, 6]
        cos, sin = angle.cos(), angle.sin()
        rotation = torch.stack([torch.stack([cos, sin], 1), torch.stack([-sin, cos], 1)], 1)
        affine = torch.eye(2, 3, dtype=noise.dtype) + noise
        return torch.cat([affine[:, :, :2] @ rotation, affine[:, :, 2:]], dim=2)


@dataclass(frozen=True)
class DiverseResize:
    """Shrink each image and set it at a random place on black, at each step.

    Parameters
    ----------
    p : float
        Probability, in [0, 1], that an image is moved; 0 is the plain attack, bit for bit.
    scale : tuple of float
        Range of the shrinking factor, in (0, 1].

    Notes
    -----
    The diverse input of the Face-Robustness-Benchmark (sheet 3-dfanet, item 3k), resampled at sub-pixel
    sizes and places so that a batch is transformed at once.
    """

    p: float = 1.0
    scale: tuple[float, float] = (0.9, 1.0)

    def __post_init__(self) -> None:
        _check_probability(self.p)
        _check_range("scale", self.scale, top=1.0)

    def bind(self, scope):
        return _Transform(self, scope, uniforms=4, normals=0)

    def matrices(self, uniform: Tensor, normal: Tensor) -> Tensor:
        """Affine maps (B, 2, 3) from uniform draws (B, 3)."""
        scale = _between(self.scale, uniform[:, 0])
        center = (2 * uniform[:, 1:] - 1) * (1 - scale).unsqueeze(1)
        zoom = torch.eye(2, dtype=scale.dtype) / scale.view(-1, 1, 1)
        return torch.cat([zoom, -(center / scale.unsqueeze(1)).unsqueeze(2)], dim=2)


@dataclass(frozen=True)
class TranslateScale:
    """Scale each image about its center and shift it, at each step; what comes in from outside is black.

    Parameters
    ----------
    p : float
        Probability, in [0, 1], that an image is moved; 0 is the plain attack, bit for bit.
    shift : float
        Largest shift to either side, in shares of the picture's side, in [0, 1).
    scale : tuple of float
        Range of the factor; above 1 enlarges.

    Notes
    -----
    The transformation T of the corrasion attack, Zhou H. et al. (2023), eq. 9: "translate and scale" with p = 0.7.
    Their ranges are not given; these defaults are ours.
    """

    p: float = 0.7
    shift: float = 0.1
    scale: tuple[float, float] = (0.9, 1.1)

    def __post_init__(self) -> None:
        _check_probability(self.p)
        _check_range("scale", self.scale, top=math.inf)
        if not 0 <= self.shift < 1:
            raise ValueError(f"shift must lie in [0, 1), in shares of the side, got {self.shift!r}")

    def bind(self, scope):
        return _Transform(self, scope, uniforms=4, normals=0)

    def matrices(self, uniform: Tensor, normal: Tensor) -> Tensor:
        """Affine maps (B, 2, 3) from uniform draws (B, 3)."""
        scale = _between(self.scale, uniform[:, 0])
        center = 2 * self.shift * (2 * uniform[:, 1:] - 1)  # the side spans [-1, 1]
        zoom = torch.eye(2, dtype=scale.dtype) / scale.view(-1, 1, 1)
        return torch.cat([zoom, -(center / scale.unsqueeze(1)).unsqueeze(2)], dim=2)


@dataclass(frozen=True)
class DiversePad:
    """Enlarge each image a little by nearest neighbors, set it at a random place on a black canvas, shrink the canvas back.

    Parameters
    ----------
    p : float
        Probability, in [0, 1], that an image is moved; 0 is the plain attack, bit for bit.
    growth : float
        Side of the canvas over the side of the image, above 1; the image takes a whole number of pixels in between.

    Notes
    -----
    The official DI of Xie et al. (2019), made for ImageNet (sheet 4-gradient-eroding, section 2). `DiverseResize` is
    the form that face benchmarks use.
    """

    p: float = 0.5
    growth: float = 1.1

    def __post_init__(self) -> None:
        _check_probability(self.p)
        if not 1 < self.growth <= 2:
            raise ValueError(f"growth must lie in (1, 2], got {self.growth!r}")

    def bind(self, scope):
        return _Pad(self, scope)


class _Pad:
    def __init__(self, part: DiversePad, scope):
        self.part = part
        self.generators = scope.generators() if part.p > 0 else []

    def __call__(self, images: Tensor, step: int) -> list[tuple[Tensor, float]]:
        if self.part.p == 0:
            return [(images, 1.0)]
        uniform = torch.stack([torch.rand(4, generator=g, dtype=torch.float64) for g in self.generators])
        height, width = images.shape[2:]
        rows, above = self._places(height, uniform[:, 1], uniform[:, 2])
        columns, left = self._places(width, uniform[:, 1], uniform[:, 3])
        rows, columns, outside = (part.to(images.device) for part in (rows, columns, above[:, :, None] | left[:, None, :]))
        which = torch.arange(len(images), device=images.device).view(-1, 1, 1)
        canvas = images.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        canvas = canvas.masked_fill(outside.unsqueeze(1), 0.0)
        moved = torch.nn.functional.interpolate(canvas, (height, width), mode="bilinear", antialias=True)
        chosen = (uniform[:, 0] < self.part.p).to(images.device)
        return [(torch.where(chosen.view(-1, 1, 1, 1), moved, images), 1.0)]

    def _places(self, side: int, size_draw: Tensor, place_draw: Tensor) -> tuple[Tensor, Tensor]:
        """For each position on the canvas (B, canvas): the pixel that it shows, and whether it is outside."""
        canvas = max(side + 1, int(side * self.part.growth))
        size = side + (size_draw * (canvas - side)).long()  # whole pixels in [side, canvas)
        start = (place_draw * (canvas - size + 1)).long()
        place = torch.arange(canvas) - start.unsqueeze(1)
        outside = (place < 0) | (place >= size.unsqueeze(1))
        return (place * side // size.unsqueeze(1)).clamp_(0, side - 1), outside


class _Transform:
    """A warp with fresh draws per image and step. How many are drawn does not depend on p or the ranges."""

    def __init__(self, part, scope, *, uniforms: int, normals: int):
        self.part, self.uniforms, self.normals = part, uniforms, normals
        self.generators = scope.generators() if part.p > 0 else []

    def __call__(self, images: Tensor, step: int) -> list[tuple[Tensor, float]]:
        if self.part.p == 0:
            return [(images, 1.0)]
        draw = {"dtype": torch.float64}
        uniform = torch.stack([torch.rand(self.uniforms, generator=g, **draw) for g in self.generators])
        normal = torch.stack([torch.randn(self.normals, generator=g, **draw) for g in self.generators])
        moved = warp(images, self.part.matrices(uniform[:, 1:], normal))
        if self.part.p < 1:
            chosen = (uniform[:, 0] < self.part.p).to(images.device, non_blocking=True)
            moved = torch.where(chosen.view(-1, 1, 1, 1), moved, images)
        return [(moved, 1.0)]


def _between(range_: tuple[float, float], uniform: Tensor) -> Tensor:
    return range_[0] + (range_[1] - range_[0]) * uniform


def _check_probability(p: float) -> None:
    if not 0 <= p <= 1:
        raise ValueError(f"p must lie in [0, 1], got {p!r}")


def _check_range(name: str, value: tuple[float, float], *, top: float) -> None:
    ok = len(value) == 2 and all(math.isfinite(v) for v in value) and 0 < value[0] <= value[1] <= top
    if not ok:
        upper = "" if math.isinf(top) else f" <= {top:g}"
        raise ValueError(f"{name} must be a pair (low, high) with 0 < low <= high{upper}, got {value!r}")
