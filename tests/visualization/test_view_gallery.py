"""Pictures of views and relevance, from the model to their numbers."""

import numpy as np
import pytest
import torch

from triptych.visualization.capture import capture
from triptych.visualization.figures.mosaic import Panel, heat_over, mosaic_figure
from triptych.visualization.filters import patch_filters
from triptych.visualization.foreground import covered_share, estimated_objects
from triptych.visualization.relevance_gallery import relevance_gallery
from triptych.visualization.spread_rows import spread_rows
from triptych.visualization.view_gallery import view_gallery
from triptych.visualization.view_spread import view_spread
from triptych.visualization.views import deep_views


@pytest.fixture
def squares():
    """Two images of a bright square before a dark background, and where it is."""
    pixels = torch.full((2, 3, 32, 32), 0.1)
    pixels[0, :, 8:24, 8:24] = 0.9
    pixels[1, 0, 4:12, 16:28] = 0.8
    return pixels


def test_objects_are_what_stands_out(squares):
    objects = estimated_objects(torch.cat((squares, torch.full((1, 3, 32, 32), 0.4))))
    assert objects[0].sum() == 16 * 16
    assert objects[0, 8:24, 8:24].all()
    assert objects[1].sum() == 8 * 12
    assert not objects[2].any()
    dark = estimated_objects(1 - squares)
    assert torch.equal(dark, objects[:2])


def test_covered_share_counts_pixels(squares):
    share = covered_share(estimated_objects(squares), (4, 4)).view(2, 4, 4)
    assert share[0, 1:3, 1:3].tolist() == [[1, 1], [1, 1]]
    assert share[0].sum() == 4
    assert share[1].flatten().tolist()[2:4] == [0.5, 0.25]


@pytest.mark.parametrize("name", ["vit", "swin", "released_vit", "levit"])
def test_view_pictures_and_their_numbers(name, make_family, squares):
    model = make_family(name)
    images = (squares - 0.5) / 0.5
    captured = capture(model, images)
    filters, views, spread = view_gallery(model, captured, images, squares)
    assert [one.name for one in (filters, views, spread)] == ["filters", "views", "view_spread"]
    assert len(filters.rows) == 2 * patch_filters(model).count
    assert all(0 <= row["auroc"] <= 1 for row in filters.rows)
    patches = captured.blocks[0].grid[0] * captured.blocks[0].grid[1]
    level_zero = [row for row in views.rows if row["level"] == 0 and row["token"] != "class token"]
    assert sum(row["weight"] for row in level_zero) == len(level_zero) / patches
    for picture in (filters, views, spread):
        picture.figure.canvas.draw()


def test_spread_rows_are_means_of_the_spread(make_family, squares):
    model = make_family("vit")
    images = (squares - 0.5) / 0.5
    captured = capture(model, images)
    objects = estimated_objects(squares)
    views = deep_views(captured, images, patch_filters(model))
    rows = spread_rows(captured, views, objects)
    assert [row["tokens"] for row in rows] == 2 * [
        "class token", "object tokens", "background tokens",
    ]  # fmt: skip
    on = covered_share(objects, (8, 8)) >= 0.4
    spread = view_spread(views.rollout[1][:, :, 1:], (8, 8), objects=on)
    last = {row["tokens"]: row for row in rows[3:]}
    expected = spread.effective_patches[:, 1:][on].mean().item()
    assert last["object tokens"]["effective_patches"] == pytest.approx(expected)
    assert last["class token"]["effective_patches"] == pytest.approx(
        spread.effective_patches[:, 0].mean().item()
    )
    assert last["class token"]["self_share"] is None
    assert last["object tokens"]["self_share"] > 0


def test_images_without_anything_to_score_give_no_pictures(make_family):
    model, flat = make_family("vit"), torch.full((2, 3, 32, 32), 0.4)
    assert view_gallery(model, capture(model, flat), flat, flat) == []


def test_relevance_picture_of_every_family(family, make_family, squares):
    model = make_family(family)
    picture = relevance_gallery(model, (squares - 0.5) / 0.5, squares, torch.tensor([1, 2]))
    assert {row["class"] for row in picture.rows} == {1, 2}
    shares = {}
    for row in picture.rows:
        key = row["method"], row["image"]
        shares.setdefault(key, []).append(row["times_even_share"])
    assert {method for method, _ in shares} == {
        "rollout", "gradient rollout", "generic rule", "Grad-CAM",
    }  # fmt: skip
    for values in shares.values():
        assert np.mean(values) == pytest.approx(1, abs=1e-4) or not any(values)


def test_heat_and_mosaic_keep_the_place_of_things():
    image, heat = np.full((8, 8, 1), 0.5), np.zeros((2, 2))
    heat[0, 1] = 2.0
    shown = heat_over(image, heat, 2.0)
    assert shown.shape == (8, 8, 3)
    assert (shown[:4, 4:].sum(-1) > shown[:4, :4].sum(-1)).all()
    assert np.allclose(shown[4:], shown[0, 0])
    figure = mosaic_figure(
        [[Panel(shown, "below", (0, 0, 0.5, 0.5)), None]],
        columns=["a", "b"],
        labels=["row"],
        title="Title",
        heat="heat",
    )
    figure.canvas.draw()
    texts = {text.get_text() for axes in figure.axes for text in axes.texts}
    assert {"a", "b", "row", "below", "Title"} <= texts
    assert len(figure.axes) == 2
