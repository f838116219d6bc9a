"""Attention rollout against the official cells, vit-explain and the definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer

from triptych.visualization.attention_map import fuse_heads
from triptych.visualization.capture import capture
from triptych.visualization.rollout import (
    attention_rollout,
    discard_lowest,
    image_relevance,
    merging_matrix,
    mixing_matrix,
    rollout_to_input,
)


def random_attention(*shape, seed=0, sharpness=3.0):
    generator = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(*shape, generator=generator)).softmax(-1)


def test_mixing_matrix_equals_the_official_cell(forward):
    mixing = mixing_matrix(forward["attn"].mean(2), residual=True)
    torch.testing.assert_close(mixing, forward["aug_att"], atol=1e-6, rtol=0)


def test_rollout_equals_the_official_cell(forward):
    rollout = attention_rollout(forward["attn"])
    torch.testing.assert_close(rollout, forward["joint_att"], atol=1e-6, rtol=0)


def test_relevance_equals_the_official_heat_map(vit_capture, forward):
    relevance = image_relevance(vit_capture)
    scaled = relevance / relevance.amax((1, 2), keepdim=True)
    torch.testing.assert_close(scaled, forward["rollout_grid"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("head_fusion", ["mean", "max", "min"])
@pytest.mark.parametrize("discard", [0.0, 0.9])
def test_fusion_and_discard_equal_vit_explain(forward, attribution, head_fusion, discard):
    """vit-explain divides by row sums along the wrong axis; done the same way here."""
    fused = fuse_heads(forward["attn"][:1], head_fusion, 2)
    rollout = torch.eye(65)
    for kept in discard_lowest(fused, discard)[0]:
        mixing = (kept + torch.eye(65)) / 2
        rollout = (mixing / mixing.sum(-1)) @ rollout
    heat = rollout[0, 1:].view(8, 8)
    golden = attribution[f"vitexplain_rollout_{head_fusion}_{discard}"]
    torch.testing.assert_close(heat / heat.max(), golden, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("stage", "index"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_swin_rollout_equals_the_reference(swin_capture, hier, stage, index):
    rollout = rollout_to_input(swin_capture)[2 * stage + index]
    golden = hier[f"s{stage}b{index}/rollout_to_input"]
    torch.testing.assert_close(rollout[0], golden, atol=1e-6, rtol=0)


def test_swin_relevance_equals_the_reference(swin_capture, hier):
    relevance = image_relevance(swin_capture)
    torch.testing.assert_close(relevance[0], hier["relevance_gap_16x16"], atol=1e-6, rtol=0)


def test_merging_covers_the_reference_parents(hier):
    merging = merging_matrix((16, 16), (8, 8))
    assert torch.equal(merging.argmax(1), hier["merge_matrix_support"].long())
    assert torch.equal(merging.count_nonzero(1), torch.full((64,), 4))


@pytest.mark.parametrize("head_fusion", ["mean", "max", "min"])
@pytest.mark.parametrize("residual", [True, False])
def test_one_stage_rollout_to_input_is_the_rollout(vit_capture, residual, head_fusion):
    plain = attention_rollout(vit_capture.attention(), residual, head_fusion)
    steps = rollout_to_input(vit_capture, residual=residual, head_fusion=head_fusion)
    torch.testing.assert_close(torch.stack(steps, 1), plain, atol=1e-6, rtol=1e-5)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.tuples(st.integers(1, 2), st.integers(1, 4), st.integers(1, 3), st.integers(1, 7)),
    st.booleans(),
    st.sampled_from(["mean", "max", "min"]),
    st.integers(0, 2**20),
)
def test_rollout_equals_the_definition_and_rows_sum_to_one(shape, residual, head_fusion, seed):
    batch, layers, heads, tokens = shape
    attention = random_attention(batch, layers, heads, tokens, tokens, seed=seed).double()
    rollout = attention_rollout(attention, residual, head_fusion)
    assert rollout.shape == (batch, layers, tokens, tokens)
    reduce = {
        "mean": lambda a: a.mean(0),
        "max": lambda a: a.max(0)[0],
        "min": lambda a: a.min(0)[0],
    }
    for image in range(batch):
        so_far = torch.eye(tokens, dtype=torch.float64)
        for layer in range(layers):
            step = reduce[head_fusion](attention[image, layer])
            step = step + torch.eye(tokens) if residual else step
            so_far = (step / step.sum(1, keepdim=True)) @ so_far
            torch.testing.assert_close(rollout[image, layer], so_far)
    torch.testing.assert_close(rollout.sum(-1), torch.ones_like(rollout.sum(-1)))


def test_discard_keeps_rows_whole_and_the_class_token():
    attention = random_attention(2, 3, 2, 9, 9)
    rollout = attention_rollout(attention, discard=0.8)
    torch.testing.assert_close(rollout.sum(-1), torch.ones(2, 3, 9))
    kept = discard_lowest(torch.arange(16.0).view(1, 4, 4) + 1, 0.5)
    assert kept.flatten().tolist() == [1, *[0] * 7, *range(9, 17)]


def test_swin_rows_sum_to_one(swin_capture):
    for rollout in rollout_to_input(swin_capture):
        torch.testing.assert_close(rollout.sum(-1), torch.ones(rollout.shape[:2]))


def test_absent_tokens_stay_themselves():
    attention = random_attention(1, 2, 2, 4, 4)
    attention[..., 3] = 0
    attention[..., 3, :] = 0
    attention = attention / attention.sum(-1, keepdim=True).clamp_min(1e-9)
    rollout = attention_rollout(attention)
    assert rollout[0, -1, 3].tolist() == [0, 0, 0, 1]
    with pytest.raises(
        ValueError, match=r"^a token attends to nothing after head fusion; use residual=True$"
    ):
        attention_rollout(attention, residual=False)


def test_gradients_reach_the_attention():
    attention = random_attention(1, 2, 2, 4, 4).requires_grad_()
    attention_rollout(attention)[0, -1, 0, 1].backward()
    assert attention.grad is not None
    assert bool(attention.grad.abs().sum() > 0)


def test_half_precision_is_multiplied_in_float32():
    assert attention_rollout(random_attention(1, 2, 2, 5, 5).half()).dtype == torch.float32


def test_merging_an_odd_grid_averages_the_parents_that_exist():
    merging = merging_matrix((3, 3), (2, 2))
    assert merging[0].tolist() == [0.25, 0.25, 0, 0.25, 0.25, 0, 0, 0, 0]
    assert merging[1].tolist() == [0, 0, 0.5, 0, 0, 0.5, 0, 0, 0]
    assert merging[3].tolist() == [0, 0, 0, 0, 0, 0, 0, 0, 1]


def test_averaging_heads_read_the_mean_over_grid_tokens():
    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=3,
        reg_tokens=2, class_token=False, global_pool="avg",
    )  # fmt: skip
    captured = capture(model, torch.randn(2, 3, 16, 16))
    last = rollout_to_input(captured)[-1]
    relevance = image_relevance(captured)
    assert relevance.shape == (2, 4, 4)
    torch.testing.assert_close(relevance.flatten(1), last[:, 2:, 2:].mean(1))


@pytest.mark.parametrize(
    ("attention", "options", "sentence"),
    [
        (
            torch.ones(2, 3, 4, 4) / 4,
            {},
            r"attention has shape \(2, 3, 4, 4\); give \(images, blocks, heads, tokens, tokens\)",
        ),
        (
            torch.ones(1, 1, 1, 2, 2, dtype=torch.long),
            {},
            r"attention is torch.int64 of shape \(1, 1, 1, 2, 2\); "
            "give floating-point probabilities with no empty dimension",
        ),
        (
            torch.full((1, 1, 1, 2, 2), -1.0),
            {},
            "attention has a smallest entry of -1 and a largest row sum of -2; "
            "give post-softmax attention, whose rows are probabilities",
        ),
        (
            torch.ones(1, 1, 1, 2, 2),
            {},
            "attention has a smallest entry of 1 and a largest row sum of 2; "
            "give post-softmax attention, whose rows are probabilities",
        ),
        (
            torch.ones(1, 1, 1, 2, 2) / 2,
            {"discard": 1.0},
            "discard is 1.0; give a fraction from 0 up to, not including, 1",
        ),
        (
            torch.ones(1, 1, 1, 2, 2) / 2,
            {"discard": 0.5, "residual": False},
            "discard=0.5 can empty a row; use it with residual=True",
        ),
    ],
)
def test_bad_input_gets_one_sentence(attention, options, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        attention_rollout(attention, **options)


def test_impossible_merging_is_refused():
    with pytest.raises(ValueError, match=r"^patch merging takes a grid of 4x4 to 2x2, not to 3x2$"):
        merging_matrix((4, 4), (3, 2))


@pytest.mark.parametrize(("index", "name"), list(enumerate(("s0b0", "s0b1", "s1b0", "s1b1"))))
def test_twins_rollout_equals_the_reference(twins_capture, twins_reference, index, name):
    rollout = rollout_to_input(twins_capture)[index]
    golden = twins_reference[f"{name}/rollout_to_input"]
    torch.testing.assert_close(rollout[0], golden, atol=1e-6, rtol=0)


def test_twins_relevance_equals_the_reference(twins_capture, twins_reference):
    relevance = image_relevance(twins_capture)
    golden = twins_reference["relevance_gap_16x16"]
    torch.testing.assert_close(relevance[0], golden, atol=1e-6, rtol=0)


def test_rows_of_every_familys_rollout_sum_to_one(family, make_family, family_images):
    captured = capture(make_family(family), family_images)
    for step, block in zip(rollout_to_input(captured), captured.blocks, strict=True):
        assert step.shape[1] == block.hidden.shape[1]
        torch.testing.assert_close(step.sum(-1), torch.ones(step.shape[:-1]))
    relevance = image_relevance(captured)
    assert relevance.shape == (2, *captured.blocks[0].grid)
    assert (relevance >= 0).all()


def naive_shares(before, block):
    """Which tokens of the stage before each token reads, from kernel, stride and padding."""
    reduction, rows = block.reduction, []
    for row in range(block.grid[0]):
        for col in range(block.grid[1]):
            reads = torch.zeros(before.grid)
            top = row * reduction.stride[0] - reduction.padding[0]
            left = col * reduction.stride[1] - reduction.padding[1]
            for y in range(top, top + reduction.kernel[0]):
                for x in range(left, left + reduction.kernel[1]):
                    if 0 <= y < before.grid[0] and 0 <= x < before.grid[1]:
                        reads[y, x] = 1
            rows.append(reads.flatten() / reads.sum())
    return torch.stack(rows)


def naive_dense(block, image):
    """Head mean of a block's attention on tokens, entry by entry."""
    made = block.attention_map
    keys = made.tokens if block.key_grid is None else block.key_grid[0] * block.key_grid[1]
    dense = [[0.0] * keys for _ in range(made.tokens)]
    mean = made.probabilities[image].mean(1).tolist()
    spread = None if made.spread is None else made.spread.tolist()
    for window in range(len(made.token_index)):
        for query, at in enumerate(made.token_index[window].tolist()):
            for key, source in enumerate(made.keys[window].tolist()):
                value = mean[window][query][key]
                if at >= 0 and source >= 0 and spread is None:
                    dense[at][source] += value
                elif at >= 0 and source >= 0:
                    for token, share in enumerate(spread[source]):
                        dense[at][token] += value * share
    return torch.tensor(dense)


def test_hierarchical_rollout_equals_a_dense_composition_by_loops(
    family, make_family, family_images
):
    captured = capture(make_family(family), family_images[:1])
    prefix = captured.prefix_tokens
    first = captured.blocks[0]
    sources = prefix + first.grid[0] * first.grid[1]
    content = {("grid", i): torch.eye(sources)[prefix + i] for i in range(sources - prefix)}
    before, rollout = None, rollout_to_input(captured)
    for block, step in zip(captured.blocks, rollout, strict=True):
        if block.reduction is not None:
            fine = torch.stack([content["grid", i] for i in range(before.grid[0] * before.grid[1])])
            coarse = naive_shares(before, block) @ fine
            content = {k: v for k, v in content.items() if k[0] == "prefix"}
            content |= {("grid", i): row for i, row in enumerate(coarse)}
        for number in range(block.prefix_tokens):
            content.setdefault(("prefix", number), torch.eye(sources)[number])
        tokens = [("prefix", i) for i in range(block.prefix_tokens)]
        fine_grid = block.key_grid or block.grid
        entering = torch.stack(
            [content[key] for key in tokens]
            + [content["grid", i] for i in range(fine_grid[0] * fine_grid[1])]
        )
        mixing = naive_dense(block, 0)
        if block.key_grid is None:
            mixing = mixing + torch.eye(len(mixing))
        leaving = torch.stack([row / row.sum() for row in mixing]) @ entering
        torch.testing.assert_close(step[0], leaving, atol=1e-6, rtol=1e-4)
        tokens += [("grid", i) for i in range(block.grid[0] * block.grid[1])]
        content = dict(zip(tokens, leaving, strict=True))
        before = block


def test_a_late_class_token_has_empty_rows_before_it_joins(make_family, family_images):
    captured = capture(make_family("released_vit"), family_images)
    attention = captured.attention()
    assert attention.shape == (2, 4, 2, 65, 65)
    assert not attention[:, :2, :, 0].any()
    assert not attention[:, :2, :, :, 0].any()
    rollout = attention_rollout(attention)
    torch.testing.assert_close(rollout[:, -1], rollout_to_input(captured)[-1])
