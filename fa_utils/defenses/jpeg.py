"""JPEG compression as a defense: quantization wipes out small perturbations."""

import io

import numpy as np
import torch
from PIL import Image

from fa_utils.data.faceset import check_batch, to_float, to_uint8


def jpeg(images: torch.Tensor, *, quality: int = 20) -> torch.Tensor:
    """Encode each picture as JPEG and decode it again, with Pillow (libjpeg, chroma halved both ways).

    Not differentiable. Zhong and Deng 2021, Table VI: quality 20.

    Parameters
    ----------
    images : Tensor, shape (B, 3, H, W)
        RGB, uint8 or float in [0, 1]; floats are rounded to uint8 first, as a file would be.
    quality : int from 1 to 95
        Pillow's scale; above 95 it advises against.

    Returns
    -------
    Tensor
        Of the shape, dtype, range and device of ``images``.

    Raises
    ------
    TypeError, ValueError
        When ``images`` is no such batch, or ``quality`` is no such number.
    """
    if isinstance(quality, bool) or quality != int(quality) or not 1 <= quality <= 95:
        raise ValueError(f"quality must be a whole number from 1 to 95, got {quality!r}")
    check_batch(images)
    levels = images if images.dtype == torch.uint8 else to_uint8(images)
    pictures = levels.permute(0, 2, 3, 1).cpu().numpy()
    decoded = torch.from_numpy(np.stack([_recode(picture, int(quality)) for picture in pictures]))
    decoded = decoded.permute(0, 3, 1, 2).contiguous()
    return (decoded if images.dtype == torch.uint8 else to_float(decoded)).to(images)


def _recode(picture: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(file, format="JPEG", quality=quality)
    return np.asarray(Image.open(file))
