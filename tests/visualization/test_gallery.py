"""Pictures of a run, from model to files."""

import ast
import csv
import math
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from triptych import visualization
from triptych.backbones.build import BackboneSpec, Family, build_backbone
from triptych.norms import replace_norms
from triptych.visualization import (
    Picture,
    classifier_gallery,
    gallery_metrics,
    reconstruction_gallery,
    save_pictures,
)
from triptych.visualization.capture import capture
from triptych.visualization.gallery import brief_gallery, model_gallery

VIT = BackboneSpec(Family.vit, embed_dim=64, depths=(4,), num_heads=(4,))
SWIN = BackboneSpec(Family.swin, embed_dim=32, depths=(2, 2), num_heads=(2, 4), window_size=4)


def build(spec, channels, norm="ln"):
    torch.manual_seed(0)
    model = build_backbone(spec, image_size=(32, 32), channels=channels, num_classes=10)
    replace_norms(model, norm)
    return model


def one_picture(name="one"):
    figure = Figure()
    figure.subplots().plot([0, 1])
    return Picture(name, "One", "A line.", figure, [{"x": 0, "y": 0.1}, {"x": 1, "y": 0.2}])


@pytest.mark.parametrize("norm", ["ln", "dtn"])
@pytest.mark.parametrize(("spec", "channels"), [(VIT, 1), (SWIN, 3)])
def test_classifier_gallery_end_to_end(tmp_path, spec, channels, norm):
    model = build(spec, channels, norm)
    images = torch.randn(3, channels, 32, 32)
    mean, std = [0.5] * channels, [0.25] * channels
    pictures = classifier_gallery(model, images, mean=mean, std=std)
    assert [picture.name for picture in pictures] == [
        "rollout", "attention_distance", "token_magnitude", "token_variation", "class_relevance",
        "filters", "views", "view_spread",
    ]  # fmt: skip
    entries = save_pictures(pictures, tmp_path / "pictures")
    for entry, picture in zip(entries, pictures, strict=True):
        assert set(entry) == {"name", "title", "file", "numbers", "caption"}
        pixels = matplotlib.image.imread(tmp_path / entry["file"])
        assert pixels.shape[1] > 400
        with (tmp_path / entry["numbers"]).open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == len(picture.rows)
        assert list(rows[0]) == list(picture.rows[0])
    files = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert len(files) == 16
    assert model.training


@pytest.mark.parametrize("channels", [1, 3])
def test_reconstruction_gallery_measures_in_pixels(channels):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(2, channels, 16, 16, generator=generator)
    mean, std = [0.4] * channels, [0.2] * channels
    images = (pixels - 0.4) / 0.2
    mask = torch.ones(2, 4, 4, dtype=torch.bool)
    picture = reconstruction_gallery(images, mask, images + 0.5, mean=mean, std=std)
    assert picture.name == "reconstruction"
    for row in picture.rows:
        assert row["mean_absolute_error"] == pytest.approx(0.1, abs=1e-5)


def test_reconstruction_gallery_undoes_patch_normalisation():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(1, 1, 8, 8, generator=generator)
    mask = torch.ones(1, 2, 2, dtype=torch.bool)
    patches = pixels.unfold(2, 4, 4).unfold(3, 4, 4)
    mean = patches.mean((4, 5), keepdim=True)
    std = (patches.var((4, 5), keepdim=True) + 1e-6).sqrt()
    predicted = ((patches - mean) / std).permute(0, 1, 2, 4, 3, 5).reshape(1, 1, 8, 8)
    picture = reconstruction_gallery(pixels, mask, predicted, normalised_patch=4)
    assert picture.rows[0]["mean_absolute_error"] == pytest.approx(0, abs=1e-6)


def test_mean_without_std_is_refused():
    with pytest.raises(
        ValueError, match=r"^mean and std undo one normalisation; give both or neither$"
    ):
        reconstruction_gallery(
            torch.rand(1, 1, 8, 8), torch.ones(1, 2, 2).bool(), torch.rand(1, 1, 8, 8), mean=[0.5]
        )


def test_metrics_name_value_and_unit():
    captured = capture(build(SWIN, 1), torch.randn(2, 1, 32, 32))
    metrics = gallery_metrics(captured)
    assert all(set(entry) == {"value", "unit"} for entry in metrics.values())
    assert all(math.isfinite(float(str(entry["value"]))) for entry in metrics.values())
    distances = [metrics[f"attention/distance/block{b}"]["value"] for b in range(1, 5)]
    mean = metrics["attention/distance/mean"]
    assert mean == {"value": pytest.approx(sum(distances) / 4), "unit": "pixels"}
    assert len([name for name in metrics if name.startswith("tokens/cv_ratio/block")]) == 8


def test_same_picture_gives_the_same_bytes(tmp_path):
    for folder in ("a", "b"):
        save_pictures([one_picture()], tmp_path / folder)
    for name in ("one.png", "one.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert (tmp_path / "a" / "one.csv").read_text() == "x,y\n0,0.1\n1,0.2\n"


def test_pixels_are_those_that_savefig_writes(tmp_path):
    picture = one_picture()
    save_pictures([picture], tmp_path)
    picture.figure.savefig(tmp_path / "plain.png", dpi=150)
    ours, plain = (matplotlib.image.imread(tmp_path / name) for name in ("one.png", "plain.png"))
    np.testing.assert_array_equal(ours[..., :3], plain[..., :3])


@pytest.mark.parametrize("classes", [True, False])
def test_brief_gallery_is_a_part_of_the_whole(classes):
    model, images = build(VIT, 1), torch.rand(2, 1, 32, 32)
    captured = capture(model, images)
    brief = brief_gallery(model, captured, images, images, classes=classes)
    first = "class_relevance" if classes else "rollout"
    assert [one.name for one in brief] == [first, "attention_distance", "token_variation"]
    whole = {one.name: one.rows for one in model_gallery(model, captured, images, images)}
    assert all(whole[one.name] == one.rows for one in brief)


def test_failed_write_leaves_the_old_file_and_no_part(tmp_path, monkeypatch):
    save_pictures([one_picture()], tmp_path)
    old = (tmp_path / "one.png").read_bytes()
    broken = one_picture()

    def fail(_image, path, **_):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_pictures([broken], tmp_path)
    assert (tmp_path / "one.png").read_bytes() == old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.csv", "one.png"]


def test_names_are_checked(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"^picture name '\.\./up' is no file name; "
        "use small letters, digits, '-' and '_'$",
    ):
        one_picture("../up")
    with pytest.raises(
        ValueError, match=r"^two pictures are named 'one'; give each a name of its own$"
    ):
        save_pictures([one_picture(), one_picture()], tmp_path)
    with pytest.raises(ValueError, match=r"^picture 'empty' has no numbers; "):
        Picture("empty", "Empty", "Nothing.", Figure(), [])


def test_package_needs_no_training_framework_and_no_pyplot():
    folder = Path(visualization.__file__).parent
    imported = set()
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(str(node.module))
    drawing = ("PIL", "matplotlib", "skimage")
    libraries = ("numpy", "scipy", "sklearn", "timm", "torch", "triptych")
    allowed = {*drawing, *libraries, *sys.stdlib_module_names}
    assert {name.split(".")[0] for name in imported} <= allowed
    assert "matplotlib.pyplot" not in imported
    ours = {name for name in imported if name.startswith("triptych.")}
    below = ("norms", "backbones", "mim", "tokens", "palette", "seeding", "choices")
    allowed = tuple(f"triptych.{name}" for name in ("visualization", *below))
    assert all(name.startswith(allowed) for name in ours)
