"""Augmentation: each operation against a plain form, and purity."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.data import Augmentation, SampleKey
from triptych.data.augmentation import erased, padded_crops, resized_crops
from triptych.data.memory import InMemoryImages, RawImages
from triptych.seeding import uniforms

EVERYTHING = Augmentation(
    flip=0.5,
    random_resized_crop=(0.3, 1.0),
    erasing=0.5,
    rand_augment="rand-m9-n2-mstd0.5-inc1",
    color_jitter=0.4,
)


def dataset(augmentation, *, channels=1, size=16, seed=0, count=20):
    images = torch.randint(
        0, 256, (count, channels, size, size), dtype=torch.uint8, generator=torch.Generator()
    )
    raw = RawImages(images, torch.arange(count) % 3)
    statistics = {"mean": (0.5,) * channels, "std": (0.25,) * channels}
    return InMemoryImages(raw, **statistics, augmentation=augmentation, seed=seed)


def images_of(data, keys):
    return data.__getitems__([SampleKey(*key) for key in keys]).images


@pytest.mark.parametrize("channels", [1, 3])
def test_image_is_a_pure_function_of_its_key(channels):
    keys = [(epoch, index) for epoch in (0, 3) for index in (5, 1, 7)]
    data = dataset(EVERYTHING, channels=channels)
    together = images_of(data, keys)
    torch.rand(3)
    np.random.rand(2)
    alone = torch.cat([images_of(data, [key]) for key in reversed(keys)]).flip(0)
    assert torch.equal(together, alone)


@settings(max_examples=20, deadline=None)
@given(st.permutations([(e, i) for e in range(2) for i in range(4)]), st.integers(1, 8))
def test_purity_without_photometric_changes(keys, count):
    data = dataset(Augmentation(crop_padding=3, flip=0.5, erasing=0.5))
    whole = images_of(data, keys)
    assert torch.equal(whole[:count], images_of(data, keys[:count]))


def test_epoch_index_and_seed_all_matter():
    data, other = dataset(EVERYTHING), dataset(EVERYTHING, seed=1)
    base = images_of(data, [(0, i) for i in range(20)])
    assert (base != images_of(data, [(1, i) for i in range(20)])).flatten(1).any(1).all()
    assert (base != images_of(other, [(0, i) for i in range(20)])).flatten(1).any(1).all()


def test_global_generators_are_left_alone():
    state = torch.get_rng_state(), np.random.get_state()[1].tolist()
    images_of(dataset(EVERYTHING), [(0, 1), (0, 2)])
    assert torch.equal(state[0], torch.get_rng_state())
    assert state[1] == np.random.get_state()[1].tolist()


def test_nothing_is_done_without_augmentation():
    plain, none = dataset(Augmentation()), dataset(None)
    keys = [(4, i) for i in range(20)]
    expected = (plain.images.double() / 255 - 0.5) / 0.25
    assert torch.equal(images_of(plain, keys), images_of(none, keys))
    torch.testing.assert_close(images_of(plain, keys).double(), expected, rtol=0, atol=1e-5)


def test_flip_is_a_mirror_image_half_of_the_time():
    data = dataset(Augmentation(flip=0.5), count=400)
    plain = images_of(dataset(None, count=400), [(0, i) for i in range(400)])
    out = images_of(data, [(0, i) for i in range(400)])
    data_plain = (data.images.float() * data.scale) + data.shift
    flipped = (out == data_plain.flip(3)).flatten(1).all(1)
    assert ((out == data_plain).flatten(1).all(1) ^ flipped).all()
    assert 150 < flipped.sum() < 250
    assert plain.shape == out.shape


def test_padded_crops_equal_a_loop():
    images = torch.randint(0, 256, (30, 2, 6, 5), dtype=torch.uint8)
    u = uniforms(0, [0] * 30, range(30), 2)
    crops = padded_crops(images, 2, u)
    seen = set()
    for image, crop, (a, b) in zip(images, crops, u, strict=True):
        padded = torch.zeros(2, 10, 9, dtype=torch.uint8)
        padded[:, 2:8, 2:7] = image
        top, left = int(a * 5), int(b * 5)
        seen.add((top, left))
        assert torch.equal(crop, padded[:, top : top + 6, left : left + 5])
    assert {t for t, _ in seen} == {s for _, s in seen} == set(range(5))


def test_resized_crop_of_the_whole_image_is_the_image():
    images = torch.randint(0, 256, (5, 3, 12, 12), dtype=torch.uint8)
    u = np.full((5, 4), 0.5)
    assert torch.equal(resized_crops(images, (1.0, 1.0), u), images)


def test_resized_crop_shows_the_chosen_square():
    ramp = torch.arange(16).mul(10).to(torch.uint8).expand(1, 1, 16, 16).contiguous()
    # Area 1/4, ratio 1 and the left end: columns 0 to 8 of 16, sampled at half-pixel centres.
    crop = resized_crops(ramp, (0.25, 0.25), np.array([[0.0, 0.5, 0.0, 1.0]]))
    expected = (((torch.arange(16) + 0.5) / 2 - 0.5).clamp(min=0) * 10).round()
    torch.testing.assert_close(crop[0, 0, 3].float(), expected, rtol=0, atol=1.0)


def test_resized_crops_stay_inside():
    u = uniforms(1, [0] * 500, range(500), 4)
    images = torch.full((500, 1, 8, 8), 200, dtype=torch.uint8)
    assert (resized_crops(images, (0.08, 1.0), u) == 200).all()


def test_erased_rectangles():
    u = uniforms(2, [0] * 300, range(300), 5)
    out = erased(torch.ones(300, 2, 20, 20), 0.4, u)
    hit = u[:, 0] < 0.4
    assert 80 < hit.sum() < 160
    for image, was_hit in zip(out, hit, strict=True):
        zeros = image[0] == 0
        assert torch.equal(image[0], image[1])
        assert bool(zeros.any()) == was_hit
        rows, columns = zeros.any(1), zeros.any(0)
        assert torch.equal(zeros, rows[:, None] & columns[None, :])
        assert zeros.float().mean() < 0.45


def test_erasing_leaves_the_mean():
    out = images_of(dataset(Augmentation(erasing=1.0)), [(0, i) for i in range(20)])
    assert (out == 0).flatten(1).any(1).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop_padding": -1}, "crop_padding must be at least 0, got -1"),
        ({"color_jitter": -0.1}, "color_jitter must be at least 0, got -0.1"),
        ({"flip": 1.1}, "flip must be in [0, 1], got 1.1"),
        ({"erasing": -0.5}, "erasing must be in [0, 1], got -0.5"),
        (
            {"random_resized_crop": (0.5, 0.2)},
            "random_resized_crop must be two shares with 0 < smallest <= largest <= 1, got "
            "(0.5, 0.2)",
        ),
        (
            {"random_resized_crop": (0.5, 1.0), "crop_padding": 4},
            "crop_padding=4 and random_resized_crop=(0.5, 1.0) are two ways to crop; only one can "
            "be on",
        ),
        (
            {"rand_augment": "augmix-m3"},
            "rand_augment must be written like rand-m9-mstd0.5-inc1, got augmix-m3",
        ),
        (
            {"rand_augment": "rand-m9.5"},
            "rand_augment must be written like rand-m9-mstd0.5-inc1, got rand-m9.5",
        ),
    ],
)
def test_bad_values(arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Augmentation(**arguments)
