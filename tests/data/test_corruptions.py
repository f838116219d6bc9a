"""The fifteen corruptions: the released code, their definitions, and what holds of any image."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.util import random_noise

from triptych.choices import Corruption
from triptych.data.corruptions import CORRUPTIONS, corrupt
from triptych.data.corruptions.blur import clipped_zoom, trail
from triptych.data.corruptions.noise import impulse_noise
from triptych.data.corruptions.plasma import plasma
from triptych.data.corruptions.severities import SIZES, constants, published_size

RELEASED = np.load(Path(__file__).parents[1] / "reference" / "corruptions" / "released.npz")
STEP = {32: 2, 64: 4, 224: 16}
# Largest difference in grey levels: sums in single precision, or in another order.
LARGEST = {"defocus_blur": 1, "snow": 1, "zoom_blur": 1}
C = Corruption


def picture(side: int) -> np.ndarray:
    """The smooth coloured image with an edge of which the reference data are."""
    y, x = np.mgrid[:side, :side] / side
    red, green = 0.5 + 0.45 * np.sin(7 * x + 3 * y), 0.5 + 0.45 * np.cos(5 * x * y + 4 * y)
    blue = 0.15 + 0.7 * ((x - 0.5) ** 2 + (y - 0.45) ** 2 < 0.09)
    return np.rint(255 * np.stack([red, green, blue], -1)).astype(np.uint8)


def grey(side: int = 32) -> np.ndarray:
    return picture(side)[..., :1]


def draw(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("name", RELEASED.files)
def test_as_the_released_code_draws(name: str) -> None:
    """Same random numbers, same image, at the sizes that there is released code for."""
    word, severity, size = name.rsplit("-", 2)
    random = np.random.RandomState(1000 * int(severity) + len(word))
    found = corrupt(picture(int(size)), C(word), int(severity), random)
    step = STEP[int(size)]
    off = np.abs(found[::step, ::step].astype(int) - RELEASED[name].astype(int))
    assert off.max() <= LARGEST.get(word, 0)
    assert off.mean() < 0.5


@pytest.mark.parametrize("side", SIZES)
def test_impulse_noise_is_scikit_images(side: int) -> None:
    share = constants(C.impulse_noise, 3, side)
    want = random_noise(picture(side) / 255, mode="s&p", amount=share, rng=draw(5)) * 255
    assert np.allclose(impulse_noise(picture(side), share, draw(5)), want)


@pytest.mark.parametrize("corruption", C)
@pytest.mark.parametrize("side", [28, 32, 64, 100])
@pytest.mark.parametrize("channels", [1, 3])
def test_shape_type_and_the_image_given(corruption: Corruption, side: int, channels: int) -> None:
    image = picture(side)[..., :channels]
    before = image.copy()
    for severity in (1, 5):
        found = corrupt(image, corruption, severity, draw())
        assert found.dtype == np.uint8
        assert found.shape == image.shape
    assert np.array_equal(image, before)
    assert not np.array_equal(found, image)


@pytest.mark.parametrize("corruption", C)
def test_a_function_of_the_random_numbers_alone(corruption: Corruption) -> None:
    np.random.seed(1)
    first = corrupt(picture(32), corruption, 4, draw(3))
    np.random.seed(2)
    assert np.array_equal(first, corrupt(picture(32), corruption, 4, draw(3)))
    without = (C.defocus_blur, C.zoom_blur, C.brightness, C.contrast, C.pixelate)
    if corruption not in (*without, C.jpeg_compression):
        assert not np.array_equal(first, corrupt(picture(32), corruption, 4, draw(4)))


# By mean distance some of the published steps go down again: glass blur changes sigma, reach and
# rounds in turn, elastic transform the kind of its moves, and under more ice there is less image.
UNEVEN = (C.glass_blur, C.elastic_transform, C.frost)


@pytest.mark.parametrize("corruption", C)
@pytest.mark.parametrize("side", SIZES)
def test_mean_distance_grows_with_severity(corruption: Corruption, side: int) -> None:
    images = [picture(side), picture(side)[::-1], picture(side).transpose(1, 0, 2)]
    distances = []
    for severity in range(1, 6):
        each = [
            np.abs(corrupt(image, corruption, severity, draw(seed)).astype(float) - image).mean()
            for seed in range(1 if side == 224 else 6)
            for image in images
        ]
        distances.append(np.mean(each))
    steps = itertools.pairwise(distances)
    assert min(distances) > 0
    grows = distances[-1] > distances[0] and all(late >= 0.97 * early for early, late in steps)
    assert grows or corruption in UNEVEN, distances


@pytest.mark.parametrize("side", SIZES)
def test_less_of_the_image_is_seen_through_more_ice(side: int) -> None:
    image = picture(side)
    seen = []
    for severity in range(1, 6):
        iced = [corrupt(image, C.frost, severity, draw(seed)) for seed in range(4)]
        seen.append(np.mean([np.corrcoef(image.ravel(), one.ravel())[0, 1] for one in iced]))
    assert all(later < earlier for earlier, later in itertools.pairwise(seen)), seen


def test_every_corruption_has_a_function() -> None:
    assert list(CORRUPTIONS) == list(C)
    assert len(C) == 15


@pytest.mark.parametrize(
    ("side", "size"), [(8, 32), (28, 32), (45, 32), (46, 64), (96, 64), (120, 224), (384, 224)]
)
def test_constants_are_those_of_the_nearest_size(side: int, size: int) -> None:
    assert published_size(side) == size


@given(side=st.integers(3, 40), radius=st.integers(0, 6), angle=st.floats(-180, 180))
@settings(max_examples=25)
def test_a_trail_keeps_even_images_and_shares_out_a_point(
    side: int, radius: int, angle: float
) -> None:
    even = np.full((side, side, 1), 90, np.uint8)
    assert np.all(trail(even, radius, 2.0, angle=angle) == 90)


def test_a_trail_goes_against_its_angle() -> None:
    """At 0 degrees a pixel looks to the right, so a point leaves its trail to the left."""
    point = np.zeros((9, 9, 1), np.uint8)
    point[4, 4] = 255
    found = trail(point, 2, 1.0, angle=0)[..., 0]
    weights = np.exp(-(np.arange(5) ** 2) / 2)
    assert np.array_equal(found[4, 4::-1], np.floor(255 * weights / weights.sum()))
    assert found[4, 5:].sum() == 0
    assert found[:4].sum() == found[5:].sum() == 0


@given(side=st.integers(4, 40), decay=st.floats(1.3, 3))
@settings(max_examples=20)
def test_clouds_lie_between_0_and_1(side: int, decay: float) -> None:
    clouds = plasma(side, decay, draw())
    assert clouds.shape == (side, side)
    assert 0 <= clouds.min() <= clouds.max() <= 1


def test_clouds_fill_their_range_where_nothing_is_cut_off() -> None:
    clouds = plasma(32, 2.0, draw())
    assert (clouds.min(), clouds.max()) == (0, 1)


def test_zoom_by_1_is_the_image() -> None:
    image = picture(32) / 255
    assert np.allclose(clipped_zoom(image, 1.0), image)


def test_contrast_by_hand() -> None:
    image = np.array([[[0], [100]], [[200], [100]]], np.uint8).repeat(16, 0).repeat(16, 1)
    found = corrupt(image, C.contrast, 3, draw())  # 0.4 of the distance from the mean, 100
    assert np.unique(found).tolist() == [60, 100, 140]


def test_brightness_lifts_the_value_and_keeps_the_hue() -> None:
    lift = math.floor(0.3 * 255)
    colour = np.full((32, 32, 3), (100, 50, 0), np.uint8)
    found = corrupt(colour, C.brightness, 5, draw())[0, 0]
    assert abs(int(found[0]) - (100 + lift)) <= 1
    assert abs(int(found[1]) - (100 + lift) / 2) <= 1
    assert found[2] <= 1
    assert abs(int(corrupt(grey(), C.brightness, 5, draw())[3, 3, 0]) - int(grey()[3, 3, 0])) <= 77


def test_black_stays_black_where_nothing_is_added() -> None:
    black = np.zeros((32, 32, 1), np.uint8)
    for corruption in (C.shot_noise, C.defocus_blur, C.zoom_blur, C.contrast, C.pixelate, C.fog):
        assert not corrupt(black, corruption, 5, draw()).any()


def test_bad_images_and_severities() -> None:
    with pytest.raises(ValueError, match=r"^severity must be 1, 2, 3, 4 or 5, got 6$"):
        corrupt(grey(), C.fog, 6, draw())
    sentence = (
        r"^an image of float64 and shape \(32, 32, 1\) was given; corruptions take uint8 "
        r"\(side, side, channels\) with 1 or 3 channels$"
    )
    with pytest.raises(ValueError, match=sentence):
        corrupt(grey() / 255, C.fog, 1, draw())
    sentence = r"^an image of 16x32 pixels was given; corruptions take square images$"
    with pytest.raises(ValueError, match=sentence):
        corrupt(grey()[:16], C.fog, 1, draw())
