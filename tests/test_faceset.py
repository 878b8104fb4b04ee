"""FaceSet, Pairs and the doors between uint8 and float: what goes in comes out, and bad input is named."""

import numpy as np
import pandas as pd
import pytest
import torch

from fa_utils.data.faceset import FaceSet, Pairs, check_images, to_float, to_uint8


@pytest.fixture
def faces():
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 6), dtype=np.uint8)
    return FaceSet(images, [0, 0, 1, 1, 2], pd.DataFrame({"age": [1, 2, 3, 4, 5]}), "five")


@pytest.fixture
def pairs():
    return Pairs([0, 2, 0], [1, 3, 4], np.array([True, True, False]), [0, 1, 1])


def test_batch_is_float_rgb_in_unit_range(faces):
    batch = faces.batch([3, 1])
    assert batch.dtype == torch.float32 and batch.shape == (2, 3, 4, 6)
    np.testing.assert_array_equal(batch.numpy(), faces.images[[3, 1]].astype(np.float32) / np.float32(255))


@pytest.mark.parametrize("index", [slice(1, 3), [1, 2], np.array([False, True, True, False, False]),
                                   torch.tensor([1, 2])])
def test_every_kind_of_index_selects_the_same(faces, index):
    part = faces.subset(index)
    np.testing.assert_array_equal(part.images, faces.images[1:3])
    np.testing.assert_array_equal(part.identity, [0, 1])
    assert part.attributes["age"].tolist() == [2, 3] and part.attributes.index.tolist() == [0, 1]
    assert torch.equal(faces.batch(index), part.batch(slice(None)))


def test_one_integer_is_a_batch_of_one(faces):
    assert faces.batch(2).shape == (1, 3, 4, 6)


def test_read_only_memory_map_needs_no_warning(faces, tmp_path, recwarn):
    np.save(tmp_path / "images.npy", faces.images)
    mapped = FaceSet(np.load(tmp_path / "images.npy", mmap_mode="r"), faces.identity)
    assert torch.equal(mapped.batch([4, 0]), faces.batch([4, 0]))
    assert torch.equal(to_float(mapped.images), faces.batch(slice(None)))
    assert not recwarn.list


@pytest.mark.parametrize("index", [5, -1, [0, 7], np.array([True, False])])
def test_index_out_of_range_is_named(faces, index):
    with pytest.raises(IndexError, match="five"):
        faces.batch(index)


@pytest.mark.parametrize("images, identity, error, message", [
    (np.zeros((2, 3, 4, 4)), [0, 1], TypeError, "uint8"),
    (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), [0, 1], TypeError, "numpy"),
    (np.zeros((2, 4, 4, 3), np.uint8), [0, 1], ValueError, r"\(N, 3, H, W\)"),
    (np.zeros((0, 3, 4, 4), np.uint8), [], ValueError, "at least one image"),
    (np.zeros((2, 3, 4, 4), np.uint8), [0, 1, 2], ValueError, "3 entries for 2 images"),
    (np.zeros((2, 3, 4, 4), np.uint8), [0.0, 1.0], TypeError, "integer"),
])
def test_bad_face_sets(images, identity, error, message):
    with pytest.raises(error, match=message):
        FaceSet(images, identity)


def test_attributes_have_a_row_an_image(faces):
    with pytest.raises(ValueError, match="attributes of 'five' has 1 entries"):
        FaceSet(faces.images, faces.identity, pd.DataFrame({"age": [1]}), "five")
    assert FaceSet(faces.images, faces.identity).attributes.shape == (5, 0)


def test_pairs_split_by_kind(pairs):
    assert pairs.positives().a.tolist() == [0, 2] and pairs.positives().fold.tolist() == [0, 1]
    assert pairs.negatives().b.tolist() == [4]
    assert len(pairs.take([2, 0])) == 2 and pairs.take([2, 0]).same.tolist() == [False, True]
    with pytest.raises(ValueError, match="impostor"):
        pairs.positives().negatives()


@pytest.mark.parametrize("change, error, message", [
    ({"a": [0, 1]}, ValueError, "differ in length"),
    ({"a": [0, 1, -1]}, ValueError, "pairs.a holds -1"),
    ({"fold": [0, 1, -1]}, ValueError, "pairs.fold holds -1"),
    ({"same": [1, 1, 0]}, TypeError, "boolean"),
    ({"b": [0.5, 1, 2]}, TypeError, "pairs.b"),
    ({"a": [], "b": [], "same": np.zeros(0, bool), "fold": []}, ValueError, "empty"),
])
def test_bad_pairs(change, error, message):
    good = {"a": [0, 2, 0], "b": [1, 3, 4], "same": np.array([True, True, False]), "fold": [0, 1, 1]}
    with pytest.raises(error, match=message):
        Pairs(**(good | change))


def test_pairs_are_checked_against_their_faces(faces, pairs):
    assert pairs.check(faces) is pairs
    with pytest.raises(ValueError, match="image 5, but 'five' has 5"):
        Pairs([0], [5], np.array([False])).check(faces)
    with pytest.raises(ValueError, match="says same=True"):
        Pairs([0], [4], np.array([True])).check(faces)


def test_round_trip_keeps_all_256_levels():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_float(levels)), levels)
    assert torch.equal(to_uint8(to_float(levels).double()), levels)


def test_to_uint8_rounds_to_the_nearest_level():
    assert to_uint8(torch.tensor([0.49, 0.51, 254.4, 254.6]) / 255).tolist() == [0, 1, 254, 255]


@pytest.mark.parametrize("images, error, message", [
    (torch.tensor([0.0, 200.0]), ValueError, "divide by 255"),
    (torch.tensor([-0.1, 0.5]), ValueError, "-0.1"),
    (torch.tensor([0.5, float("nan")]), ValueError, "NaN"),
    (torch.tensor([0.5, float("inf")]), ValueError, "infinity"),
    (torch.tensor([1, 2]), TypeError, "int64"),
    (np.zeros(3), TypeError, "torch tensor"),
])
def test_to_uint8_refuses_what_is_no_picture(images, error, message):
    with pytest.raises(error, match=message):
        to_uint8(images)


def test_to_float_takes_uint8_only():
    with pytest.raises(TypeError, match="uint8"):
        to_float(np.zeros(3))


@pytest.mark.parametrize("shape", [(3, 4, 4), (0, 3, 4, 4), (2, 1, 4, 4), (2, 4, 4, 3)])
def test_check_images_names_the_shape(shape):
    with pytest.raises(ValueError, match="probe must have the shape"):
        check_images(torch.zeros(shape), name="probe")
