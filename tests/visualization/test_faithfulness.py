"""Deletion and insertion curves against independent reference numbers."""

import pytest
import torch

from triptych.visualization.faithfulness import faithfulness, faithfulness_by_method

SCORES = {
    "rollout": "rollout_rownorm",
    "attribution": "cheferlrp_transformer_attribution",
    "gradcam": "gradcam_raw_grid",
}


@pytest.mark.parametrize("method", SCORES)
@pytest.mark.parametrize(("colour", "fill"), [("gray", 0.0), ("black", -1.0)])
def test_equals_the_reference(vit, forward, attribution, method, colour, fill):
    image = forward["x"][0]
    target = int(forward["logits"][0].argmax())
    curves = faithfulness(
        vit, image, attribution[SCORES[method]], (8, 8), target, fill=fill, batch_size=65
    )
    for name in ("deletion", "insertion"):
        wanted = attribution[f"{name}_{method}_{colour}"]
        torch.testing.assert_close(getattr(curves, name), wanted.float(), atol=1e-4, rtol=0)
    area = attribution[f"auc_{method}_{colour}"]
    assert curves.deletion_area == pytest.approx(float(area[0]), abs=1e-4)
    assert curves.insertion_area == pytest.approx(float(area[1]), abs=1e-4)


def test_ends_are_the_whole_and_the_empty_image():
    seen = []

    def logits_of(images):
        seen.append(images)
        return torch.stack((images.mean((1, 2, 3)), torch.zeros(len(images))), 1)

    image = torch.rand(3, 4, 4) + 1
    curves = faithfulness(logits_of, image, torch.rand(4), (2, 2), 0, batch_size=2)
    whole = logits_of(image[None]).softmax(-1)[0, 0]
    assert curves.deletion[0] == curves.insertion[-1] == whole
    assert curves.deletion[-1] == curves.insertion[0] == 0.5
    assert max(len(images) for images in seen) == 2


def test_scores_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="3 scores were given; a 2x2 grid needs 4 finite ones"):
        faithfulness(lambda x: x, torch.zeros(1, 4, 4), torch.zeros(3), (2, 2), 0)


def test_methods_together_give_what_each_gives_alone(vit, forward, attribution):
    image, target = forward["x"][0], int(forward["logits"][0].argmax())
    scores = {method: attribution[name].reshape(8, 8) for method, name in SCORES.items()}
    together = faithfulness_by_method(vit, image, scores, (8, 8), target)
    for method, score in scores.items():
        alone = faithfulness(vit, image, score, (8, 8), target)
        for name in ("deletion", "insertion"):
            ours, wanted = getattr(together[method], name), getattr(alone, name)
            torch.testing.assert_close(ours, wanted, atol=1e-6, rtol=0)


def test_steps_of_several_cells_are_points_of_the_whole_curve(vit, forward, attribution):
    image, scores = forward["x"][0], {"rollout": attribution[SCORES["rollout"]].reshape(8, 8)}
    whole = faithfulness_by_method(vit, image, scores, (8, 8), 0)["rollout"]
    coarse = faithfulness_by_method(vit, image, scores, (8, 8), 0, step=4)["rollout"]
    for name in ("deletion", "insertion"):
        ours, wanted = getattr(coarse, name), getattr(whole, name)
        torch.testing.assert_close(ours, wanted[::4], atol=1e-6, rtol=0)


def test_every_state_is_run_once():
    seen = []

    def logits_of(images):
        seen.extend(images)
        return torch.zeros(len(images), 2)

    scores = {name: torch.rand(16) for name in ("a", "b", "c")}
    faithfulness_by_method(logits_of, torch.rand(1, 8, 8), scores, (4, 4), 0, step=4)
    assert len(seen) == 2 + 3 * 2 * 3


def test_a_step_that_leaves_cells_over_is_refused():
    with pytest.raises(ValueError, match="step=3 does not divide the 4 cells of the grid"):
        faithfulness_by_method(
            lambda x: x, torch.zeros(1, 4, 4), {"a": torch.zeros(4)}, (2, 2), 0, step=3
        )
