"""Gallery of masked-image reconstructions: one row for each image."""

from __future__ import annotations

from matplotlib.figure import Figure

from triptych.visualization.display import show_pixels, to_pixels
from triptych.visualization.reconstruction import Reconstruction, reconstruction_rows
from triptych.visualization.style import ERROR_MAP, bare_image, new_figure, styled

_COLUMNS = ("input", "masked input", "prediction pasted", "target", "|error| where hidden")


@styled
def reconstruction_figure(
    reconstruction: Reconstruction, *, error_limit: float | None = None, title: str = ""
) -> Figure:
    """Columns input, masked input, prediction pasted, target and |error|; rows images.

    Args:
        reconstruction: pixels in [0, 1], 1 or 3 channels.
        error_limit: top of the error scale; the largest error shown where it is not given. Fix
            it to compare figures.
        title: above the whole figure.
    """
    one = reconstruction
    panels = [to_pixels(part) for part in (one.image, one.masked, one.pasted, one.target)]
    errors = reconstruction.error[:, 0].cpu().numpy()
    limit = error_limit if error_limit is not None else max(float(errors.max()), 1e-6)
    count = len(errors)
    height = 1.4 * errors.shape[1] / errors.shape[2] * count + 0.35
    figure = new_figure(8.6, height + (0.3 if title else 0))
    grid = figure.subplots(count, len(_COLUMNS), squeeze=False)
    for row, numbers in enumerate(reconstruction_rows(reconstruction)):
        for column, name in enumerate(_COLUMNS):
            axes = grid[row][column]
            if column < len(panels):
                show_pixels(axes, panels[column][row])
            else:
                shown = axes.imshow(errors[row], cmap=ERROR_MAP, vmin=0, vmax=limit)
            bare_image(axes, name if row == 0 else "")
        hidden, error = numbers["hidden_fraction"], numbers["mean_absolute_error"]
        label = f"image {row}\n{hidden:.0%} hidden\nMAE {error:.3f}"
        grid[row][0].set_ylabel(label, rotation=0, ha="right", va="center", labelpad=6)
    extend = "max" if errors.max() > limit else "neither"
    bar = figure.colorbar(
        shown, ax=list(grid[:, -1]), extend=extend, fraction=0.08, aspect=14 * count
    )
    bar.set_label("|error| (1 = full pixel range)")
    if title:
        figure.suptitle(title)
    return figure
