"""What a user reads when a probe or an examination cannot be done, before any work."""

from __future__ import annotations

import pytest

from triptych.choices import Corruption
from triptych.config import ConfigError
from triptych.hydra_app import compose_run

FAMILIES = "vit, swin, released_vit, pvt_v2, twins_svt, twins_pcpvt, timm"
IMAGENET_C = ["data=imagenet_c", "task=robustness"]
BAD = [
    (
        ["task=knn", "task.neighbours=0"],
        "task.neighbours=0 is out of range: it must be 1 or more.",
    ),
    (
        ["task.temperature=0.1"],
        "task.temperature=0.1 has no meaning for task=classification, only for knn.",
    ),
    (
        ["task=knn", "task.regularization=2"],
        "task.regularization=2.0 has no meaning for task=knn, only for linear_probe.",
    ),
    (
        ["task=perturbation", "task.severities=[1]"],
        "task.severities=[1] has no meaning for task=perturbation, only for robustness.",
    ),
    (
        ["task=knn", "task.test_images=10"],
        "task.test_images=10 has no meaning for task=knn, only for robustness, perturbation, "
        "resolution.",
    ),
    (
        ["task=robustness", "task.severities=[1,6]"],
        "task.severities=6 is out of range: it must be in [1, 5].",
    ),
    (
        ["task=robustness", "task.severities=[]"],
        "task.severities=[] leaves nothing to ask; give some of [1, 2, 3, 4, 5].",
    ),
    (
        ["task=robustness", "task.corruptions=[fog,mist]"],
        "task.corruptions=['fog', 'mist'] names mist, which is none of "
        + ", ".join(Corruption)
        + ".",
    ),
    (
        ["task=robustness", "task.corruptions=[fog,fog]"],
        "task.corruptions=['fog', 'fog'] names one of them twice.",
    ),
    (
        ["task=robustness", "task.checkpoint=a.pt", "pretrain=greenmim"],
        "task.checkpoint=a.pt and pretrain=greenmim both say what the weights are; give one, with "
        "pretrain=none for the file.",
    ),
    (
        ["task=robustness", "data.corrupted_root=/c"],
        "data.corrupted_root=/c has no meaning for data=mnist_5k; use data=imagenet_c.",
    ),
    (
        [*IMAGENET_C, "data.root=/i"],
        "data=imagenet_c needs data.corrupted_root, the folder of ImageNet-C with its folders "
        "<corruption>/<severity>/<class>, for example data.corrupted_root=/data/imagenet-c.",
    ),
    (
        [*IMAGENET_C, "data.corrupted_root=/c"],
        "data.root has no value; data=imagenet_c needs the folder of ImageNet that holds val/, and "
        "train/ unless task.checkpoint is given.",
    ),
    (
        [*IMAGENET_C, "data.corrupted_root=/c", "data.root=/i", "task.test_images=500"],
        "task.test_images=500 has no meaning for data=imagenet_c, whose sets are read whole; leave "
        "it null.",
    ),
    (
        ["data=imagenet_c", "data.corrupted_root=/c", "data.root=/i"],
        "task=classification cannot be used with data=imagenet_c, whose images are for "
        "task=robustness; use data=image_folder for ImageNet itself.",
    ),
    (
        ["task=resolution", "task.test_sizes=[]"],
        "task.test_sizes=[] leaves nothing to ask; give image sizes, for example [24, 48].",
    ),
    (
        ["task=resolution", "task.test_sizes=[48,30]"],
        "task.test_sizes=[48, 30] cannot hold 30: data.image_size=30 is not a multiple of the "
        "total stride 8 of backbone.name=swin_nano; the nearest legal sizes are 24 and 32.",
    ),
    (
        ["task=resolution", "backbone=levit_nano"],
        "task=resolution cannot be used with backbone=levit_nano: weights of family levit belong "
        f"to one token grid; legal are the families {FAMILIES}.",
    ),
    (
        ["task=resolution", "norm=dtn", "norm.pool_to=4", "task.test_sizes=[40]"],
        "task.test_sizes=[40] cannot hold 40: norm.pool_to=4 does not divide the 10x10 token grid "
        "of stage 1 of backbone=swin_nano; legal there are [1, 2, 5, 10], or null.",
    ),
    (
        ["task=knn", "visualize=full"],
        "visualize=full asks what a classifier predicts, and task=knn has none; use light or none.",
    ),
]


@pytest.mark.parametrize(("overrides", "sentence"), BAD, ids=lambda value: str(value)[:60])
def test_one_sentence(overrides: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError) as failure:
        compose_run(overrides)
    assert str(failure.value) == sentence
