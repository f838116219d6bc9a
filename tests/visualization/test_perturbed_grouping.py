"""Shuffled and occluded images with objects: masks and clusters of the released code.

The six measures per layer come from the released cells, run on the released model class; here the
whole way is ours: reading its weights, choosing objects, perturbing image and mask alike, capture
and clustering.
"""

import json

import numpy as np
import pytest
import torch
from tests.visualization.conftest import REFERENCE
from tests.visualization.test_grouping import OFFICIAL_NAME, TOLERANCE
from timm.models import VisionTransformer

from triptych.data.voc import objects_that_count
from triptych.mim.weights import read_weights
from triptych.visualization.capture import capture
from triptych.visualization.grouping import grouping_by_layer
from triptych.visualization.object_tokens import object_tokens
from triptych.visualization.perturbations import occlude, shuffle_cells

GRID = (14, 14)
CONDITIONS = ("shuf2", "shuf8", "occ_rand", "occ_sal", "occ_non")


@pytest.fixture(scope="module")
def official() -> dict[str, np.ndarray]:
    with np.load(REFERENCE / "cluster_perturbed.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def images() -> dict[str, np.ndarray]:
    with np.load(REFERENCE / "minivoc.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def wide_vit() -> VisionTransformer:
    model = VisionTransformer(
        img_size=224, embed_dim=48, depth=4, num_heads=4, mlp_ratio=2, num_classes=10
    )
    model.load_state_dict(read_weights(REFERENCE / "wide_weights_jax.npz"))
    return model.eval()


def pixels_of(images: dict[str, np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(images["image_u8_224"]).permute(0, 3, 1, 2)


def hidden_of(model: VisionTransformer, pixels: torch.Tensor) -> torch.Tensor:
    """Patch rows (images, blocks, tokens, width)."""
    seen = capture(model, (pixels / 255 - 0.5) / 0.5, attention=False, norms=False)
    return torch.stack([block.hidden for block in seen.blocks], 1)[:, :, 1:]


def perturb(image: torch.Tensor, given: dict[str, np.ndarray], name: str, sample: int):
    """As the released code does it with an image or a mask (channels, 224, 224)."""
    if name.startswith("shuf"):
        permutation = torch.from_numpy(given[f"{name}/perm"][sample])
        side = int(len(permutation) ** 0.5)
        return shuffle_cells(image, permutation, (side, side))
    cells = torch.from_numpy(given[f"{name}/occluded_patches"][sample]).nonzero()[:, 0]
    return occlude(image, cells, GRID)


def test_logits_are_those_of_the_released_model(wide_vit, images, official) -> None:
    several = [sample for sample in range(7) if len(names_of(images)[sample]) > 1]
    with torch.no_grad():
        logits = wide_vit((pixels_of(images)[several] / 255 - 0.5) / 0.5)
    np.testing.assert_allclose(logits.numpy(), official["plain/logits"], atol=2e-5, rtol=1e-4)


def names_of(images: dict[str, np.ndarray]) -> list[list[str]]:
    return list(json.loads(str(images["labels_json"])).values())


@pytest.mark.parametrize("name", CONDITIONS)
def test_equals_the_released_cells(name: str, wide_vit, images, official) -> None:
    wanted_names = json.loads(str(official[f"{name}/labels_json"]))
    pixels, row = pixels_of(images), 0
    for sample, annotated in enumerate(names_of(images)):
        ids = torch.from_numpy(images["seg_224"][sample])[None]
        changed = perturb(ids, official, name, sample)
        assert np.array_equal(changed[0].numpy(), official[f"{name}/seg"][sample])
        instances, labels = objects_that_count(images["seg_224"][sample], annotated)
        if len(annotated) < 2:
            continue
        assert list(labels) == wanted_names[row]
        assert len(labels) == official[f"{name}/n_objects"][row]
        seen = perturb(torch.from_numpy(instances)[None], official, name, sample)[0]
        masks = seen == torch.arange(1, len(labels) + 1)[:, None, None]
        objects = object_tokens(masks, GRID, parity="published")
        hidden = hidden_of(wide_vit, perturb(pixels[sample], official, name, sample)[None])[0]
        for layer, measures in enumerate(grouping_by_layer(hidden, objects, list(labels))):
            for measure, value in measures.items():
                wanted = official[f"{name}/{OFFICIAL_NAME[measure]}"][row, layer]
                assert value == pytest.approx(wanted, abs=TOLERANCE[measure]), (row, layer, measure)
        row += 1
    assert row == int(official[f"{name}/num_valid"]) == 6
