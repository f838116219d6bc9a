"""The probe set of a data set: the same images for every run, with masks that fit them."""

from dataclasses import replace

import pytest
import torch

from triptych.data import probe
from triptych.data.errors import DataError
from triptych.data.images import ImageSource, ImageSpec, load_images, scene_items
from triptych.data.probe import probe_set
from triptych.visualization.foreground import estimated_objects
from triptych.visualization.object_tokens import object_tokens

SCENES = ImageSpec(ImageSource.scenes, image_size=64, scenes=20)
DIGITS = ImageSpec(ImageSource.digits, image_size=32)
COUNT = 6


@pytest.fixture(scope="module")
def scenes():
    return load_images(SCENES, seed=0)


@pytest.fixture(scope="module")
def found(scenes):
    return probe_set(SCENES, scenes, COUNT)


def test_scenes_have_two_objects_of_three_cells_or_more(found):
    assert len(found) == COUNT
    assert not found.estimated
    for index in range(COUNT):
        masks = found.masks(index)
        assert len(masks) == len(found.names[index]) >= 2
        assert min(map(len, object_tokens(masks, (8, 8)))) >= 3
        # Numbered from 1 without a gap, small ones dropped: nothing else is marked.
        assert found.instances[index].unique().tolist() == list(range(len(masks) + 1))


def test_scenes_are_labelled_by_a_class_of_the_data(found, scenes):
    assert found.labels.shape == (COUNT,)
    assert set(found.labels.tolist()) <= set(range(scenes.num_classes))
    assert {name for names in found.names for name in names} <= set(scenes.class_names)


def test_scenes_do_not_change_with_the_count_or_the_seed(found, scenes):
    fewer = probe_set(SCENES, load_images(SCENES, seed=5), COUNT - 2)
    assert torch.equal(fewer.pixels, found.pixels[: COUNT - 2])
    assert torch.equal(fewer.instances, found.instances[: COUNT - 2])
    assert fewer.names == found.names[: COUNT - 2]


def test_probe_scenes_are_neither_training_nor_test_images(found, scenes):
    seen = [*scenes.train.images, *scenes.test.images]
    assert not any(torch.equal(one, image) for one in found.pixels for image in seen)


def test_probe_scenes_are_composed_of_test_items(found, monkeypatch):
    """With other training items the probe set stays as it is."""
    train, test, names = scene_items(SCENES)
    monkeypatch.setattr(
        probe, "scene_items", lambda _spec: (train.take(torch.arange(5).numpy()), test, names)
    )
    again = probe_set(SCENES, load_images(SCENES, seed=0), COUNT)
    assert torch.equal(again.pixels, found.pixels)


def test_normalisation_is_that_of_the_training_images(found, scenes):
    assert (found.mean, found.std) == (scenes.mean, scenes.std)
    images = found.images()
    assert torch.allclose(images * scenes.std[0] + scenes.mean[0], found.pixels / 255, atol=1e-6)


def test_too_few_large_objects_are_one_sentence(scenes, monkeypatch):
    monkeypatch.setattr(probe, "LEAST_OBJECTS", 9)
    with pytest.raises(DataError) as failure:
        probe_set(SCENES, scenes, 1)
    assert str(failure.value) == (
        "only 0 of 60 scenes of 64 pixels have two objects that are large enough; 1 are needed"
    )


def test_other_data_give_their_first_test_images_with_guessed_masks():
    data = load_images(DIGITS, seed=0)
    found = probe_set(DIGITS, data, COUNT)
    assert found.estimated
    assert torch.equal(found.pixels, data.test.images[:COUNT])
    assert torch.equal(found.labels, data.test.labels[:COUNT])
    assert torch.equal(found.objects, estimated_objects(data.test.images[:COUNT] / 255))
    assert found.names == (("object",),) * COUNT


def test_a_small_data_set_gives_what_it_has():
    data = load_images(replace(DIGITS, test_fraction=0.02), seed=0)
    assert len(probe_set(DIGITS, data, 1000)) == len(data.test)
