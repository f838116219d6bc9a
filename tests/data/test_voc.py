"""Pascal VOC from a tiny folder: which objects count, how images are resized, what is missing."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from triptych.data import voc
from triptych.data.errors import DataError

SIDE = 100  # 0.14² of it are 196 pixels


def write(root, name, objects, boxes, void=()):
    """An image with a mask that has ``boxes`` (top, left, bottom, right) numbered from 1."""
    for folder in voc.FOLDERS:
        (root / folder).mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(name)).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.jpg")
    ids = np.zeros((SIDE, SIDE), dtype=np.uint8)
    for number, (top, left, bottom, right) in enumerate(boxes, start=1):
        ids[top:bottom, left:right] = number
    for top, left, bottom, right in void:
        ids[top:bottom, left:right] = 255
    mask = Image.fromarray(ids)
    mask.putpalette(list(range(256)) * 3)
    mask.save(root / "SegmentationObject" / f"{name}.png")
    body = "".join(f"<object><name>{one}</name></object>" for one in objects)
    (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{body}</annotation>")


LARGE, LEFT = (0, 0, 20, 20), (50, 50, 80, 80)
TINY, AT_BOUND = (90, 0, 95, 5), (0, 60, 14, 74)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    write(tmp_path, "a_two", ["dog", "cat"], [LARGE, LEFT])
    write(tmp_path, "b_tiny", ["dog", "cat"], [LARGE, TINY])
    write(tmp_path, "c_single", ["dog"], [LARGE, LEFT])
    write(tmp_path, "d_three", ["dog", "bird", "dog"], [LARGE, TINY, LEFT], void=[(0, 0, 5, 20)])
    write(tmp_path, "e_more_names", ["dog", "cat", "cow"], [LARGE, LEFT])
    monkeypatch.setitem(voc.EXPECTED, "2009", 5)
    return tmp_path


def test_objects_that_count_are_numbered_in_the_order_of_the_annotation(tiny):
    probe = voc.voc_probe_set(tiny, 3, size=SIDE)
    assert probe.names == (("dog", "cat"), ("dog", "dog"), ("dog", "cat"))
    assert probe.masks(0).sum((1, 2)).tolist() == [400, 900]
    # Void is background, and the object that is too small has given up its number.
    assert probe.masks(1).sum((1, 2)).tolist() == [300, 900]
    assert probe.mean == (0.5, 0.5, 0.5)
    assert probe.labels is None


def test_area_at_the_bound_does_not_count():
    ids = np.zeros((SIDE, SIDE), dtype=np.uint8)
    top, left, bottom, right = AT_BOUND
    ids[top:bottom, left:right] = 1
    assert voc.objects_that_count(ids, ["dog"])[1] == ()
    ids[bottom, left] = 1
    assert voc.objects_that_count(ids, ["dog"])[1] == ("dog",)
    # At 224 pixels the published bound is 983.45.
    big = np.zeros((224, 224), dtype=np.uint8)
    big.flat[:983] = 1
    assert voc.objects_that_count(big, ["dog"])[1] == ()
    big.flat[983] = 1
    assert voc.objects_that_count(big, ["dog"])[1] == ("dog",)


def test_published_images_are_resized_bicubic(tiny):
    place = voc.voc_root(tiny, "2009")
    published = voc.read_voc_image(place, "a_two", size=64, parity="published")
    corrected = voc.read_voc_image(place, "a_two", size=64)
    with Image.open(place / "JPEGImages" / "a_two.jpg") as image:
        wanted = np.array(image.resize((64, 64), Image.Resampling.BICUBIC))
    assert torch.equal(published.pixels, torch.from_numpy(wanted).permute(2, 0, 1))
    assert not torch.equal(published.pixels, corrected.pixels)
    assert torch.equal(published.instances, corrected.instances)


def test_iteration_gives_the_valid_images_alone(tiny):
    assert [image.name for image in voc.iterate_voc(tiny, size=SIDE)] == [
        "a_two", "d_three", "e_more_names",
    ]  # fmt: skip


def test_folder_is_found_inside_the_devkit(tiny, tmp_path):
    devkit = tmp_path / "kit" / "VOCdevkit"
    devkit.mkdir(parents=True)
    target = devkit / "VOC2009"
    target.mkdir()
    for folder in voc.FOLDERS:
        (tiny / folder).rename(target / folder)
    assert voc.voc_root(tmp_path / "kit", "2009") == target


def test_both_years_are_found_by_their_own_name(tiny, tmp_path, monkeypatch):
    """One kit holds both years; each is taken from its own folder, and counted by its own rule."""
    kit = tmp_path / "kit" / "VOCdevkit"
    for year in ("2009", "2012"):
        shutil.copytree(tiny, kit / f"VOC{year}", ignore=shutil.ignore_patterns("kit"))
    write(kit / "VOC2012", "2008_000008", ["horse", "person"], [LARGE, LEFT])
    monkeypatch.setitem(voc.EXPECTED, "2012", 6)
    assert voc.voc_root(tmp_path / "kit", "2012") == kit / "VOC2012"
    assert len(voc.voc_names(tmp_path / "kit", "2009")) == 5
    names = voc.voc_names(tmp_path / "kit", "2012")
    assert names[0] == "2008_000008"
    probe = voc.voc_probe_set(tmp_path / "kit", 1, year="2012", size=SIDE)
    assert probe.names == (("horse", "person"),)


def test_folder_of_another_year_is_refused(tiny, tmp_path):
    """A kit of 2009 does not pass for 2012."""
    kit = tmp_path / "kit" / "VOCdevkit"
    shutil.copytree(tiny, kit / "VOC2009", ignore=shutil.ignore_patterns("kit"))
    with pytest.raises(DataError, match=r"is no Pascal VOC 2012: of its 3 folders .* 0 were found"):
        voc.voc_root(tmp_path / "kit", "2012")


def test_published_counts_are_those_of_the_two_archives():
    assert voc.EXPECTED == {"2009": 1499, "2012": 2913}


def test_unknown_year_is_one_sentence(tiny):
    with pytest.raises(DataError) as failure:
        voc.voc_names(tiny, "2007")
    assert str(failure.value) == "Pascal VOC 2007 is not known; legal are 2009, 2012"


def test_published_rule_leaves_out_one_annotated_object(tiny):
    """c_single has two objects in its mask and one in its annotation: neither rule takes it."""
    place = voc.voc_root(tiny, "2009")
    assert voc.read_voc_image(place, "c_single", parity="published") is None
    assert voc.read_voc_image(place, "c_single") is None


def test_missing_files_are_counted(tiny, monkeypatch):
    (tiny / "Annotations" / "a_two.xml").unlink()
    with pytest.raises(DataError) as failure:
        voc.voc_names(tiny)
    assert str(failure.value) == (
        f"{tiny} has 4 images with mask and annotation, but Pascal VOC 2009 has 5 (5 in "
        "JPEGImages, 5 in SegmentationObject, 4 in Annotations); unpack the trainval archive again"
    )


def test_missing_folders_are_counted(tmp_path):
    (tmp_path / "JPEGImages").mkdir()
    with pytest.raises(DataError) as failure:
        voc.voc_names(tmp_path, "2012")
    assert str(failure.value) == (
        f"{tmp_path} is no Pascal VOC 2012: of its 3 folders JPEGImages, SegmentationObject, "
        "Annotations 1 were found; give the folder VOCdevkit/VOC2012 of the trainval archive"
    )


def test_too_few_images(tiny):
    with pytest.raises(DataError, match=r"has 3 images with two objects .*; 4 were asked for"):
        voc.voc_probe_set(tiny, 4, size=SIDE)


@pytest.mark.parametrize(
    ("folder", "name"), [("JPEGImages", "a_two.jpg"), ("SegmentationObject", "a_two.png")]
)
def test_damaged_image(tiny, folder, name):
    (tiny / folder / name).write_bytes(b"nothing")
    with pytest.raises(DataError, match=rf"{name} cannot be read as an image"):
        voc.read_voc_image(tiny, "a_two")


def test_damaged_annotation(tiny):
    (tiny / "Annotations" / "a_two.xml").write_text("<annotation>")
    with pytest.raises(DataError, match=r"a_two\.xml cannot be read as an annotation"):
        voc.read_voc_image(tiny, "a_two")
