from __future__ import annotations

import pytest
import torch
from timm.models.swin_transformer import PatchMerging

from triptych.mim.checkpoints import decoder_state, swin_state
from triptych.mim.masks import mask_from_noise
from triptych.mim.token_plan import StageShape, plan_mask
from triptych.mim.windows import Lattice


def test_every_tensor_finds_its_place(golden, build_golden_swin):
    reference = golden("swin_p2")
    model = build_golden_swin(reference)
    weights = reference.weights()
    weights["encoder.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49)
    weights["encoder.layers.0.blocks.1.attn_mask"] = torch.zeros(9, 49, 49)
    assert set(swin_state(weights)) == set(model.state_dict())
    assert set(decoder_state(weights)) == {
        "mask_token", "embed.weight", "embed.bias", "norm.weight", "norm.bias", "head.weight",
        "head.bias", *(f"blocks.0.{name}.{kind}" for kind in ("weight", "bias") for name in (
            "norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")),
    }  # fmt: skip


def test_a_classifier_is_kept():
    state = {"patch_embed.proj.weight": torch.zeros(1), "head.weight": torch.ones(1)}
    assert set(swin_state(state)) == {"patch_embed.proj.weight", "head.fc.weight"}


def test_merging_of_the_reference(golden):
    reference = golden("misc_public")
    rows, columns = reference.arrays["merge/coords"].T
    side = 2 * (int(max(rows.max(), columns.max())) // 2 + 1)
    visible = torch.zeros(side // 2, side // 2, dtype=torch.bool)
    visible[rows // 2, columns // 2] = True
    units = (side // 2, side // 2)
    stages = [StageShape((side, side), 6), StageShape(units, 12)]
    plan = plan_mask(~visible.view(1, -1), units, stages, Lattice.backbone)
    assert plan.stages[0].tokens[0].tolist() == (rows * side + columns).tolist()
    coordinates = reference.tensor("merge/coords_out")
    merged = plan.stages[1].tokens[0]
    assert torch.equal(coordinates, torch.stack((merged // units[1], merged % units[1]), 1))
    children = plan.stages[1].children.gather(reference.tensor("merge/x"))
    merging = PatchMerging(6)
    merging.load_state_dict(
        {
            "norm.weight": reference.tensor("merge/norm_weight"),
            "norm.bias": reference.tensor("merge/norm_bias"),
            "reduction.weight": reference.tensor("merge/reduction_weight"),
        }
    )
    with torch.no_grad():
        out = merging.reduction(merging.norm(children.reshape(2, -1, 24)))
    torch.testing.assert_close(out, reference.tensor("merge/out"), atol=2e-5, rtol=1e-5)


def test_row_first_merging_is_undone(golden):
    """Children given in row-first order to weights in that order: the same result."""
    reference = golden("misc_public")
    name = "layers.0.downsample."
    column_first = {
        "patch_embed.proj.weight": torch.zeros(1),
        f"{name}norm.weight": reference.tensor("merge/norm_weight"),
        f"{name}norm.bias": reference.tensor("merge/norm_bias"),
        f"{name}reduction.weight": reference.tensor("merge/reduction_weight"),
    }
    order = torch.arange(24).view(4, 6)[[0, 2, 1, 3]].flatten()
    row_first = {n: t[..., order] if t.shape[-1] == 24 else t for n, t in column_first.items()}
    restored = swin_state(row_first, row_first_merging=True)
    for key, tensor in swin_state(column_first).items():
        assert torch.equal(restored[key], tensor)
    assert not torch.equal(
        swin_state(row_first)["layers.1.downsample.norm.weight"],
        restored["layers.1.downsample.norm.weight"],
    )


def test_children_of_each_sample_are_its_own():
    mask = mask_from_noise(torch.rand(3, 6, generator=torch.Generator().manual_seed(0)), 0.5)
    plan = plan_mask(mask, (2, 3), [StageShape((4, 6), 1), StageShape((2, 3), 1)], Lattice.backbone)
    tokens = plan.stages[0].tokens
    sample = torch.arange(3)[:, None].expand_as(tokens)
    code = (100 * sample + tokens).reshape(1, -1, 1)
    children = plan.stages[1].children.gather(code).view(3, 3, 4)
    for index in range(3):
        parents = plan.stages[1].tokens[index]
        corner = 2 * (parents // 3) * 6 + 2 * (parents % 3) + 100 * index
        assert torch.equal(children[index], corner[:, None] + torch.tensor([0, 6, 1, 7]))


def test_errors():
    with pytest.raises(ValueError) as error:  # noqa: PT011
        swin_state({"a": torch.zeros(1)})
    assert str(error.value) == "not a Swin checkpoint: no patch_embed.proj.weight among ['a']"
    with pytest.raises(ValueError) as error:  # noqa: PT011
        decoder_state({"a": torch.zeros(1)})
    assert str(error.value) == (
        "not a masked-image-modelling checkpoint: no decoder_embed.weight among ['a']"
    )
