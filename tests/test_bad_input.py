"""What a user reads when a command cannot run: one sentence, before any work."""

from __future__ import annotations

import pytest

from triptych.choices import PretrainName
from triptych.config import ConfigError
from triptych.hydra_app import compose_run
from triptych.legality.pretraining import FAMILIES, listed
from triptych.paths import CONF

KEYS = "study, seed, output_dir, backbone, norm, pretrain, data, task, trainer, logger, measure"

BAD = [
    (
        ["norm=dtnn"],
        "norm=dtnn is not an option: legal are bn, dtn, dtn_paper, dyt, gn, in, ln, rms, scale; "
        "did you mean dtn?",
    ),
    (
        ["backbone=resnet"],
        "backbone=resnet is not an option: legal are "
        + ", ".join(sorted(path.stem for path in (CONF / "backbone").glob("*.yaml")))
        + ".",
    ),
    (
        ["norm.frm=paper"],
        "norm.frm is not a key: the group norm has name, form, mean, init, pool_to, "
        "position_lr_factor, prefix; did you mean form?",
    ),
    (
        ["nrom=dtn"],
        f"nrom is not a key: the configuration has {KEYS}, visualize; did you mean norm?",
    ),
    (
        ["norm.form=publshed"],
        "norm.form=publshed is not a choice: legal are released, paper; did you mean released?",
    ),
    (["task.epochs=many"], "task.epochs=many is not a whole number."),
    (["task.learning_rate=fast"], "task.learning_rate=fast is not a number."),
    (["data.download=perhaps"], "data.download=perhaps is not true or false."),
    (["task.epochs=0"], "task.epochs=0 is out of range: it must be 1 or more."),
    (
        ["task.learning_rate=0"],
        "task.learning_rate=0 is out of range: it must be more than 0.",
    ),
    (
        ["data.train_fraction=1.5"],
        "data.train_fraction=1.5 is out of range: it must be in (0, 1].",
    ),
    (
        ["pretrain=standard", "pretrain.mask_ratio=1"],
        "pretrain.mask_ratio=1 is out of range: it must be in [0, 1).",
    ),
    (["seed=-1"], "seed=-1 is out of range: it must be 0 or more."),
    (
        ["pretrain=greenmim", "backbone=vit_nano"],
        "pretrain=greenmim cannot be used with backbone=vit_nano: it needs a hierarchical backbone "
        f"(family {listed(FAMILIES[PretrainName.greenmim], 'or')}); for a plain ViT use "
        "pretrain=mae or pretrain=standard.",
    ),
    (
        ["pretrain=mae"],
        "pretrain=mae cannot be used with backbone=swin_nano: its encoder is a plain ViT (family "
        "vit); for a hierarchical backbone use pretrain=greenmim, uniform or standard.",
    ),
    (
        ["pretrain=mae", "backbone=vit_nano", "pretrain.mask_unit=8"],
        "pretrain.mask_unit=8 does not fit backbone=vit_nano: with pretrain=mae it must be 4 (the "
        "total stride), or null.",
    ),
    (
        ["pretrain=uniform", "pretrain.mask_unit=16"],
        "pretrain.mask_unit=16 does not fit backbone=swin_nano: with pretrain=uniform it must be "
        "one of [4, 8] (whole patches that divide the total stride), or null.",
    ),
    (
        ["pretrain=uniform", "data.image_size=24"],
        "data.image_size=24 is not a multiple of 16, twice the total stride, as pretrain=uniform "
        "needs; the nearest legal sizes are 16 and 32.",
    ),
    (
        ["pretrain=uniform", "pretrain.mask_ratio=0.5"],
        "pretrain.mask_ratio=0.5 does not fit pretrain=uniform, which keeps one of each 2x2 cells; "
        "give 0.75, and hide more by pretrain.secondary_ratio.",
    ),
    (
        ["pretrain=uniform", "norm=dtn"],
        "norm=dtn cannot be used with pretrain=uniform: its position weights are for the whole "
        "token grid, and uniform sampling trains on one of half the side; use pretrain=greenmim or "
        "standard, or another norm.",
    ),
    (
        ["pretrain=uniform", "norm=in", "data.image_size=16"],
        "norm=in cannot be used with pretrain=uniform at data.image_size=16, which leaves a single "
        "token in the last stage, without a variance over tokens; use a larger image or another "
        "norm.",
    ),
    (
        ["pretrain=greenmim", "pretrain.secondary_ratio=0.25"],
        "pretrain.secondary_ratio=0.25 has no meaning for pretrain=greenmim; leave it 0 or use "
        "pretrain=uniform.",
    ),
    (
        ["pretrain=standard", "pretrain.decoder_order=published"],
        "pretrain.decoder_order=published has no meaning for pretrain=standard; leave it row_major "
        "or use pretrain=greenmim.",
    ),
    (
        ["pretrain=checkpoint"],
        "pretrain.checkpoint has no value; pretrain=checkpoint needs the file of the weights, for "
        "example pretrain.checkpoint=/data/greenmim_swin_base.pth.",
    ),
    (
        ["pretrain=greenmim", "pretrain.checkpoint=a.pth"],
        "pretrain.checkpoint=a.pth has no meaning for pretrain=greenmim; leave it null or use "
        "pretrain=checkpoint.",
    ),
    (
        ["pretrain=greenmim", "pretrain.merging=row_first"],
        "pretrain.merging=row_first belongs to pretrain=checkpoint with a backbone of family swin; "
        "leave it column_first.",
    ),
    (
        ["pretrain=greenmim", "pretrain.random_resized_crop=[0.5,0.2]"],
        "pretrain.random_resized_crop=[0.5, 0.2] must be [smallest, largest] share of the image "
        "area, for example [0.2,1.0].",
    ),
    (
        ["task.label_fraction=0"],
        "task.label_fraction=0 is out of range: it must be in (0, 1].",
    ),
    (
        ["data.image_size=30"],
        "data.image_size=30 is not a multiple of the total stride 8 of backbone.name=swin_nano; "
        "the nearest legal sizes are 24 and 32.",
    ),
    (
        ["pretrain=greenmim", "pretrain.mask_ratio=0.99"],
        "pretrain.mask_ratio=0.99 leaves no visible mask unit of 16; legal here is 0.0625 to "
        "0.9375.",
    ),
    (
        ["pretrain=standard", "pretrain.mask_ratio=0"],
        "pretrain.mask_ratio=0 leaves no hidden mask unit of 16; legal here is 0.0625 to 0.9375.",
    ),
    (
        ["backbone.num_heads=[3,4]"],
        "backbone.num_heads=[3, 4] does not fit: 3 heads do not divide the width 32 of stage 1; "
        "legal there are [1, 2, 4, 8, 16, 32].",
    ),
    (
        ["backbone.num_heads=[2]"],
        "backbone.num_heads=[2] has 1 entries for 2 stages of backbone.depths: give one for each "
        "stage.",
    ),
    (
        ["backbone=vit_nano", "backbone.depths=[2,2]"],
        "backbone.depths=[2, 2] has 2 entries, but a plain ViT has one stage: give one number, for "
        "example [12].",
    ),
    (
        ["backbone=timm"],
        "backbone.timm_name has no value; name a timm model, for example "
        "backbone.timm_name=deit_tiny_patch16_224.",
    ),
    (
        ["norm.pool_to=14"],
        "norm.pool_to=14 has no meaning for norm.name=ln; leave it null or use norm=dtn.",
    ),
    (
        ["pretrain=greenmim", "pretrain.epochs=0"],
        "pretrain.epochs=0 leaves nothing to pretrain=greenmim; give 1 or more, or use "
        "pretrain=none.",
    ),
    (
        ["pretrain=greenmim", "pretrain.decoder_heads=5"],
        "pretrain.decoder_dim=64 must be a multiple of 4 and of pretrain.decoder_heads=5.",
    ),
    (
        ["pretrain=greenmim", "pretrain.mask_unit=16"],
        "pretrain.mask_unit=16 does not fit backbone=swin_nano: with pretrain=greenmim it must be "
        "8 (the total stride), or null.",
    ),
    (
        ["data=image_folder"],
        "data.root has no value; data=image_folder needs the folder that holds train/ and val/ "
        "with one folder for each class, for example data.root=/data/imagenet.",
    ),
    (
        ["data.channels=3"],
        "data.channels=3 does not fit data=mnist_5k, whose images have 1.",
    ),
    (
        ["data.random_resized_crop=[0.9,0.2]"],
        "data.random_resized_crop=[0.9, 0.2] must be [smallest, largest] share of the image area, "
        "for example [0.2,1.0].",
    ),
    (
        ["task.warmup_epochs=10"],
        "task.warmup_epochs=10 must be less than task.epochs=10.",
    ),
    (
        ["trainer.precision=fp16", "trainer.accelerator=cpu"],
        "trainer.precision=fp16 needs a GPU; on the CPU use trainer.precision=bf16 or fp32.",
    ),
    (
        ["a b=3"],
        "'a b=3' cannot be read as key=value; quote values that hold spaces or brackets, for "
        "example 'backbone.depths=[2,2]'.",
    ),
]


@pytest.mark.parametrize(("overrides", "sentence"), BAD, ids=[" ".join(o) for o, _ in BAD])
def test_bad_input_is_one_sentence(overrides: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        compose_run(overrides)
    assert str(refusal.value) == sentence
