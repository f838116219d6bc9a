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


class PretrainName(StrEnum):
    none = "none"
    standard = "standard"
    greenmim = "greenmim"


class DecoderOrder(StrEnum):
    row_major = "row_major"
    published = "published"


class DataName(StrEnum):
    mnist_5k = "mnist_5k"
    digits = "digits"
    fashion_mnist = "fashion_mnist"
    image_folder = "image_folder"
    synthetic = "synthetic"


class TaskName(StrEnum):
    classification = "classification"


class WandbMode(StrEnum):
    offline = "offline"
    online = "online"
    off = "off"


class VisualizeLevel(StrEnum):
    off = "off"
    light = "light"


class Accelerator(StrEnum):
    auto = "auto"
    cpu = "cpu"
    gpu = "gpu"


class Precision(StrEnum):
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"
