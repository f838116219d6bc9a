"""Deletion and insertion curves against independent reference numbers."""

import pytest
import torch

from triptych.visualization.faithfulness import faithfulness

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
