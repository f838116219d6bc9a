"""The schema of a run: typed groups.

Every field here is a key on the command line (``task.epochs=30``). The dataclasses are frozen:
a configuration is never changed once it is composed. Ranges and legal
combinations are checked in :mod:`triptych.legality`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from triptych.choices import (
    Accelerator,
    ClassToken,
    DecoderOrder,
    DtnForm,
    DtnInit,
    DtnMean,
    DtnPrefix,
    Family,
    Grouping,
    Initialization,
    MergeOrder,
    NormName,
    Precision,
    PretrainName,
    Schedule,
    Strategy,
    TaskName,
    TokenAttention,
    VisualizeLevel,
    WandbMode,
    Weights,
)
from triptych.config_data import DataConfig
from triptych.config_detector import PLAIN_DETECTOR, DetectorConfig


class ConfigError(ValueError):
    """A configuration that cannot run; the message is one sentence for the user."""


@dataclass(frozen=True)
class BackboneConfig:
    """A backbone; one entry of ``depths`` and ``num_heads`` for each stage.

    What each key means, and to which families it belongs, is told at
    :class:`triptych.backbones.spec.BackboneSpec`.
    """

    name: str = MISSING
    family: Family = MISSING
    embed_dim: int = 0
    depths: tuple[int, ...] = ()
    num_heads: tuple[int, ...] = ()
    patch_size: int = 4
    window_size: int = 7
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    initialization: Initialization = Initialization.normal
    timm_name: str | None = None
    embed_dims: tuple[int, ...] = ()
    sr_ratios: tuple[int, ...] = ()
    mlp_ratios: tuple[float, ...] = ()
    key_dim: int = 16
    attention_ratio: float = 2.0
    kernels: tuple[int, ...] = (7, 3, 3)
    strides: tuple[int, ...] = (4, 2, 2)
    token_dim: int = 64
    token_attention: TokenAttention = TokenAttention.performer
    class_token: ClassToken = ClassToken.first
    block_size: int = 64
    random_blocks: int = 3
    hashes: int = 1


@dataclass(frozen=True)
class NormConfig:
    """The normalizer at the sites that the DTN paper replaces; the rest applies to DTN alone.

    ``position_lr_factor`` multiplies the learning rate of position weights and mixing logits.
    """

    name: NormName = MISSING
    form: DtnForm = DtnForm.released
    mean: DtnMean = DtnMean.mixed
    init: DtnInit = DtnInit.locality
    pool_to: int | None = None
    position_lr_factor: float = 1.0
    prefix: DtnPrefix = DtnPrefix.own


@dataclass(frozen=True)
class PretrainConfig:
    """Masked image modelling; learning rates are for 256 images and scale with the batch.

    ``secondary_ratio``: share of the visible tokens that ``uniform`` replaces by a mask token.
    ``random_resized_crop``: where given, pre-training sees such crops and ``data.flip`` alone,
    instead of the whole augmentation of ``data``. ``start_learning_rate``, ``schedule`` and
    ``milestones`` are those of :class:`TaskConfig`. ``checkpoint`` (a file) and ``merging`` belong
    to ``pretrain=checkpoint``; a file is known by its path, so give a new one a new name.
    """

    name: PretrainName = MISSING
    epochs: int = 0
    batch_size: int = 128
    mask_ratio: float = 0.75
    mask_unit: int | None = None
    mask_per_sample: bool = True
    normalize_target: bool = True
    decoder_dim: int = 512
    decoder_depth: int = 1
    decoder_heads: int = 16
    decoder_order: DecoderOrder = DecoderOrder.row_major
    learning_rate: float = 1e-4
    min_learning_rate: float = 0.0
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    warmup_epochs: float = 0.0
    clip_grad: float | None = None
    drop_path: float = 0.0
    secondary_ratio: float = 0.0
    random_resized_crop: tuple[float, float] | None = None
    checkpoint: str | None = None
    merging: MergeOrder = MergeOrder.column_first
    grouping: Grouping = Grouping.cheapest
    start_learning_rate: float = 0.0
    schedule: Schedule = Schedule.cosine
    milestones: tuple[int, ...] = ()


@dataclass(frozen=True)
class TaskConfig:
    """Supervised training; learning rates are for 256 images and scale with the batch.

    ``label_fraction``: the stratified share of the training images that the task sees;
    pre-training sees all. Warm-up begins at ``start_learning_rate``; ``schedule=multistep``
    divides the rate by ten after each of the ``milestones`` (epochs). ``repeats``: copies of an
    image in a batch, each augmented in its own way (repeated augmentation); an epoch then shows
    that share of the images.

    ``task=visualization`` trains nothing and reads three keys alone. ``run`` is the folder of a
    finished run, whose backbone, norm, pre-training, seed and weights are taken; ``checkpoint`` a
    file of weights for the backbone, known by its path; where there is neither, ``weights`` says
    which the network has.

    ``task=knn`` reads ``neighbours`` and ``temperature``, ``task=linear_probe``
    ``regularization``. ``task=robustness`` (``corruptions``, all fifteen where it is empty, and
    ``severities``), ``perturbation`` and ``resolution`` (``test_sizes``) examine the classifier
    that ``task=classification`` trains with the same keys, or the one in ``checkpoint``, on
    ``test_images`` test images, a stratified part, or on all. ``detector`` belongs to
    ``task=detection``.
    """

    name: TaskName = MISSING
    epochs: int = 10
    batch_size: int = 128
    learning_rate: float = 1e-3
    min_learning_rate: float = 0.0
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_epochs: float = 0.0
    layer_decay: float = 1.0
    clip_grad: float | None = None
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    drop_path: float = 0.0
    ema_decay: float = 0.0
    evaluate_every: int = 1
    label_fraction: float = 1.0
    schedule: Schedule = Schedule.cosine
    start_learning_rate: float = 0.0
    milestones: tuple[int, ...] = ()
    repeats: int = 1
    run: str | None = None
    checkpoint: str | None = None
    weights: Weights = Weights.pretrained
    neighbours: int = 20
    temperature: float = 0.07
    regularization: float = 1.0
    corruptions: tuple[str, ...] = ()
    severities: tuple[int, ...] = (1, 2, 3, 4, 5)
    test_images: int | None = None
    test_sizes: tuple[int, ...] = ()
    detector: DetectorConfig = PLAIN_DETECTOR


@dataclass(frozen=True)
class TrainerConfig:
    """Hardware and bookkeeping; nothing here changes what is computed, but for precision.

    ``batch_size`` of a stage is that of one update: ``devices`` processes share it, and each takes
    its part in ``accumulate`` pieces, so that neither changes the learning rate. ``devices`` null:
    every GPU of the machine; there is no training across machines.
    """

    accelerator: Accelerator = Accelerator.auto
    precision: Precision = Precision.fp32
    threads: int = 1
    deterministic: bool = True
    compile: bool = False
    checkpoint_every: int = 200
    limit_batches: int | None = None
    strategy: Strategy = Strategy.single
    devices: int | None = None
    accumulate: int = 1


@dataclass(frozen=True)
class LoggerConfig:
    """Where the mirror of the run record goes."""

    wandb: WandbMode = WandbMode.offline
    project: str = "triptych"
    entity: str | None = None


@dataclass(frozen=True)
class MeasureConfig:
    """Cost of a model: how many rounds are timed, and on how many images."""

    enabled: bool = True
    batch_size: int = 64
    rounds: int = 7


@dataclass(frozen=True)
class VisualizeConfig:
    """Pictures made at the end of a run, of the first ``images`` test images.

    ``probe_images``: size of the probe set that ``level=full`` asks the findings of.
    """

    level: VisualizeLevel = VisualizeLevel.light
    images: int = 6
    probe_images: int = 48


@dataclass(frozen=True)
class RunConfig:
    """One point of the grid backbone × norm × pre-training × data × task × seed."""

    study: str = "default"
    seed: int = 0
    output_dir: str = "outputs"
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    norm: NormConfig = field(default_factory=NormConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    data: DataConfig = field(default_factory=DataConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    visualize: VisualizeConfig = field(default_factory=VisualizeConfig)
