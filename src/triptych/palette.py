"""One colour means one thing in every picture: colour-blind safe (Okabe and Ito)."""

from __future__ import annotations

NORM_COLOURS = {"ln": "#0072B2", "dtn": "#D55E00"}
PRETRAIN_COLOURS = {"none": "#7F7F7F", "standard": "#009E73", "greenmim": "#AA4499"}
OTHER_COLOURS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999933", "#882255")
