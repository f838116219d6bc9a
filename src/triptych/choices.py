"""The values that a key of the configuration may have, where they are words."""

from __future__ import annotations

from enum import StrEnum


class Family(StrEnum):
    """How a backbone is constructed."""

    vit = "vit"
    swin = "swin"
    released_vit = "released_vit"
    t2t_vit = "t2t_vit"
    pvt = "pvt"
    pvt_v2 = "pvt_v2"
    twins_svt = "twins_svt"
    twins_pcpvt = "twins_pcpvt"
    levit = "levit"
    timm = "timm"
    transformer = "transformer"
    bigbird = "bigbird"
    reformer = "reformer"

    @property
    def reads_sequences(self) -> bool:
        """Whether it takes token sequences, not images."""
        return self in (Family.transformer, Family.bigbird, Family.reformer)


class Schedule(StrEnum):
    """How the learning rate falls after warm-up."""

    cosine = "cosine"
    inverse_sqrt = "inverse_sqrt"
    multistep = "multistep"


class Initialization(StrEnum):
    normal = "normal"
    xavier = "xavier"


class ClassToken(StrEnum):
    first = "first"
    late = "late"


class TokenAttention(StrEnum):
    performer = "performer"
    transformer = "transformer"


# Made by a call because one member bears a keyword's name.
NormName = StrEnum("NormName", ["ln", "dtn", "rms", "dyt", "bn", "in", "gn", "scale"])


class DtnForm(StrEnum):
    released = "released"
    paper = "paper"


class DtnMean(StrEnum):
    mixed = "mixed"
    token = "token"


class DtnInit(StrEnum):
    locality = "locality"
    released = "released"


class DtnPrefix(StrEnum):
    """What DTN does with prefix tokens (cls), see :mod:`triptych.norms.prefix`."""

    own = "own"
    source = "source"
    member = "member"


class PretrainName(StrEnum):
    """How a backbone is pre-trained; with ``none`` and ``checkpoint`` nothing is trained here."""

    none = "none"
    standard = "standard"
    mae = "mae"
    uniform = "uniform"
    greenmim = "greenmim"
    checkpoint = "checkpoint"

    @property
    def trains(self) -> bool:
        return self not in (PretrainName.none, PretrainName.checkpoint)


class MergeOrder(StrEnum):
    """In which order patch merging puts the four children of a token side by side."""

    column_first = "column_first"
    row_first = "row_first"


class Grouping(StrEnum):
    """How windows of visible tokens share rows of attention, see :mod:`triptych.mim.row_plan`."""

    cheapest = "cheapest"
    bucketed = "bucketed"
    published = "published"


class DecoderOrder(StrEnum):
    row_major = "row_major"
    published = "published"


class DataName(StrEnum):
    mnist_5k = "mnist_5k"
    digits = "digits"
    fashion_mnist = "fashion_mnist"
    image_folder = "image_folder"
    image_archive = "image_archive"
    imagenet_c = "imagenet_c"
    synthetic = "synthetic"
    scenes = "scenes"
    photographs = "photographs"
    voc_2009 = "voc_2009"
    voc_2012 = "voc_2012"
    listops = "listops"
    listops_short = "listops_short"
    default = "default"
    coco = "coco"

    @property
    def holds_sequences(self) -> bool:
        """Whether it holds token sequences, not images."""
        return self in (DataName.listops, DataName.listops_short)

    @property
    def holds_objects(self) -> bool:
        """Whether what its images show is known, with boxes, classes and masks."""
        return self in (DataName.coco, DataName.scenes)

    @property
    def trains(self) -> bool:
        """Whether its images have labels; the others are looked at, at any size."""
        return self not in (
            DataName.default,
            DataName.photographs,
            DataName.voc_2009,
            DataName.voc_2012,
        )


class Corruption(StrEnum):
    """The fifteen corruptions of Hendrycks & Dietterich (ICLR 2019), in their order."""

    gaussian_noise = "gaussian_noise"
    shot_noise = "shot_noise"
    impulse_noise = "impulse_noise"
    defocus_blur = "defocus_blur"
    glass_blur = "glass_blur"
    motion_blur = "motion_blur"
    zoom_blur = "zoom_blur"
    snow = "snow"
    frost = "frost"
    fog = "fog"
    brightness = "brightness"
    contrast = "contrast"
    elastic_transform = "elastic_transform"
    pixelate = "pixelate"
    jpeg_compression = "jpeg_compression"


class SceneItems(StrEnum):
    """What scenes are composed of."""

    mnist_5k = "mnist_5k"
    fashion_mnist = "fashion_mnist"


class Photograph(StrEnum):
    """Photographs that scikit-image carries."""

    chelsea = "chelsea"
    astronaut = "astronaut"
    coffee = "coffee"
    rocket = "rocket"
    hubble_deep_field = "hubble_deep_field"
    retina = "retina"
    immunohistochemistry = "immunohistochemistry"


class TaskName(StrEnum):
    """What is done with the network; ``visualization`` trains nothing and draws all pictures."""

    classification = "classification"
    listops = "listops"
    visualization = "visualization"
    linear_probe = "linear_probe"
    knn = "knn"
    robustness = "robustness"
    perturbation = "perturbation"
    resolution = "resolution"
    detection = "detection"

    @property
    def probes(self) -> bool:
        """Whether it asks frozen features, training no part of the backbone."""
        return self in (TaskName.linear_probe, TaskName.knn)

    @property
    def examines(self) -> bool:
        """Whether it examines a classifier that classification trains, or a file holds."""
        return self in (TaskName.robustness, TaskName.perturbation, TaskName.resolution)

    @property
    def trains(self) -> bool:
        return self is not TaskName.visualization


class DetectorKind(StrEnum):
    retinanet = "retinanet"
    faster_rcnn = "faster_rcnn"
    mask_rcnn = "mask_rcnn"


class Weights(StrEnum):
    """Those of ``task=visualization`` that come neither from a run nor from a file."""

    pretrained = "pretrained"
    untrained = "untrained"


class WandbMode(StrEnum):
    offline = "offline"
    online = "online"
    off = "off"


class VisualizeLevel(StrEnum):
    """How much is drawn; ``full`` asks the findings of a probe set beside."""

    off = "off"
    light = "light"
    full = "full"


class Accelerator(StrEnum):
    auto = "auto"
    cpu = "cpu"
    gpu = "gpu"


class Strategy(StrEnum):
    """How processes share the work: one alone, equal copies, or copies in pieces."""

    single = "single"
    ddp = "ddp"
    fsdp = "fsdp"


class Precision(StrEnum):
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"
