"""Photographs without labels: which they are, and how they are cut to the network's input."""

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from triptych.choices import Photograph
from triptych.data.errors import DataError
from triptych.data.photographs import photograph_names, read_photographs


@pytest.fixture
def folder(tmp_path):
    """A wide and a tall photograph, white in the middle, and a file that is none."""
    for name, (height, width) in {"b_wide.png": (20, 40), "a_tall.jpg": (60, 30)}.items():
        pixels = np.zeros((height, width, 3), dtype=np.uint8)
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        pixels[top : top + side, left : left + side] = 255
        Image.fromarray(pixels).save(tmp_path / name, quality=100)
    (tmp_path / "notes.txt").write_text("no photograph")
    return tmp_path


def test_three_of_scikit_image_are_meant_where_none_is_named():
    assert photograph_names(None) == ("chelsea", "astronaut", "coffee")
    assert photograph_names(None, ["rocket", "coffee"]) == ("rocket", "coffee")


@pytest.mark.parametrize("name", list(Photograph))
def test_every_name_is_a_photograph_that_scikit_image_carries(name):
    names, pixels = read_photographs(None, [name], 32, 3)
    assert names == (str(name),)
    assert pixels.shape == (1, 3, 32, 32)
    assert len(pixels.unique()) > 30


def test_shorter_side_is_resized_and_the_centre_taken(folder):
    names, pixels = read_photographs(folder, (), 10, 3)
    assert names == ("a_tall.jpg", "b_wide.png")
    assert pixels.dtype == torch.uint8
    assert pixels[:, :, 2:8, 2:8].min() > 250


def test_scale_is_kept(folder):
    """At the photograph's own height nothing is resampled."""
    _, pixels = read_photographs(None, ["chelsea"], 300, 3)
    assert torch.equal(pixels[0], torch.from_numpy(data.chelsea()[:, 76:376]).permute(2, 0, 1))


def test_grey_networks_get_grey_photographs():
    _, pixels = read_photographs(None, ["coffee"], 16, 1)
    assert pixels.shape == (1, 1, 16, 16)


def test_files_of_a_folder_are_chosen_by_name(folder):
    assert photograph_names(folder, ["b_wide.png"]) == ("b_wide.png",)


def refused(root, names):
    with pytest.raises(DataError) as failure:
        photograph_names(root, names)
    return str(failure.value)


def test_an_unknown_name_is_one_sentence(folder):
    assert refused(None, ["chelsae"]) == (
        "data.photographs names 'chelsae', which is not among scikit-image's photographs: legal "
        "are chelsea, astronaut, coffee, rocket, hubble_deep_field, retina, immunohistochemistry; "
        "did you mean chelsea?"
    )
    assert refused(folder, ["zzz"]) == (
        f"data.photographs names 'zzz', which is not among {folder}: legal are a_tall.jpg, "
        "b_wide.png."
    )


def test_a_name_twice_is_one_sentence():
    assert refused(None, ["coffee", "coffee"]) == "data.photographs names coffee twice"


def test_bad_folders_are_one_sentence(tmp_path):
    assert refused(tmp_path / "no", ()) == f"there is no folder {tmp_path / 'no'} with photographs"
    assert refused(tmp_path, ()).startswith(f"{tmp_path} holds no photographs; expected at least 1")


def test_a_damaged_file_is_one_sentence(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"a\.png cannot be decoded as an image"):
        read_photographs(tmp_path, (), 16, 3)


def test_two_channels_are_refused():
    with pytest.raises(ValueError, match="photographs have 1 or 3 channels, not 2"):
        read_photographs(None, (), 16, 2)
