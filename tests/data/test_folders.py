"""Image files in class folders."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from triptych.data import (
    Augmentation,
    DataError,
    ImageSource,
    ImageSpec,
    SampleKey,
    load_images,
)
from triptych.data.folders import decode, scan_folder

RNG = np.random.default_rng(0)
EXTENSIONS = ".jpg, .jpeg, .png, .ppm, .bmp, .pgm, .tif, .tiff, .webp"


def write_image(path, size=(40, 30), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RNG.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **options)
    return path


def write_classes(root, *, counts=(4, 6)):
    for label, count in enumerate(counts):
        for number in range(count):
            write_image(root / f"class{label}" / f"{number}.png", size=(40 + number, 33))


def spec(root, **options):
    return ImageSpec(ImageSource.image_folder, 32, channels=3, root=root, **options)


def keys(count, epoch=0):
    return [SampleKey(epoch, index) for index in range(count)]


def test_train_and_val(tmp_path):
    write_classes(tmp_path / "train")
    write_classes(tmp_path / "val", counts=(2, 1))
    data = load_images(spec(tmp_path), seed=0)
    assert (len(data.train), len(data.test), data.num_classes) == (10, 3, 2)
    assert data.class_names == ("class0", "class1")
    batch = data.test.__getitems__(keys(3))
    assert batch.images.shape == (3, 3, 32, 32)
    assert batch.labels.tolist() == [0, 0, 1]
    assert batch.images.dtype == torch.float32


def test_one_folder_is_split(tmp_path):
    write_classes(tmp_path, counts=(10, 20))
    data = load_images(spec(tmp_path, test_fraction=0.3), seed=0)
    assert torch.bincount(data.train.labels).tolist() == [7, 14]
    assert torch.bincount(data.test.labels).tolist() == [3, 6]
    assert not set(data.train.files.paths) & set(data.test.files.paths)


def test_train_fraction(tmp_path):
    write_classes(tmp_path, counts=(10, 10))
    data = load_images(spec(tmp_path, test_fraction=0.2, train_fraction=0.5), seed=0)
    assert torch.bincount(data.train.labels).tolist() == [4, 4]


def test_test_images_are_resized_and_centred(tmp_path):
    pixels = np.zeros((64, 128, 3), dtype=np.uint8)
    pixels[:, 32:96] = 255
    for part in ("train", "val"):
        path = tmp_path / part / "a" / "0.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(pixels).save(path)
    data = load_images(spec(tmp_path), seed=0)
    white = (1 - torch.tensor(data.mean)) / torch.tensor(data.std)
    image = data.test.__getitems__(keys(1)).images[0]
    # 128x64 becomes 74x37; its middle 32 of 74 columns all lie in the white half.
    torch.testing.assert_close(image, white[:, None, None].expand(3, 32, 32), atol=1e-5, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_augmented_image_is_a_pure_function_of_its_key(tmp_path, channels):
    write_classes(tmp_path)
    augmentation = Augmentation(
        flip=0.5,
        random_resized_crop=(0.2, 1.0),
        erasing=0.5,
        rand_augment="rand-m9-mstd0.5-inc1",
        color_jitter=0.3,
    )
    chosen = ImageSpec(
        ImageSource.image_folder, 32, channels, root=tmp_path, augmentation=augmentation
    )
    data = load_images(chosen, seed=0).train
    state = torch.get_rng_state()
    together = data.__getitems__(keys(8)).images
    assert torch.equal(state, torch.get_rng_state())
    alone = [data[key].images[0] for key in reversed(keys(8))][::-1]
    assert torch.equal(together, torch.stack(alone))
    assert together.shape == (8, channels, 32, 32)
    later = data.__getitems__(keys(8, epoch=1)).images
    assert (together != later).flatten(1).any(1).all()


def test_crop_padding(tmp_path):
    write_classes(tmp_path)
    data = load_images(spec(tmp_path, augmentation=Augmentation(crop_padding=4)), seed=0).train
    assert data.__getitems__(keys(4)).images.shape == (4, 3, 32, 32)


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = decode(write_image(tmp_path / "a.jpg", (40, 30), exif=exif), 3)
    assert upright.size == (30, 40)


@pytest.mark.parametrize(
    ("mode", "name"),
    [("CMYK", "a.jpg"), ("L", "a.png"), ("P", "a.png"), ("RGBA", "a.png"), ("1", "a.png")],
)
def test_modes(tmp_path, mode, name):
    path = write_image(tmp_path / name, mode=mode)
    assert decode(path, 3).mode == "RGB"
    assert decode(path, 1).mode == "L"


def test_palette_with_transparency(tmp_path):
    path = write_image(tmp_path / "a.png", mode="P", transparency=b"\x00\x80")
    assert decode(path, 3).mode == "RGB"


def test_16_bit_grey_keeps_the_upper_byte(tmp_path):
    pixels = RNG.integers(0, 2**16, (30, 40), dtype=np.uint16)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(np.asarray(decode(tmp_path / "a.png", 1)), pixels >> 8)


def test_truncated_file_is_named(tmp_path):
    path = write_image(tmp_path / "a.jpg", size=(200, 200))
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(
        DataError, match=f"^{re.escape(str(path))} cannot be decoded as an image: .*truncated"
    ):
        decode(path, 3)


def test_file_that_is_no_image_is_named(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_text("not an image")
    message = f"{path} cannot be decoded as an image: cannot identify image file '{path}'"
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        decode(path, 3)


def expect(message, root):
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        load_images(spec(root), seed=0)


def test_missing_root(tmp_path):
    root = tmp_path / "nowhere"
    expect(f"there is no folder {root} with one folder of images for each class", root)


def test_no_classes(tmp_path):
    expect(f"{tmp_path} has no class folders; expected one folder for each class", tmp_path)


def test_empty_class(tmp_path):
    write_classes(tmp_path)
    (tmp_path / "class2").mkdir()
    (tmp_path / "class2" / "notes.txt").touch()
    expect(
        f"{tmp_path}/class2 holds no images; expected at least 1 file ending in {EXTENSIONS}",
        tmp_path,
    )


@pytest.mark.parametrize(("there", "missing"), [("train", "val"), ("val", "train")])
def test_only_one_part(tmp_path, there, missing):
    write_classes(tmp_path / there)
    expect(
        f"{tmp_path} has a folder {there} but no folder {missing}; expected both, or one folder "
        f"for each class",
        tmp_path,
    )


def test_class_mismatch(tmp_path):
    write_classes(tmp_path / "train", counts=(2, 2, 2))
    write_classes(tmp_path / "val")
    expect(
        f"{tmp_path}/train has 3 classes and {tmp_path}/val has 2, and class2 is in only one of "
        f"them",
        tmp_path,
    )


def test_files_are_in_alphabetical_order(tmp_path):
    write_classes(tmp_path, counts=(12,))
    names = [path.name for path in scan_folder(tmp_path).paths]
    assert names == sorted(names)
