"""Looking into backbones: attention rollout, attention distance, token magnitudes, galleries."""

from triptych.visualization.gallery import (
    Picture,
    classifier_gallery,
    gallery_metrics,
    reconstruction_gallery,
    save_pictures,
)
from triptych.visualization.grouping import grouping_metrics
from triptych.visualization.rollout import attention_rollout, image_relevance, rollout_to_input

__all__ = [
    "Picture",
    "attention_rollout",
    "classifier_gallery",
    "gallery_metrics",
    "grouping_metrics",
    "image_relevance",
    "reconstruction_gallery",
    "rollout_to_input",
    "save_pictures",
]
