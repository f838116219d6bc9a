"""What is asked of a model on a probe set, and what the answers say."""

import csv
import math

import numpy as np
import pytest
import torch

from triptych.backbones.build import BackboneSpec, Family, build_backbone
from triptych.visualization.evidence import filter_evidence, gather_evidence, views_add_up
from triptych.visualization.filters import patch_filters
from triptych.visualization.findings import (
    Check,
    Finding,
    Verdict,
    evaluate_findings,
    with_controls,
)
from triptych.visualization.findings_gallery import findings_gallery
from triptych.visualization.findings_table import (
    compare_findings,
    finding_metrics,
    finding_rows,
    findings_markdown,
)
from triptych.visualization.full_gallery import full_gallery
from triptych.visualization.grouping_curves import grouping_curves, grouping_rows
from triptych.visualization.intervals import mean_over_images, paired_over_images
from triptych.visualization.perturbations import Occlusion
from triptych.visualization.picture import save_pictures
from triptych.visualization.probe_set import ProbeSet, estimated_probe_set, shuffle_labels
from triptych.visualization.readings import neighbour_purity, read
from triptych.visualization.robustness import robustness_rows

SWIN = BackboneSpec(Family.swin, embed_dim=8, depths=(2, 2), num_heads=(1, 2), window_size=4)
VIT = BackboneSpec(Family.vit, embed_dim=16, depths=(3,), num_heads=(2,))


def squares(count=6, side=32):
    """Images with two bright squares whose masks are known."""
    random = np.random.default_rng(0)
    pixels = torch.from_numpy(random.integers(0, 60, (count, 1, side, side), dtype=np.uint8))
    instances = torch.zeros(count, side, side, dtype=torch.uint8)
    for index in range(count):
        for number, (top, left) in enumerate(((index, 0), (16, 16)), start=1):
            instances[index, top : top + 12, left : left + 12] = number
            pixels[index, 0, top : top + 12, left : left + 12] += 60 * number
    names = (("one", "two"),) * count
    return ProbeSet(pixels, instances, names, torch.arange(count) % 5, (0.2,), (0.25,))


def build(spec, side=32):
    torch.manual_seed(0)
    return build_backbone(spec, image_size=(side, side), channels=1, num_classes=5)


@pytest.fixture(scope="module")
def probe():
    return squares()


@pytest.fixture(scope="module")
def vit_evidence(probe):
    return gather_evidence(build(VIT), probe)


@pytest.fixture(scope="module")
def vit_findings(vit_evidence):
    return evaluate_findings(vit_evidence)


def test_every_statement_is_asked_in_order(vit_findings):
    assert [one.number for one in vit_findings] == [f"F{index}" for index in range(1, 15)]
    by_number = {one.number: one for one in vit_findings}
    assert by_number["F1"].verdict is Verdict.holds
    assert by_number["F10"].verdict is Verdict.unanswered
    assert by_number["F10"].reason == "3 blocks lie on one token grid; 8 are needed"
    assert by_number["F6"].checks[0].values.shape == (6,)
    for one in vit_findings:
        assert bool(one.checks) != bool(one.reason)


def test_what_a_model_lacks_is_said(probe):
    found = {one.number: one for one in evaluate_findings(gather_evidence(build(SWIN), probe))}
    assert found["F6"].reason == "the model has no class token that its head reads"
    assert "the mean over output tokens" in found["F14"].checks[0].quantity


def test_without_two_objects_grouping_cannot_be_asked():
    plain = squares(5)
    single = estimated_probe_set(plain.pixels, plain.mean, plain.std)
    found = {one.number: one for one in evaluate_findings(gather_evidence(build(VIT), single))}
    words = "0 images have two objects of three tokens each; 5 are needed"
    assert found["F8"].reason == found["F11"].reason == words
    assert found["F14"].checks


def test_level_0_is_local_and_views_add_up(probe):
    filters = patch_filters(build(VIT))
    assert filter_evidence(filters, probe).leak.max() <= 1e-6
    assert views_add_up(filters, probe.images(), [0, 3]) < 1e-5


def test_overlapping_filters_are_not_local(probe):
    """The statement can fail: patches that overlap see what happens to their neighbours."""
    filters = patch_filters(build(VIT))
    wide = torch.nn.functional.pad(filters.weight, (2, 2, 2, 2), value=0.1)
    overlapping = type(filters)(wide, filters.stride, (2, 2))
    assert filter_evidence(overlapping, probe).leak.min() > 1e-3


def test_evidence_does_not_depend_on_the_batch(probe):
    model = build(SWIN)
    whole, parts = read(model, probe), read(model, probe, batch_size=4)
    for name, values in whole.rollout.items():
        np.testing.assert_allclose(parts.rollout[name], values, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(parts.neighbours, whole.neighbours)
    assert [layer.stride for layer in whole.layers] == [(4, 4), (4, 4), (8, 8), (8, 8)]


def test_uniform_attention_gives_the_numbers_that_it_must(probe):
    """With all queries and keys 0 a block mixes half itself, half everything alike."""
    model = build(VIT)
    for block in model.blocks:
        torch.nn.init.zeros_(block.attn.qkv.weight)
        torch.nn.init.zeros_(block.attn.qkv.bias)
    found = read(model, probe, grouping=False)
    share = found.rollout["effective_share"][:, 0]
    own, other = 0.5 + 0.5 / 65, 0.5 / 65
    total = own + 63 * other
    wanted = total**2 / (own**2 + 63 * other**2) / 64
    np.testing.assert_allclose(share, wanted, rtol=1e-5)
    np.testing.assert_allclose(found.rollout["head_ratio"], 1, rtol=1e-5)
    assert (found.rollout["own_object_ratio"] > 1).all()
    assert (found.rollout["background_ratio"] < 1).all()


def test_perturbed_sets_keep_image_and_masks_together(probe):
    mixed = probe.shuffled(4)
    for index in range(len(probe)):
        for number in (1, 2):
            before = probe.pixels[index, 0][probe.instances[index] == number]
            after = mixed.pixels[index, 0][mixed.instances[index] == number]
            assert before.sort().values.tolist() == after.sort().values.tolist()
    dropped = probe.occluded(Occlusion.salient, 1.0)
    assert not bool(dropped.pixels[probe.objects[:, None]].any())
    assert not bool(dropped.objects.any())
    assert torch.equal(probe.occluded(Occlusion.random, 0.5).pixels,
                       probe.occluded(Occlusion.random, 0.5).pixels)  # fmt: skip


def test_neighbour_purity_by_hand():
    hidden = torch.tensor([[0.0], [1.0], [2.0], [10.0], [11.0], [12.0]])
    objects = [torch.tensor([0, 1, 2]), torch.tensor([3, 4, 5])]
    assert neighbour_purity(hidden, objects, 2) == 1.0
    mixed = [torch.tensor([0, 1, 3]), torch.tensor([2, 4, 5])]
    assert neighbour_purity(hidden, mixed, 2) == pytest.approx((1 + 1 + 0 + 0 + 1 + 1) / 12)


def test_permuted_labels_keep_tokens_and_sizes():
    objects = [torch.arange(5), torch.arange(10, 13)]
    dealt = shuffle_labels(objects, np.random.default_rng(0))
    assert [len(one) for one in dealt] == [5, 3]
    assert torch.cat(dealt).sort().values.tolist() == [*range(5), 10, 11, 12]


def _check(values, **changes):
    options = {"bound": 0.0} | changes
    return Check("one", "a number", np.asarray(values, dtype=float), **options)


def test_a_check_needs_its_whole_interval_beyond_the_bound():
    assert _check([1, 2, 3, 2, 1]).verdict is Verdict.holds
    wavering = _check([1, -2, 3, -1, 2])
    assert wavering.verdict is Verdict.fails
    assert wavering.reason == "the interval holds the bound"
    assert _check([-1, -2, -3, -2, -1]).reason == ""
    assert _check([-1, -2, -3, -2, -1], above=False).verdict is Verdict.holds
    few = _check([1, 2, math.nan, math.nan, math.nan])
    assert few.verdict is Verdict.unanswered
    assert few.reason == "2 images have a number; 5 are needed"
    assert _check([0, 0.5], bound=0.4, above=False, every=True).verdict is Verdict.fails


def test_a_statement_holds_if_all_its_checks_do():
    good, bad, none = _check([1, 2, 3, 2, 1]), _check([-1, -2, -3, -2, -1]), _check([1.0])
    assert Finding("F0", "s", (good, good)).verdict is Verdict.holds
    assert Finding("F0", "s", (good, bad)).verdict is Verdict.fails
    assert Finding("F0", "s", (good, bad, none)).verdict is Verdict.fails
    assert Finding("F0", "s", (good, none)).verdict is Verdict.unanswered
    assert Finding("F0", "s", reason="why").verdict is Verdict.unanswered


def test_what_holds_untrained_too_is_said_so():
    good, bad = _check([1, 2, 3, 2, 1]), _check([-1, -2, -3, -2, -1])
    trained = [Finding("F1", "s", (good,)), Finding("F2", "s", (good,)), Finding("F3", "s", (bad,))]
    controls = [
        Finding("F1", "s", (bad,)),
        Finding("F2", "s", (good,)),
        Finding("F3", "s", (good,)),
    ]
    beside = with_controls(trained, controls)
    words = ["holds", "holds also untrained", "does not hold"]
    assert [str(one.judgement) for one in beside] == words
    rows = finding_rows(beside)
    assert [row["verdict"] for row in rows] == [row["met"] for row in rows] == words
    assert [row["untrained"] for row in rows] == [-1.8, 1.8, 1.8]
    assert rows[0]["untrained_low"] < -1.8 < rows[0]["untrained_high"]
    assert finding_rows(trained)[0]["untrained"] is None
    assert finding_metrics(beside)["findings/F2/holds"]["value"] == 1.0
    (pair,) = compare_findings(beside[:1], with_controls(trained[:1], controls[1:2]))
    assert (pair["first_untrained"], pair["second_untrained"]) == (-1.8, None)
    (same,) = compare_findings(beside[1:2], beside[1:2])
    assert same["first_verdict"] == same["second_verdict"] == "holds also untrained"


def test_an_untrained_network_is_its_own_control(probe):
    """Of a network that learned nothing, nothing may be said to hold by learning."""
    found = findings_gallery(build(VIT), probe, build(VIT))
    asked = [one for one in found.findings if one.checks]
    assert asked
    for one in asked:
        assert one.judgement is not Verdict.holds
        for check in one.checks:
            control = one.control_of(check)
            np.testing.assert_array_equal(control.values, check.values)
    assert "on 6 of the images" in found.pictures[0].caption


def test_of_large_images_the_control_sees_the_first():
    large = squares(18, side=128)
    found = findings_gallery(build(VIT, 128), large, build(VIT, 128))
    (f14,) = [one for one in found.findings if one.number == "F14"]
    assert (f14.checks[0].mean.count, f14.control.checks[0].mean.count) == (18, 16)


def test_intervals_are_those_of_student():
    found = mean_over_images(np.array([1.0, 2.0, math.nan, 3.0]))
    assert (found.value, found.count) == (2.0, 3)
    assert found.high - found.value == pytest.approx(4.302652729749464 / math.sqrt(3))
    change = paired_over_images(np.array([1.0, 2, 3]), np.array([1.5, 1.0, 3.2]))
    assert change.verdict == "no detectable difference"
    with pytest.raises(ValueError, match="compare runs that saw the same probe set"):
        paired_over_images(np.zeros(2), np.zeros(3))


def test_pair_of_models_is_compared_image_by_image(vit_findings):
    rows = compare_findings(vit_findings, vit_findings)
    assert rows
    assert all(row["difference"] == 0 for row in rows if row["images"])
    assert {row["verdict"] for row in rows if row["images"] > 1} == {"no detectable difference"}


def test_table_and_scalars(vit_findings):
    rows = finding_rows(vit_findings)
    assert len({tuple(row) for row in rows}) == 1
    assert {row["finding"] for row in rows} == {f"F{index}" for index in range(1, 15)}
    metrics = finding_metrics(vit_findings)
    assert metrics["findings/F1/holds"] == {"value": 1.0, "unit": "fraction"}
    assert "findings/F10/holds" not in metrics
    assert all(math.isfinite(one["value"]) for one in metrics.values())
    assert findings_markdown(vit_findings).count("\n") == len(rows) + 1


def test_grouping_rows_hold_every_condition(probe, vit_evidence):
    rows = grouping_rows(grouping_curves(vit_evidence, vit_evidence))
    conditions = {row["condition"] for row in rows}
    assert conditions >= {"whole", "shuffled 2x2", "permuted labels", "random weights"}
    same = [row for row in rows if row["condition"] == "random weights"]
    assert all(row["difference"] == 0 for row in same)


def test_robustness_starts_from_the_undisturbed_images(probe):
    rows = robustness_rows(build(VIT), probe)
    assert rows[0]["disturbance"] == "none"
    assert rows[0]["number"] == "accuracy"
    unlabelled = estimated_probe_set(probe.pixels, probe.mean, probe.std)
    agreement = robustness_rows(build(VIT), unlabelled)
    assert agreement[0]["mean"] == 1.0
    assert {row["number"] for row in agreement} == {"agreement"}


@pytest.mark.parametrize("spec", [VIT, SWIN], ids=["vit", "swin"])
def test_whole_gallery_is_written(tmp_path, probe, spec):
    model = build(spec)
    found = full_gallery(model, probe, build(spec))
    names = ["findings", "grouping", "robustness", "faithfulness", "embedding"]
    assert [picture.name for picture in found.pictures] == names
    for entry in save_pictures(found.pictures, tmp_path / "pictures"):
        with (tmp_path / entry["numbers"]).open(newline="") as file:
            assert len(list(csv.DictReader(file))) > 1
