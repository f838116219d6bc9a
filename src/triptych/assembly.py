"""From a checked configuration to the objects of a run. The only place that knows both."""

from __future__ import annotations

from dataclasses import fields
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from torch import nn

from triptych.backbones.build import BackboneSpec, build_backbone
from triptych.backbones.build import Family as BackboneFamily
from triptych.backbones.sequence import build_sequence_classifier
from triptych.choices import DataName, NormName, PretrainName
from triptych.config import BackboneConfig, NormConfig, PretrainConfig, RunConfig, TaskConfig
from triptych.data.augmentation import Augmentation
from triptych.data.canvas import ResizeRule
from triptych.data.coco import CocoPlaces
from triptych.data.detection import DetectionData
from triptych.data.detection_sources import CocoSpec, load_coco, load_detection_scenes
from triptych.data.imagenet_c import validation_images
from triptych.data.images import ImageData, ImageSource, ImageSpec, load_images
from triptych.data.listops import VOCABULARY, ListOpsSpec
from triptych.data.sequences import SequenceData, load_listops
from triptych.legality import mask_unit
from triptych.mim import MAE, DecoderSettings, GreenMIM, MaskedImageModel, SimMIM, UniformMIM
from triptych.norms import replace_norms
from triptych.norms.sites import native_norm
from triptych.seeding import derive_seed
from triptych.tasks.fit import FitSettings
from triptych.tasks.optimization import OptimizerSettings


def load_data(config: RunConfig) -> ImageData | SequenceData:
    """The images or sequences of the run; the seed moves the augmentation, never the split."""
    data = config.data
    if data.name.holds_sequences:
        return load_listops(
            ListOpsSpec(data.min_length, data.max_length, data.max_depth, data.max_args),
            name=str(data.name),
            train=data.train_sequences,
            test=data.test_sequences,
            root=Path(data.root) if data.root else None,
        )
    spec = image_spec(config)
    if data.name is DataName.imagenet_c and config.task.checkpoint is not None:
        return validation_images(spec)
    return load_images(spec, seed=derive_seed(config.seed, "augmentation"))


def load_detection(config: RunConfig) -> DetectionData:
    """The images with objects of ``task=detection``; scenes are those of :func:`load_data`.

    How a training image looks in an epoch depends on the seed of whoever samples it, see
    :class:`triptych.data.detection_samples.DetectionSamples`.
    """
    data = config.data
    if data.name is not DataName.coco:
        return load_detection_scenes(image_spec(config))
    return load_coco(
        CocoSpec(
            root=Path(data.root or ""),
            canvas=data.image_size,
            resize=ResizeRule(data.short_side, data.long_side, data.training_sides),
            flip=data.flip,
            channels=data.channels,
            places=CocoPlaces(
                data.annotations[0], data.folders[0], data.annotations[1], data.folders[1]
            ),
            expected=(data.expected_classes, data.expected_train, data.expected_test),
        )
    )


def image_spec(config: RunConfig) -> ImageSpec:
    """What the configuration says of the images."""
    data = config.data
    augmentation = Augmentation(
        crop_padding=data.crop_padding,
        flip=data.flip,
        random_resized_crop=_pair(data.random_resized_crop),
        erasing=data.erasing,
        rand_augment=data.rand_augment,
        color_jitter=data.color_jitter,
    )
    return ImageSpec(
        source=image_source(data.name),
        image_size=data.image_size,
        channels=data.channels,
        root=Path(data.root) if data.root else None,
        download=data.download,
        train_fraction=data.train_fraction,
        test_fraction=data.test_fraction,
        augmentation=augmentation,
        synthetic_images=data.synthetic_images,
        synthetic_classes=data.synthetic_classes,
        scenes=data.scenes,
        scene_items=str(data.scene_items),
        expected=(data.expected_classes, data.expected_train, data.expected_test),
    )


def image_source(name: DataName) -> ImageSource:
    """Where the images come from; those of ImageNet-C are beside ImageNet's own."""
    plain = DataName.image_folder if name is DataName.imagenet_c else name
    return ImageSource(str(plain))


def _pair(values: tuple[float, float] | None) -> tuple[float, float] | None:
    return None if values is None else (float(values[0]), float(values[1]))


def build_model(config: RunConfig, num_classes: int, *, drop_path: float = 0.0) -> nn.Module:
    """The backbone with its norm, initialised from the run's seed alone."""
    side = config.data.image_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "weights"))
        spec = backbone_spec(config.backbone)
        if config.backbone.family.reads_sequences:
            model: nn.Module = build_sequence_classifier(
                spec,
                length=config.data.max_length,
                vocabulary=len(VOCABULARY),
                num_classes=num_classes,
            )
        else:
            model = build_backbone(
                spec,
                image_size=(side, side),
                channels=config.data.channels,
                num_classes=num_classes,
                drop_path=drop_path,
            )
        put_norm(model, config.norm, (side, side))
    return model


def backbone_spec(bone: BackboneConfig) -> BackboneSpec:
    """The specification without the configuration's name for it, in plain words and tuples."""
    values = {item.name: getattr(bone, item.name) for item in fields(BackboneSpec)}
    words = {key: str(word) for key, word in values.items() if isinstance(word, StrEnum)}
    return BackboneSpec(**values | words | {"family": BackboneFamily(str(bone.family))})


def put_norm(model: nn.Module, norm: NormConfig, image_size: tuple[int, int]) -> None:
    """Replace the norms at the paper's sites, unless the backbone is built with this norm."""
    if str(norm.name) == native_norm(model):
        return
    options: dict[str, Any] = {}
    if norm.name is NormName.dtn:
        options = {"form": str(norm.form), "mean": str(norm.mean), "init": str(norm.init)}
        options |= {"pool_to": norm.pool_to, "prefix": str(norm.prefix)}
    replace_norms(model, str(norm.name), image_size=image_size, **options)


def build_masked_model(config: RunConfig, backbone: nn.Module) -> MaskedImageModel:
    """The masked image model of ``pretrain``; its ``backbone`` is the very module given."""
    pre = config.pretrain
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "decoder"))
        side, norm_pixels = (config.data.image_size,) * 2, pre.normalize_target
        if pre.name is PretrainName.standard:
            return SimMIM(
                backbone, unit=mask_unit(config), norm_pixels=norm_pixels, image_size=side
            )
        decoder = DecoderSettings(
            dim=pre.decoder_dim,
            depth=pre.decoder_depth,
            num_heads=pre.decoder_heads,
            order=str(pre.decoder_order),
        )
        if pre.name is PretrainName.mae:
            return MAE(backbone, decoder, norm_pixels=norm_pixels)
        if pre.name is PretrainName.uniform:
            return UniformMIM(
                backbone,
                decoder,
                cell=mask_unit(config),
                secondary_ratio=pre.secondary_ratio,
                norm_pixels=norm_pixels,
                image_size=side,
            )
        return GreenMIM(
            backbone,
            decoder,
            norm_pixels=norm_pixels,
            image_size=side,
            grouping=str(pre.grouping),
        )


def optimizer_settings(
    stage: PretrainConfig | TaskConfig, norm: NormConfig | None = None
) -> OptimizerSettings:
    return OptimizerSettings(
        learning_rate=stage.learning_rate,
        min_learning_rate=stage.min_learning_rate,
        weight_decay=stage.weight_decay,
        betas=(stage.betas[0], stage.betas[1]),
        warmup_epochs=stage.warmup_epochs,
        epochs=stage.epochs,
        batch_size=stage.batch_size,
        layer_decay=stage.layer_decay if isinstance(stage, TaskConfig) else 1.0,
        position_lr_factor=1.0 if norm is None else norm.position_lr_factor,
        schedule=str(stage.schedule),
        milestones=tuple(stage.milestones),
        start_learning_rate=stage.start_learning_rate,
    )


def fit_settings(config: RunConfig, stage: PretrainConfig | TaskConfig) -> FitSettings:
    trainer = config.trainer
    return FitSettings(
        epochs=stage.epochs,
        accelerator=str(trainer.accelerator),
        precision=str(trainer.precision),
        deterministic=trainer.deterministic,
        checkpoint_every=trainer.checkpoint_every,
        clip_grad=stage.clip_grad,
        evaluate_every=stage.evaluate_every if isinstance(stage, TaskConfig) else 1,
        strategy=str(trainer.strategy),
        compiled=trainer.compile,
    )
