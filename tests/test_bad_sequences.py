"""Combinations of sequences, encoders, norms and tasks that make no sense, and the reason given."""

from __future__ import annotations

import pytest

from triptych.config import ConfigError
from triptych.hydra_app import compose_run
from triptych.legality import check
from triptych.stages import cell_key

LISTOPS = ["backbone=bigbird_nano", "data=listops_short", "task=listops"]

REFUSED = [
    (
        ["backbone=bigbird_nano"],
        "backbone=bigbird_nano reads token sequences, but data=mnist_5k holds images; use "
        "data=listops_short or listops with task=listops, or an image backbone.",
    ),
    (
        ["data=listops_short", "task=listops"],
        "backbone=swin_nano reads images, but data=listops_short holds token sequences; use "
        "backbone=transformer_nano, bigbird_nano or reformer_nano, or image data.",
    ),
    (
        ["task=listops"],
        "task=listops cannot be used with data=mnist_5k; use classification.",
    ),
    (
        ["backbone=bigbird_nano", "data=listops_short"],
        "task=classification cannot be used with data=listops_short; use listops.",
    ),
    (
        [*LISTOPS, "pretrain=standard"],
        "pretrain=standard cannot be used with backbone=bigbird_nano: masked image modelling needs "
        "images; use pretrain=none.",
    ),
    (
        [*LISTOPS, "norm=in"],
        "norm=in cannot be used with backbone=bigbird_nano: its statistics would be over the "
        "padding too; legal are ln, dtn, rms, dyt, scale.",
    ),
    (
        [*LISTOPS, "norm=dtn", "norm.pool_to=14"],
        "norm.pool_to=14 cannot be used with backbone=bigbird_nano: sequences differ in length, "
        "so no cell divides them all; leave it null.",
    ),
    (
        [*LISTOPS, "norm=dtn", "norm.prefix=source"],
        "norm.prefix=source cannot be used with backbone=bigbird_nano, whose first token is an "
        "ordinary position of the sequence; leave it own.",
    ),
    (
        [*LISTOPS, "data.flip=0.5"],
        "data.flip=0.5 has no meaning for data=listops_short; leave it 0.0.",
    ),
    ([*LISTOPS, "task.mixup=0.8"], "task.mixup=0.8 has no meaning for task=listops; leave it 0.0."),
    (
        ["data.max_length=900"],
        "data.max_length=900 has no meaning for data=mnist_5k; leave it 2000.",
    ),
    (
        ["backbone.block_size=8"],
        "backbone.block_size=8 has no meaning for backbone.family=swin; leave it 64.",
    ),
    (
        [*LISTOPS, "data.max_length=112"],
        "data.max_length=112 is too short for the sparse attention of backbone=bigbird_nano: "
        "backbone.block_size=16 and backbone.random_blocks=1 need more than 112 tokens; give "
        "smaller blocks, or use backbone=transformer_nano.",
    ),
    (
        [*LISTOPS, "backbone.depths=[1,1]", "backbone.num_heads=[2,2]"],
        "backbone.depths=[1, 1] has 2 entries, but an encoder of sequences has one stage: give one "
        "number, for example [4].",
    ),
    (
        [*LISTOPS, "data.min_length=300"],
        "data.max_length=200 leaves no length above data.min_length=300; give 302 or more.",
    ),
    (
        ["norm=dtn", "norm.prefix=member"],
        "norm.prefix=member cannot be used with backbone=swin_nano: no token outside the token "
        "grid passes its norms; leave it own, or use a backbone with a class token from the first "
        "block, such as vit_nano.",
    ),
    (
        ["backbone=vit_nano", "norm.prefix=source"],
        "norm.prefix=source has no meaning for norm.name=ln; leave it own or use norm=dtn.",
    ),
    (
        ["backbone=vit_nano", "norm=dtn", "norm.prefix=source", "norm.pool_to=4"],
        "norm.prefix=source needs exact statistics, but norm.pool_to=4; leave one of them at its "
        "default.",
    ),
]


@pytest.mark.parametrize(("overrides", "sentence"), REFUSED, ids=lambda value: str(value)[:40])
def test_refused_with_the_reason(overrides, sentence):
    with pytest.raises(ConfigError) as refusal:
        check(compose_run(overrides))
    assert str(refusal.value) == sentence


@pytest.mark.parametrize("size", ["nano", "listops"])
@pytest.mark.parametrize("family", ["transformer", "bigbird", "reformer"])
@pytest.mark.parametrize("norm", ["ln", "dtn", "dtn_paper", "rms", "dyt", "scale"])
def test_legal(family, size, norm):
    data = "listops_short" if size == "nano" else "listops"
    task = "listops" if size == "nano" else "listops_published"
    overrides = [f"backbone={family}_{size}", f"data={data}", f"task={task}", f"norm={norm}"]
    check(compose_run(overrides))


def test_a_class_token_may_be_source_or_member():
    check(compose_run(["backbone=vit_nano", "norm=dtn", "norm.prefix=member"]))


def test_every_key_counts_where_it_has_a_meaning():
    changed = [
        [*LISTOPS, "data.max_depth=4"],
        [*LISTOPS, "backbone.random_blocks=2"],
        [*LISTOPS, "task.schedule=inverse_sqrt"],
        ["norm=dtn", "backbone=vit_nano", "norm.prefix=source"],
    ]
    keys = {cell_key(compose_run(overrides)) for overrides in ([], LISTOPS, *changed)}
    assert len(keys) == 6
