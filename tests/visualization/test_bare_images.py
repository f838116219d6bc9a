"""Images of which no object and no label is known; and that no pass is made twice."""

import numpy as np
import pytest
import torch

from triptych.backbones.build import BackboneSpec, Family, build_backbone
from triptych.visualization.evidence import gather_evidence
from triptych.visualization.findings import Verdict, evaluate_findings
from triptych.visualization.full_gallery import full_gallery
from triptych.visualization.perturbations import Occlusion, generator_of
from triptych.visualization.picture import annotated
from triptych.visualization.probe_set import ProbeSet, bare_probe_set, shuffle_labels
from triptych.visualization.readings import neighbour_purity, read
from triptych.visualization.robustness import known_predictions, predictions, robustness_rows

VIT = BackboneSpec(Family.vit, embed_dim=16, depths=(3,), num_heads=(2,))
COUNT = 6


def build(classes=5):
    torch.manual_seed(0)
    return build_backbone(VIT, image_size=(32, 32), channels=1, num_classes=classes)


def noise():
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, 1, 32, 32), dtype=np.uint8)
    return torch.from_numpy(pixels)


@pytest.fixture(scope="module")
def bare():
    return bare_probe_set(noise(), (0.2,), (0.25,))


@pytest.fixture(scope="module")
def masked():
    instances = torch.zeros(COUNT, 32, 32, dtype=torch.uint8)
    instances[:, :12, :12], instances[:, 16:28, 16:28] = 1, 2
    return ProbeSet(noise(), instances, (("a", "b"),) * COUNT, None, (0.2,), (0.25,))


def counted(model):
    """Images that pass through ``model`` from now on, batch by batch."""
    batches = []
    model.register_forward_hook(lambda _model, _args, output: batches.append(len(output)))
    return batches


def test_one_pass_answers_all_that_can_be_asked(bare):
    model = build()
    batches = counted(model)
    evidence = gather_evidence(model, bare)
    assert batches == [COUNT]
    assert not evidence.shuffled
    assert not evidence.occluded
    found = {one.number: one for one in evaluate_findings(evidence)}
    assert found["F5"].verdict is not Verdict.unanswered
    for number in ("F4", "F7", "F8", "F9", "F11", "F12", "F13", "F14"):
        assert found[number].verdict is Verdict.unanswered
    assert found["F7"].reason == "no image of the probe set has an object"


def test_gallery_of_bare_images(bare):
    found = full_gallery(build(), bare, build())
    assert [one.name for one in found.pictures] == [
        "findings", "robustness", "faithfulness", "embedding",
    ]  # fmt: skip
    robust = next(one for one in found.pictures if one.name == "robustness")
    assert {row["disturbance"] for row in robust.rows} == {"none", "drop random", "shuffle"}
    assert {row["number"] for row in robust.rows} == {"agreement"}


def test_few_bare_images_have_no_sheet_of_findings(bare):
    found = full_gallery(build(), bare.take([0, 1]))
    assert "findings" not in [one.name for one in found.pictures]


def test_a_model_of_one_output_is_not_asked_for_classes(bare):
    found = full_gallery(build(classes=1), bare)
    assert [one.name for one in found.pictures] == ["findings", "embedding"]


def test_known_predictions_are_those_that_would_be_made(masked):
    model = build()
    known = known_predictions(gather_evidence(model, masked))
    assert known.keys() == {
        ("none", 0.0), ("shuffle", 2.0), ("shuffle", 8.0), ("drop random", 0.5),
        ("drop salient", 0.5), ("drop non_salient", 1.0),
    }  # fmt: skip
    assert torch.equal(known["shuffle", 2.0], predictions(model, masked.shuffled(2)))
    dropped = masked.occluded(Occlusion.salient, 0.5)
    assert torch.equal(known["drop salient", 0.5], predictions(model, dropped))
    assert robustness_rows(model, masked, known) == robustness_rows(model, masked)


def test_known_predictions_save_their_passes(masked):
    model = build()
    known = known_predictions(gather_evidence(model, masked))
    batches = counted(model)
    robustness_rows(model, masked)
    without = len(batches)
    robustness_rows(model, masked, known)
    assert len(batches) == 2 * without - 5


def test_control_is_of_the_same_pass(masked):
    """Object tokens dealt out anew: other neighbours, nothing else changed."""
    model = build()
    evidence = gather_evidence(model, masked)
    alone = read(model, masked)
    np.testing.assert_array_equal(evidence.plain.neighbours, alone.neighbours)
    np.testing.assert_array_equal(evidence.plain.head_rows, evidence.permuted.head_rows)
    layer = alone.layers[-1]
    tokens = shuffle_labels(masked.object_tokens(2, layer.grid), generator_of(1, 2))
    hidden = {}
    model.blocks[-1].register_forward_hook(lambda _m, _a, output: hidden.update(last=output))
    predictions(model, masked)
    wanted = neighbour_purity(hidden["last"][2, 1:], tokens)
    assert evidence.permuted.neighbours[2, -1] == pytest.approx(wanted)
    assert not np.allclose(evidence.permuted.neighbours, evidence.plain.neighbours)


def test_a_stamp_stands_in_figure_and_caption(bare):
    picture = full_gallery(build(), bare).pictures[0]
    texts = len(picture.figure.texts)
    marked = annotated(picture, "Untrained.", "untrained weights")
    assert marked.caption == f"{picture.caption} Untrained."
    assert [text.get_text() for text in marked.figure.texts[texts:]] == ["untrained weights"]
