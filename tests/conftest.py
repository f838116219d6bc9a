"""What many tests need: toy runs that take seconds."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# The same examples in every run, and no failure because the machine was busy.
settings.register_profile("triptych", derandomize=True, deadline=None)
settings.load_profile("triptych")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("WANDB_SILENT", "true")
# The timing lock lies in the temporary folder: with one of their own the tests neither wait for
# what else trains on this machine nor keep it waiting.
os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
os.environ["TMPDIR"] = tempfile.tempdir = tempfile.mkdtemp(prefix="triptych-tests-")
atexit.register(shutil.rmtree, os.environ["TMPDIR"], ignore_errors=True)

TOY = [
    "data=synthetic",
    "data.synthetic_images=40",
    "data.synthetic_classes=3",
    "data.crop_padding=0",
    "data.channels=1",
    "data.train_fraction=1",
    "task.label_fraction=1",
    "pretrain.epochs=1",
    "pretrain.warmup_epochs=0",
    "pretrain.batch_size=8",
    "pretrain.decoder_dim=16",
    "pretrain.decoder_heads=2",
    "task.epochs=1",
    "task.warmup_epochs=0",
    "task.batch_size=8",
    "measure.rounds=3",
    "measure.batch_size=4",
    "visualize.images=2",
    "visualize.probe_images=4",
    "backbone.depths=[1,1]",
    "backbone.embed_dim=16",
]


@pytest.fixture(scope="session")
def toy_options() -> list[str]:
    """The overrides alone, for fixtures that choose their own folder."""
    return list(TOY)


@pytest.fixture(scope="session")
def coco_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in COCO's layout made of scenes, not to be written to.

    Ten training and six test images 40 to 64 pixels high and wider than high, in colour; categories
    1, 3, … 19. The segmentations take turns: polygons, run lengths, compressed ones. Training
    image 3 has no object, image 4 a crowd alone, and image 5 a box of 0.4 pixels more.
    """
    root = tmp_path_factory.mktemp("coco")
    (root / "annotations").mkdir()
    for split, name, count in (("train", "train2017", 10), ("test", "val2017", 6)):
        found = _write_scenes(root / name, split, count)
        if split == "train":
            of = {
                number: [a for a in found["annotations"] if a["image_id"] == number + 100]
                for number in (3, 4, 5)
            }
            gone = [*of[3], *of[4][1:]]
            found["annotations"] = [a for a in found["annotations"] if a not in gone]
            of[4][0]["iscrowd"] = 1
            tiny = dict(of[5][0], id=10**6, bbox=[5.0, 5.0, 0.4, 9.0])
            found["annotations"].append(tiny)
        (root / "annotations" / f"instances_{name}.json").write_text(json.dumps(found))
    return root


def _write_scenes(folder: Path, split: str, count: int) -> dict[str, Any]:
    """Pictures in ``folder``; their annotations, with numbers from 100 on for the images."""
    import torch.nn.functional as F
    from PIL import Image, ImageOps

    from triptych.data.images import ImageSource, ImageSpec, scene_items
    from triptych.data.object_masks import encode_mask
    from triptych.data.scenes import SceneSettings, compose_scene, run_lengths

    folder.mkdir()
    items, _, names = scene_items(ImageSpec(ImageSource.scenes, 64))
    images, annotations = [], []
    for number in range(count):
        size = (40, 48, 64)[number % 3]
        scene = compose_scene(items, split, number, SceneSettings(size))
        picture = Image.fromarray(scene.image[0].numpy()).convert("RGB")
        width = size + 8 * (1 + number % 2)
        picture = ImageOps.pad(picture, (width, size), centering=(0, 0))
        name = f"{number:03d}.{'png' if number % 2 else 'jpg'}"
        picture.save(folder / name)
        images.append({"id": number + 100, "file_name": name, "height": size, "width": width})
        for mask, box, label in zip(scene.masks, scene.boxes.tolist(), scene.classes, strict=True):
            left, top, right, bottom = box
            mask = F.pad(mask, (0, width - size))
            corners = [left, top, right, top, right, bottom, left, bottom]
            forms = ([corners], run_lengths(mask), encode_mask(mask))
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": number + 100,
                    "category_id": 2 * label + 1,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": forms[len(annotations) % 3],
                }
            )
    categories = [{"id": 2 * k + 1, "name": name} for k, name in enumerate(names)]
    return {"images": images, "annotations": annotations, "categories": categories}


@pytest.fixture
def toy(tmp_path: Path) -> list[str]:
    """Overrides of a run that takes a few seconds and writes below ``tmp_path``."""
    return [*TOY, f"output_dir={tmp_path}"]
