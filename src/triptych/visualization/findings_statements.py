"""The fourteen statements in their order, with the functions that check them."""

from __future__ import annotations

from triptych.visualization import findings_grouping as grouping
from triptych.visualization import findings_views as views
from triptych.visualization.findings import Statement

STATEMENTS = (
    Statement(
        "F1",
        "Level-0 views are local: what happens to other patches does not change them.",
        views.locality,
    ),
    Statement("F2", "Level-0 views of a good filter show the objects.", views.semantic_filters),
    Statement(
        "F3",
        "No filter is good for every image, but most images have a good one.",
        views.no_filter_for_all,
    ),
    Statement(
        "F4",
        "Views of object tokens spread over their own object first, those of the background "
        "avoid objects.",
        views.own_object_first,
    ),
    Statement(
        "F5", "At the last layer views are image-wide and hardly depend on the token.",
        views.image_wide_at_last,
    ),
    Statement(
        "F6", "The class token's view is settled from a third of the depth on.",
        views.class_token_settled,
    ),
    Statement(
        "F7",
        "Dropping background makes views of object tokens more object-centred than random drops, "
        "dropping the object less.",
        views.drops_shift_views,
    ),
    Statement("F8", "Tokens of one object cluster more with depth.", grouping.rises_with_depth),
    Statement(
        "F9", "Tokens of a cluster are more alike than tokens of an object, in every layer.",
        grouping.clusters_closer_than_objects,
    ),
    Statement(
        "F10", "Grouping has an early bump: a peak at a quarter of the depth, then a dip.",
        grouping.early_bump,
    ),
    Statement(
        "F11", "Mild shuffling (2x2) keeps the grouping, strong shuffling (8x8) breaks it.",
        grouping.shuffling_breaks_grouping,
    ),
    Statement(
        "F12", "Tokens of an object stay alike at the last layer, even when shuffled.",
        grouping.alike_when_shuffled,
    ),
    Statement(
        "F13", "Nearest tokens lie on the same object more often at the last layer than at the "
        "first.",
        grouping.neighbours_on_same_object,
    ),
    Statement(
        "F14", "What the head reads by rollout lies more on object patches.", views.head_on_objects
    ),
)  # fmt: skip
