"""Figures: scales that are shared, marks that stand at their numbers, text that is not cut."""

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from timm.models.vision_transformer import VisionTransformer

from triptych.norms import replace_norms
from triptych.palette import NORM_COLOURS, PRETRAIN_COLOURS
from triptych.visualization.attention_distance import distance_rows
from triptych.visualization.capture import capture
from triptych.visualization.figures import (
    distance_figure,
    magnitude_figure,
    reconstruction_figure,
    rollout_figure,
    variation_figure,
)
from triptych.visualization.figures.attention import relative_relevance, relevance_rows
from triptych.visualization.reconstruction import reconstruct
from triptych.visualization.style import norm_colour
from triptych.visualization.token_magnitude import token_magnitudes


def assert_text_is_whole(figure: Figure) -> None:
    figure.canvas.draw()
    drawn = figure.get_tightbbox(figure.canvas.get_renderer())
    width, height = figure.get_size_inches()
    assert min(drawn.x0, drawn.y0) > -0.01
    assert drawn.x1 < width + 0.01
    assert drawn.y1 < height + 0.01


def example(channels: int, count: int = 2):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, channels, 16, 16, generator=generator)
    mask = torch.rand(count, 4, 4, generator=generator) < 0.75
    return reconstruct(images, mask, images * 0.5)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [1, 3])
def test_reconstruction_panels(channels, count):
    result = example(channels, count)
    figure = reconstruction_figure(result, title="Reconstruction")
    assert_text_is_whole(figure)
    grid = figure.axes[: 5 * count]
    titles = [axes.get_title() for axes in grid[:5]]
    assert titles == [
        "input", "masked input", "prediction pasted", "target", "|error| where hidden",
    ]  # fmt: skip
    for row in range(count):
        pasted = grid[5 * row + 2].images[0].get_array()
        expected = result.pasted[row].permute(1, 2, 0).squeeze(-1).numpy()
        np.testing.assert_allclose(pasted, expected)
        error = grid[5 * row + 4].images[0]
        np.testing.assert_allclose(error.get_array(), result.error[row, 0].numpy())
        assert error.get_clim() == (0, pytest.approx(result.error.max().item()))


def test_reconstruction_scale_can_be_fixed():
    figure = reconstruction_figure(example(1), error_limit=0.1)
    assert figure.axes[4].images[0].get_clim() == (0, 0.1)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_rollout_maps_share_one_scale(count):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 1, 16, 16, generator=generator)
    relevance = torch.rand(count, 4, 4, generator=generator) / 16
    figure = rollout_figure(images, relevance, window=(8, 8), shift=(4, 4), title="Rollout")
    assert_text_is_whole(figure)
    share = relative_relevance(relevance)
    maps = [axes.images[1] for axes in figure.axes if len(axes.images) == 2]
    assert len(maps) == count
    assert {image.get_clim() for image in maps} == {(share.min().item(), share.max().item())}
    np.testing.assert_allclose(maps[0].get_array(), share[0].numpy())
    lines = next(axes for axes in figure.axes if len(axes.images) == 2).lines
    solid = [line for line in lines if line.get_linestyle() == "-"]
    dotted = [line for line in lines if line.get_linestyle() == ":"]
    assert [line.get_ydata()[0] for line in solid[:1]] == [7.5]
    assert [line.get_ydata()[0] for line in dotted[:2]] == [3.5, 11.5]
    assert [line.get_xdata()[0] for line in dotted[2:]] == [3.5, 11.5]


def test_relative_relevance_is_one_on_average():
    relevance = torch.rand(3, 4, 5)
    torch.testing.assert_close(relative_relevance(relevance).mean((1, 2)), torch.ones(3))
    rows = relevance_rows(relevance)
    assert len(rows) == 60
    assert rows[7] == {
        "image": 0,
        "row": 1,
        "column": 2,
        "relevance": relevance[0, 1, 2].item(),
        "times_even_share": relative_relevance(relevance)[0, 1, 2].item(),
    }


@pytest.mark.parametrize("unit", ["steps", "pixels"])
def test_distance_dots_stand_at_their_numbers(swin_capture, unit):
    rows = distance_rows(swin_capture)
    figure = distance_figure({"LN": rows, "DTN": rows}, unit=unit, title="Distance")
    assert_text_is_whole(figure)
    assert figure.axes[0].get_ylabel().endswith("(patch steps)" if unit == "steps" else "(pixels)")
    for axes in figure.axes:
        dots = [c.get_offsets()[0] for c in axes.collections if len(c.get_offsets()) == 1]
        heights = [float(y) for _, y in dots][: len(rows)]
        np.testing.assert_allclose(heights, [row[f"distance_{unit}"] for row in rows])
        assert [round(float(x)) for x, _ in dots][: len(rows)] == [row["layer"] for row in rows]


def test_distance_colours_are_one_for_each_head(vit_capture):
    figure = distance_figure({"LN": distance_rows(vit_capture)})
    dots = [c for c in figure.axes[0].collections if len(c.get_facecolor())]
    colours = {to_hex(dot.get_facecolor()[0]) for dot in dots[:16]}
    assert len(colours) == 4
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["head 0", "head 1", "head 2", "head 3", "uniform attention"]


def test_many_heads_are_named_by_a_colour_bar():
    rows = [
        {"layer": 0, "head": head, "distance_steps": 1.0 + head, "uniform_steps": 30.0}
        for head in range(16)
    ]
    figure = distance_figure({"LN": rows}, title="Distance")
    assert_text_is_whole(figure)
    assert figure.axes[-1].get_ylabel() == "head"
    assert len(figure.legends[0].get_texts()) == 1
    assert figure.axes[0].get_ylim() == (0, pytest.approx(32.4))


def test_magnitude_pairs_share_one_scale(vit_capture):
    chosen = token_magnitudes(vit_capture)[:3]
    figure = magnitude_figure(chosen, image=1, title="Magnitudes")
    assert_text_is_whole(figure)
    maps = [axes for axes in figure.axes if axes.images]
    for row, one in enumerate(chosen):
        before, after = maps[2 * row], maps[2 * row + 1]
        assert before.images[0].get_clim() == after.images[0].get_clim()
        np.testing.assert_array_equal(before.images[0].get_array(), one.before[1].numpy())
        assert f"after LN: CV {one.cv_after[1].mean().item():.3f}" in after.get_title()


def test_variation_names_every_norm_that_is_there():
    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=16, patch_size=4, embed_dim=16, depth=3, num_heads=2, num_classes=3
    )
    replace_norms(model, "dtn", last_plain=1)
    magnitudes = token_magnitudes(capture(model, torch.randn(2, 3, 16, 16)))
    figure = variation_figure(magnitudes, title="Variation")
    assert_text_is_whole(figure)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["before", "after DTN", "after LN"]
    _, dtn, ln = figure.axes[0].lines
    assert (dtn.get_color(), ln.get_color()) == (NORM_COLOURS["dtn"], NORM_COLOURS["ln"])
    assert list(dtn.get_xdata()) == [1, 2]
    expected = [m.cv_after.mean().item() for m in magnitudes if m.site == "norm1"]
    np.testing.assert_allclose([*dtn.get_ydata(), *ln.get_ydata()], expected, rtol=1e-5)


def test_drawing_leaves_matplotlib_alone(vit_capture):
    with matplotlib.rc_context({"font.size": 23}):
        distance_figure({"LN": distance_rows(vit_capture)})
        assert matplotlib.rcParams["font.size"] == 23


def test_colours_mean_one_thing():
    colours = [*NORM_COLOURS.values(), *PRETRAIN_COLOURS.values(), norm_colour("RMSNorm")]
    assert len(set(colours)) == len(colours)


def test_bad_input_gets_one_sentence(vit_capture):
    with pytest.raises(
        ValueError, match=r"^unit 'metres' is not known; choose one of steps, pixels$"
    ):
        distance_figure({"LN": distance_rows(vit_capture)}, unit="metres")
    with pytest.raises(ValueError, match=r"^image 2 is not among the 2 captured; give 0 to 1$"):
        magnitude_figure(token_magnitudes(vit_capture), image=2)
    for draw in (magnitude_figure, variation_figure):
        with pytest.raises(ValueError, match=r"^no norm to draw; give at least one$"):
            draw([])
    with pytest.raises(ValueError, match=r"^no panel to draw; give at least one$"):
        distance_figure({})
