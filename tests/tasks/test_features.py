"""What is taken for a feature: on every backbone, what its classifier makes logits of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from triptych.assembly import build_model
from triptych.hydra_app import compose_run
from triptych.paths import CONF
from triptych.tasks.features import Features, classifier_of, extract, scores

NANO = sorted(
    path.stem
    for path in (CONF / "backbone").glob("*_nano.yaml")
    if path.stem.split("_")[0] not in ("transformer", "bigbird", "reformer")
)


@pytest.mark.parametrize("backbone", NANO)
def test_the_classifier_makes_the_logits_of_the_features(backbone: str) -> None:
    model = build_model(compose_run([f"backbone={backbone}", "norm=dtn"]), 7)
    images = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    batches = [(images[:2], torch.tensor([0, 1]), None), (images[2:], torch.tensor([2]), None)]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    features, labels = extract(model, batches, torch.device("cpu"))
    layer = classifier_of(model)
    assert layer.out_features == 7
    assert features.shape == (3, layer.in_features)
    assert labels.tolist() == [0, 1, 2]
    with torch.no_grad():
        assert torch.allclose(layer(features), model.eval()(images), atol=1e-5)
    assert all(torch.equal(before[name], part) for name, part in model.state_dict().items())


def test_a_model_without_a_linear_layer() -> None:
    with pytest.raises(ValueError, match=r"^ReLU has") as failure:
        classifier_of(nn.ReLU())
    assert str(failure.value) == "ReLU has no linear layer that could be its classifier"


def test_they_are_kept_whole(tmp_path: Path) -> None:
    kept = Features(torch.randn(4, 3), torch.arange(4), torch.randn(2, 3), torch.arange(2))
    kept.save(tmp_path / "features.safetensors")
    found = Features.load(tmp_path / "features.safetensors")
    assert all(torch.equal(part, vars(found)[name]) for name, part in vars(kept).items())
    assert found.labelled(torch.tensor([1, 3])).train_labels.tolist() == [1, 3]
    assert len(found.labelled(torch.tensor([1, 3])).test) == 2


def test_scores_by_hand() -> None:
    logits = torch.tensor([[3.0, 2, 1, 0, -1, -2], [0, 1, 2, 3, 4, 5], [9, 8, 7, 6, 5, 4]])
    found = scores(logits, torch.tensor([0, 0, 4]), loss=False)
    assert found == {
        "test/accuracy": pytest.approx(1 / 3),
        "test/accuracy_top5": pytest.approx(2 / 3),
    }
    even = scores(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]))
    assert even == {"test/accuracy": 0.75, "test/loss": pytest.approx(0.6931472)}
