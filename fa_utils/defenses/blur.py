"""Gaussian blur as a defense: perturbations live in high frequencies."""

import torch
from torch.nn import functional

from fa_utils.data.faceset import check_batch, to_float, to_uint8


def gaussian_blur(images: torch.Tensor, *, kernel_size: int = 5, sigma: float = 2.0) -> torch.Tensor:
    """Blur each channel with a Gaussian window; the border is mirrored without repeating its outermost pixel.

    Differentiable for floats. Zhong and Deng 2021, Table VI: 5 x 5, sigma 2.

    Parameters
    ----------
    images : Tensor, shape (B, 3, H, W)
        RGB, uint8 or float in [0, 1]; H and W above ``kernel_size // 2``.
    kernel_size : odd int, at least 1
        1 changes nothing.
    sigma : float, above 0
        In pixels.

    Returns
    -------
    Tensor
        Of the shape, dtype, range and device of ``images``; uint8 is rounded, floats are not.

    Raises
    ------
    TypeError, ValueError
        When ``images`` is no such batch or too small, or a setting is out of range.
    """
    if kernel_size != int(kernel_size) or kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be an odd whole number, at least 1, got {kernel_size!r}")
    if not 0 < sigma < float("inf"):
        raise ValueError(f"sigma must be a finite number of pixels above 0, got {sigma!r}")
    check_batch(images)
    radius = int(kernel_size) // 2
    if min(images.shape[2:]) <= radius:
        raise ValueError(f"pictures of {images.shape[3]} x {images.shape[2]} are too small to mirror "
                         f"{radius} pixels at the border for kernel_size {kernel_size}")
    if images.dtype == torch.uint8:
        return to_uint8(_blur(to_float(images), radius, sigma))
    return _blur(images, radius, sigma)


def _blur(images: torch.Tensor, radius: int, sigma: float) -> torch.Tensor:
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    window = torch.exp(-(offsets**2) / (2 * sigma**2))
    window = (window / window.sum()).to(images)
    padded = functional.pad(images, [radius] * 4, mode="reflect")
    # The window is a product of a column and a row; one channel a group keeps the colors apart.
    column = functional.conv2d(padded, window.reshape(1, 1, -1, 1).expand(3, 1, -1, 1), groups=3)
    blurred = functional.conv2d(column, window.reshape(1, 1, 1, -1).expand(3, 1, 1, -1), groups=3)
    return blurred.clamp(0, 1)  # weights that sum to 1 up to rounding can leave the range by a rounding
