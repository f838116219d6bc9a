import matplotlib.figure
import numpy as np
import pytest

from triptych.study import plots
from triptych.study.cells import curves_table, group_cells
from triptych.study.comparisons import compare_cells


def test_scatter_puts_every_cell_at_its_means(records):
    cells = group_cells(records)
    figure = plots.scatter(cells, "time/total", "test/accuracy")
    axes = figure.axes[0]
    points = [container[0].get_xydata()[0] for container in axes.containers]
    assert len(points) == 6
    expected = 100 * np.mean(list(cells[0].values("test/accuracy").values()))
    assert points[0][1] == pytest.approx(expected)
    assert axes.get_ylabel() == "accuracy (%)"
    assert axes.get_xlabel() == "total training time (s)"


def test_scatter_without_the_metric_is_refused(records):
    with pytest.raises(ValueError, match="no cell has both time/total and test/nothing"):
        plots.scatter(group_cells(records), "time/total", "test/nothing")


def test_curves_are_means_over_seeds_with_their_range(records, write_study):
    folder = write_study(records)
    table, _ = curves_table(records, folder)
    cells = group_cells(records)
    axes = plots.learning_curves(cells, table, "task", "train/loss").axes[0]
    assert len(axes.lines) == 6
    runs = [record["cell"] for record in cells[0].records_by_seed.values()]
    chosen = table[
        (table["stage"] == "task") & (table["name"] == "train/loss") & table["cell"].isin(runs)
    ]
    last = chosen[chosen["epoch"] == 7]["value"]
    assert axes.lines[0].get_ydata()[-1] == pytest.approx(last.mean())
    band = axes.collections[0].get_paths()[0].vertices
    at_last = band[band[:, 0] == 7][:, 1]
    assert (at_last.min(), at_last.max()) == pytest.approx((last.min(), last.max()))
    assert axes.get_xlabel() == "epoch"


def test_only_cells_with_the_curve_are_drawn(records, write_study):
    table, _ = curves_table(records, write_study(records))
    axes = plots.learning_curves(group_cells(records), table, "pretrain", "train/loss").axes[0]
    assert len(axes.lines) == 4
    with pytest.raises(ValueError, match="no cell has the curve train/none of stage task"):
        plots.learning_curves(group_cells(records), table, "task", "train/none")


def test_one_epoch_is_drawn_over_steps(records, write_study):
    table, _ = curves_table(records, write_study(records))
    table["epoch"] = 0
    axes = plots.learning_curves(group_cells(records), table, "task", "train/loss").axes[0]
    assert axes.get_xlabel() == "step"
    assert list(axes.lines[0].get_xdata()) == [32 * (epoch + 1) for epoch in range(8)]


def test_differences_are_grey_where_none_is_detectable(records):
    items = [item for item in compare_cells(group_cells(records)) if item.metric == "test/accuracy"]
    axes = plots.differences(items).axes[0]
    for item, container in zip(items, axes.containers, strict=True):
        grey = item.result.verdict == "no detectable difference"
        assert container[0].get_color() == (plots.MUTED if grey else plots.INK)
    assert any(item.result.verdict == "higher" for item in items)
    assert axes.get_yticklabels()[0].get_text() == "DTN − LN · no pre-training"


def test_a_difference_of_one_seed_is_hollow(records):
    seed_0 = [record for record in records if record["labels"]["seed"] == 0]
    axes = plots.differences(compare_cells(group_cells(seed_0))[:1]).axes[0]
    assert axes.containers[0][0].get_markerfacecolor() == "white"


def test_values_have_one_row_a_cell(records):
    axes = plots.values(group_cells(records), "test/accuracy").axes[0]
    assert len(axes.get_yticklabels()) == 6
    with pytest.raises(ValueError, match="no cell has test/nothing"):
        plots.values(group_cells(records), "test/nothing")


def test_an_unknown_norm_gets_a_colour_of_its_own(records):
    for record in records[:3]:
        record["labels"]["norm"] = "dtn(form=paper)"
    colors = plots.norm_colors(group_cells(records))
    assert len(set(colors.values())) == len(colors) == 3


def test_figures_leave_no_pyplot_state(records):
    import matplotlib.pyplot as plt

    figure = plots.scatter(group_cells(records), "time/total", "test/accuracy")
    assert type(figure) is matplotlib.figure.Figure
    assert plt.get_fignums() == []
