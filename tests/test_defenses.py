"""Filters as defenses: the right filter, the same type and range out as in, bad input named."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import correlate1d

from fa_utils.data.faceset import to_float, to_uint8
from fa_utils.defenses import gaussian_blur, jpeg


@pytest.fixture
def pictures():
    """Smooth pictures (JPEG keeps them roughly) with a little noise, uint8 (2, 3, 24, 32)."""
    y, x = torch.meshgrid(torch.linspace(0, 3, 24), torch.linspace(0, 3, 32), indexing="ij")
    smooth = torch.stack([torch.sin(x + k) * torch.cos(y - k) for k in range(6)]).reshape(2, 3, 24, 32)
    noise = torch.randn(smooth.shape, generator=torch.Generator().manual_seed(0))
    return to_uint8((0.5 + 0.4 * smooth + 0.02 * noise).clamp(0, 1))


def test_jpeg_is_what_a_file_does(pictures):
    for picture, result in zip(pictures, jpeg(pictures, quality=20), strict=True):
        file = io.BytesIO()
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=20)
        np.testing.assert_array_equal(np.asarray(Image.open(file)).transpose(2, 0, 1), result.numpy())


def test_jpeg_loses_more_at_a_lower_quality(pictures):
    change = [(jpeg(pictures, quality=q).int() - pictures.int()).abs().float().mean() for q in (95, 20, 2)]
    assert 0 < change[0] < change[1] < change[2]


@pytest.mark.parametrize("kernel_size, sigma", [(5, 2.0), (3, 0.7), (9, 5.0)])
def test_blur_agrees_with_scipy(pictures, kernel_size, sigma):
    offsets = np.arange(kernel_size) - kernel_size // 2
    window = np.exp(-offsets**2 / (2 * sigma**2))
    images = to_float(pictures).double()
    expected = images.numpy()
    for axis in (2, 3):
        expected = correlate1d(expected, window / window.sum(), axis=axis, mode="mirror")
    result = gaussian_blur(images, kernel_size=kernel_size, sigma=sigma)
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-12)


def test_blur_of_uint8_is_the_rounded_blur_of_floats(pictures):
    assert torch.equal(gaussian_blur(pictures), to_uint8(gaussian_blur(to_float(pictures))))


def test_blur_of_one_pixel_changes_nothing_and_a_flat_picture_stays_in_range(pictures):
    assert torch.equal(gaussian_blur(to_float(pictures), kernel_size=1), to_float(pictures))
    white = gaussian_blur(torch.ones(1, 3, 8, 8), kernel_size=7)
    assert white.max() <= 1 and torch.allclose(white, torch.ones(1))


def test_blur_is_differentiable(pictures):
    images = to_float(pictures).requires_grad_()
    gaussian_blur(images)[:, :, 10, 10].sum().backward()
    assert (images.grad[:, :, 8:13, 8:13] > 0).all() and images.grad.abs().sum() == pytest.approx(6, rel=1e-5)


@pytest.mark.parametrize("defend", [jpeg, gaussian_blur])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_type_shape_range_and_input_survive(pictures, defend, dtype):
    images = pictures if dtype == torch.uint8 else to_float(pictures).to(dtype)
    before = images.clone()
    result = defend(images)
    assert result.dtype == dtype and result.shape == images.shape and result.is_contiguous()
    assert torch.equal(images, before)
    assert not torch.equal(result, images)
    assert result.max() <= (255 if dtype == torch.uint8 else 1)
    assert torch.equal(result[:1], defend(images[:1]))  # each picture on its own


@pytest.mark.parametrize("defend", [jpeg, gaussian_blur])
@pytest.mark.parametrize("images, error, message", [
    (torch.full((1, 3, 8, 8), 200.0), ValueError, "divide by 255"),
    (torch.full((1, 3, 8, 8), float("nan")), ValueError, "NaN"),
    (torch.zeros(3, 8, 8), ValueError, r"\(B, 3, H, W\)"),
    (torch.zeros(0, 3, 8, 8), ValueError, "at least one image"),
    (torch.zeros(1, 1, 8, 8, dtype=torch.uint8), ValueError, r"\(B, 3, H, W\)"),
    (torch.zeros(1, 3, 8, 8, dtype=torch.int64), TypeError, "int64"),
    (np.zeros((1, 3, 8, 8)), TypeError, "torch tensor"),
])
def test_bad_pictures_are_named(defend, images, error, message):
    with pytest.raises(error, match=message):
        defend(images)


@pytest.mark.parametrize("quality", [0, 96, 20.5, -1, True])
def test_bad_quality_is_named(pictures, quality):
    with pytest.raises(ValueError, match="quality must be a whole number from 1 to 95"):
        jpeg(pictures, quality=quality)


@pytest.mark.parametrize("settings, message", [
    ({"kernel_size": 4}, "odd"), ({"kernel_size": 0}, "odd"), ({"kernel_size": 2.5}, "odd"),
    ({"sigma": 0}, "sigma"), ({"sigma": float("nan")}, "sigma"), ({"sigma": float("inf")}, "sigma"),
    ({"kernel_size": 49}, "32 x 24 are too small"),
])
def test_bad_blur_is_named(pictures, settings, message):
    with pytest.raises(ValueError, match=message):
        gaussian_blur(pictures, **settings)
