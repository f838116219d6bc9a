"""DTN's pictures: lines and marks that stand at their numbers, for every kind of backbone."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from torch import nn

from triptych.norms import DynamicTokenNorm
from triptych.visualization.dtn_gallery import dtn_gallery
from triptych.visualization.figures.kernels import kernels_figure
from triptych.visualization.figures.mixing import mixing_figure
from triptych.visualization.position_kernels import position_kernels


def model(grid: int | tuple[int, int] = (4, 6), heads: tuple[int, ...] = (2, 4)) -> nn.Module:
    torch.manual_seed(0)
    norms = [DynamicTokenNorm(8, count, grid, init="released") for count in heads]
    return nn.ModuleDict({f"norm{i}": norm for i, norm in enumerate(norms)})


def curves(stages: dict[str, int], heads: tuple[int, ...] = (2, 4)) -> list[dict[str, object]]:
    return [
        {
            "stage": stage,
            "epochs": epochs,
            "layer": f"norm{layer}",
            "head": head,
            "lambda_mean": 0.5 + 0.01 * epochs * (head + 1),
            "lambda_variance": 0.5 - 0.02 * epochs,
        }
        for stage, last in stages.items()
        for epochs in range(last + 1)
        for layer, count in enumerate(heads)
        for head in range(count)
    ]


def assert_text_is_whole(figure: Figure) -> None:
    figure.canvas.draw()
    drawn = figure.get_tightbbox(figure.canvas.get_renderer())
    width, height = figure.get_size_inches()
    assert min(drawn.x0, drawn.y0) > -0.01
    assert drawn.x1 < width + 0.01
    assert drawn.y1 < height + 0.01


def test_a_line_for_each_head_at_its_ratios():
    figure = mixing_figure(curves({"task": 3}), title="Mixing")
    assert_text_is_whole(figure)
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == [
        "norm0: mean", "norm0: variance", "norm1: mean", "norm1: variance",
    ]  # fmt: skip
    lines = [line for line in panels[2].lines if len(line.get_xdata()) == 4]
    assert len(lines) == 4
    for head, line in enumerate(lines):
        assert list(line.get_xdata()) == [0, 1, 2, 3]
        np.testing.assert_allclose(
            line.get_ydata(), [0.5 + 0.01 * e * (head + 1) for e in range(4)]
        )
    assert len({axes.get_ylim() for axes in panels}) == 1
    low, high = panels[0].get_ylim()
    assert low < 0.44
    assert high > 0.62


def test_epochs_of_the_task_follow_those_of_pretraining():
    figure = mixing_figure(curves({"task": 2, "pretrain": 5}, (2,)))
    points = [line.get_xdata() for line in figure.axes[0].lines if len(line.get_xdata()) > 2]
    assert [list(at) for at in points] == [[0, 1, 2, 3, 4, 5], [5, 6, 7]] * 2
    labels = {text.get_text() for text in figure.legends[0].get_texts()}
    assert labels == {"λ = 0.5", "pre-training ends", "head 0", "head 1"}


def test_ratios_that_hardly_move_are_not_blown_up():
    rows = [row | {"lambda_mean": 0.5, "lambda_variance": 0.5} for row in curves({"task": 1})]
    low, high = mixing_figure(rows).axes[0].get_ylim()
    assert high - low == pytest.approx(0.02)


def test_kernels_share_one_scale_and_marks_stand_at_the_moments():
    kernels = {path: position_kernels(norm) for path, norm in model().items()}
    figure = kernels_figure(kernels, title="Kernels")
    assert_text_is_whole(figure)
    maps = [axes for axes in figure.axes if axes.images]
    assert len(maps) == 6
    top = max(float(one.weights.max()) for one in kernels.values())
    assert {axes.images[0].get_clim() for axes in maps} == {(0, top)}
    every = [(one, head) for one in kernels.values() for head in range(len(one.weights))]
    for axes, (one, head) in zip(maps, every, strict=True):
        np.testing.assert_allclose(axes.images[0].get_array(), one.weights[head].numpy())
        (ring,) = [patch for patch in axes.patches if isinstance(patch, Ellipse)]
        dy, dx = one.centre[head].tolist()
        assert ring.get_center() == pytest.approx((dx, dy))
        tall, wide = one.widths[head].tolist()
        assert (ring.height, ring.width) == pytest.approx((2 * tall, 2 * wide))
        cross = next(line for line in axes.lines if line.get_marker() == "+")
        assert [cross.get_xdata()[0], cross.get_ydata()[0]] == pytest.approx([dx, dy])
        # The target is at the offset 0, and the map lies around it.
        rows, columns = one.weights.shape[1:]
        left, right, bottom, above = axes.images[0].get_extent()
        assert (left, above) == (-one.target[1] - 0.5, -one.target[0] - 0.5)
        assert (right - left, bottom - above) == (columns, rows)


def test_narrow_kernels_on_a_large_grid_are_seen_near_by():
    norm = DynamicTokenNorm(8, 4, (56, 56))
    figure = kernels_figure({"norm": position_kernels(norm)})
    left, right = figure.axes[0].get_xlim()
    assert right - left <= 9


def test_a_sequence_is_drawn_as_curves():
    kernels = position_kernels(model(64, (2,))["norm0"])
    figure = kernels_figure({"norm0": kernels})
    assert_text_is_whole(figure)
    assert not any(axes.images for axes in figure.axes)
    line = figure.axes[1].lines[0]
    shares = kernels.weights[1, 0].numpy()
    np.testing.assert_allclose(line.get_ydata(), shares[np.asarray(line.get_xdata()) + 32])


@pytest.mark.parametrize("grid", [(4, 6), (14, 14), 12])
def test_gallery_names_numbers_and_figures(grid):
    mixing, kernels = dtn_gallery(model(grid), curves({"task": 1}))
    assert (mixing.name, kernels.name) == ("dtn_mixing", "dtn_kernels")
    assert mixing.rows == curves({"task": 1})
    assert [(row["layer"], row["head"]) for row in kernels.rows] == [
        ("norm0", 0), ("norm0", 1), ("norm1", 0), ("norm1", 1), ("norm1", 2), ("norm1", 3),
    ]  # fmt: skip
    assert "no picture of λ" not in kernels.caption


def test_a_gallery_without_curves_says_so():
    (kernels,) = dtn_gallery(model(), [])
    assert "There is no picture of λ over training" in kernels.caption


def test_a_model_without_dtn_has_no_such_pictures():
    assert dtn_gallery(nn.Sequential(nn.LayerNorm(4)), curves({"task": 1})) == []


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match=r"^no ratios to draw; give at least one row$"):
        mixing_figure([])
    with pytest.raises(ValueError, match=r"^no position kernels to draw; give at least one layer$"):
        kernels_figure({})
