"""The released ViT and PVT against the official models: logits, gradients and ten AdamW steps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych.backbones import ReleasedPvt, ReleasedViT
from triptych.norms import replace_norms

REFERENCE = Path(__file__).parents[1] / "reference" / "dtn"
NAMES = ["vit_dtn_tiny", "vit_dtnvar_tiny", "pvt_dtnpool_tiny"]
OPTIONS: dict[str, dict] = {"dtn": {}, "dtn_var": {"mean": "token"}, "dtn_pool": {"pool_to": 14}}


class Golden:
    """One reference file and the model that it describes."""

    def __init__(self, name: str) -> None:
        with np.load(REFERENCE / f"{name}.npz") as file:
            self.arrays = {key: file[key] for key in file.files}
        self.config = json.loads(str(self.arrays["config"]))
        self.target = torch.from_numpy(self.arrays["target"])

    def under(self, prefix: str) -> dict[str, np.ndarray]:
        return {
            key.removeprefix(prefix): value
            for key, value in self.arrays.items()
            if key.startswith(prefix)
        }

    def model(self, dtype: torch.dtype) -> nn.Module:
        cfg = self.config["cfg"]
        size = (cfg["img_size"], cfg["img_size"])
        common = {"image_size": size, "patch_size": cfg["patch_size"], "eps": 1e-5}
        common |= {"num_classes": cfg["num_classes"], "qkv_bias": cfg.get("qkv_bias", False)}
        model: nn.Module
        if self.config["ctor"] == "VisionTransformer":
            model = ReleasedViT(
                embed_dim=cfg["embed_dim"],
                depth=cfg["depth"],
                num_heads=cfg["num_heads"],
                mlp_ratio=cfg["mlp_ratio"],
                class_token_at=cfg["local_up_to_layer"],
                **common,
            )
        else:
            keys = ("embed_dims", "depths", "num_heads", "mlp_ratios", "sr_ratios")
            model = ReleasedPvt(**{key: cfg[key] for key in keys}, **common)
        replace_norms(model, "dtn", **OPTIONS[cfg["norm_type"]])
        weights = {name: torch.from_numpy(value) for name, value in self.under("param/").items()}
        model.load_state_dict(weights)
        return model.to(dtype)

    def images(self, dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(self.arrays["x"]).to(dtype)


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_gradients_in_double(name: str) -> None:
    golden = Golden(name)
    model = golden.model(torch.float64)
    x = golden.images(torch.float64).requires_grad_()
    logits = model(x)
    loss = F.cross_entropy(logits, golden.target)
    loss.backward()
    expected = golden.arrays
    np.testing.assert_allclose(logits.detach().numpy(), expected["f64/logits"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(loss.item(), expected["f64/loss"], rtol=0, atol=1e-10)
    gradients = {key: p.grad for key, p in model.named_parameters()} | {"gx": x.grad}
    references = golden.under("f64/grad/") | {"gx": expected["f64/gx"]}
    dropped = {key for key in references if key.endswith("pos_proj.bias")}
    assert references.keys() - dropped == gradients.keys()
    for key, gradient in gradients.items():
        assert gradient is not None
        reference = references[key]
        bound = 1e-7 if reference.dtype == np.float32 or reference.size >= 5000 else 1e-9
        difference = np.abs(gradient.numpy() - reference).max()
        assert difference <= bound * np.abs(reference).max(), key
    assert all(np.abs(references[key]).max() <= 1e-9 for key in dropped)


@pytest.mark.parametrize("name", NAMES)
def test_logits_in_single_precision(name: str) -> None:
    golden = Golden(name)
    with torch.no_grad():
        logits = golden.model(torch.float32)(golden.images(torch.float32))
    np.testing.assert_allclose(logits.numpy(), golden.arrays["f64/logits"], rtol=0, atol=1e-5)


def test_ten_steps_of_adamw() -> None:
    """With the official parameter groups, which decay the position weights."""
    golden = Golden("vit_dtn_tiny")
    model = golden.model(torch.float64)
    x = golden.images(torch.float64)
    kept = ("pos_embed", "cls_token")
    decayed = [p for name, p in model.named_parameters() if p.ndim > 1 and name not in kept]
    plain = [p for name, p in model.named_parameters() if p.ndim == 1 or name in kept]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}],
        lr=2e-3,
    )
    losses = []
    for _ in range(golden.config["train_steps"]):
        loss = F.cross_entropy(model(x), golden.target)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    np.testing.assert_allclose(losses, golden.arrays["f64/adamw_losses"], rtol=0, atol=1e-8)
    after = golden.under("f64/after/")
    assert len(after) == 12
    parameters = dict(model.named_parameters())
    for name, value in after.items():
        np.testing.assert_allclose(parameters[name].detach().numpy(), value, rtol=0, atol=1e-8)


# Parameters counted in the official models, less what DTN adds there.
VIT_COUNTS = {
    (192, 4): 5_710_792 - 480,
    (384, 6): 22_037_176 - 720,
    (432, 9): 27_777_952 - 1080,
    (768, 12): 86_540_680 - 1440,
    (768, 16): 86_541_160 - 1920,
}
PVT_COUNTS = {
    (2, 2, 2, 2): 13_229_600 - 312,
    (3, 4, 6, 3): 24_486_560 - 696,
    (3, 4, 18, 3): 44_209_520 - 1416,
    (3, 8, 27, 3): 61_371_468 - 2148,
}


@pytest.mark.parametrize(("width", "heads"), VIT_COUNTS)
def test_published_vit_sizes(width: int, heads: int) -> None:
    with torch.device("meta"):
        model = ReleasedViT(
            image_size=(224, 224),
            patch_size=16,
            embed_dim=width,
            depth=12,
            num_heads=heads,
            class_token_at=10,
        )
    plain = sum(p.numel() for p in model.parameters())
    assert plain == VIT_COUNTS[width, heads]
    with torch.device("meta"):
        replaced = replace_norms(model, "dtn")
    assert len(replaced) == 20
    # The official score bias, one number a head, has no effect and is left out: 5, not 6 a head.
    assert sum(p.numel() for p in model.parameters()) - plain == 20 * 5 * heads


@pytest.mark.parametrize("depths", PVT_COUNTS)
def test_published_pvt_sizes(depths: tuple[int, ...]) -> None:
    with torch.device("meta"):
        model = ReleasedPvt(
            image_size=(224, 224),
            embed_dims=(64, 128, 320, 512),
            depths=depths,
            num_heads=(4, 4, 5, 8),
            mlp_ratios=(8, 8, 4, 4),
            sr_ratios=(8, 4, 2, 1),
        )
    assert sum(p.numel() for p in model.parameters()) == PVT_COUNTS[depths]


def test_late_class_token_leaves_the_first_blocks_alone() -> None:
    """Without it there is no token outside the grid, and after it the head sees it learn."""
    model = ReleasedViT(
        image_size=(16, 24),
        patch_size=4,
        embed_dim=16,
        depth=4,
        num_heads=2,
        class_token_at=2,
        num_classes=3,
    )
    seen: list[int] = []
    for block in model.blocks:
        block.register_forward_hook(lambda m, inputs, y: seen.append(y.shape[1]))
    model(torch.randn(2, 3, 16, 24)).sum().backward()
    assert seen == [24, 24, 25, 25]
    assert model.cls_token.grad is not None
    assert model.cls_token.grad.abs().max() > 0


@pytest.mark.parametrize("at", [-1, 4, 5])
def test_class_token_that_would_never_join_is_refused(at: int) -> None:
    with pytest.raises(ValueError, match="would never join") as refusal:
        ReleasedViT(
            image_size=(16, 16),
            patch_size=4,
            embed_dim=16,
            depth=4,
            num_heads=2,
            class_token_at=at,
        )
    assert str(refusal.value) == (
        f"class_token_at={at} is not one of the 4 blocks: it must be 0 to 3, or the class token "
        "would never join"
    )


def test_pvt_keys_of_the_last_stage_are_not_reduced() -> None:
    with pytest.raises(ValueError, match="lies on no grid") as refusal:
        ReleasedPvt(
            image_size=(32, 32),
            embed_dims=(8, 16),
            depths=(1, 1),
            num_heads=(1, 1),
            mlp_ratios=(2, 2),
            sr_ratios=(2, 2),
        )
    assert str(refusal.value) == (
        "sr_ratios=[2, 2] reduces the keys of the last stage, whose class token lies on no grid; "
        "its last entry must be 1"
    )


def test_pvt_on_a_rectangle() -> None:
    model = ReleasedPvt(
        image_size=(32, 64),
        embed_dims=(8, 16),
        depths=(1, 1),
        num_heads=(2, 2),
        mlp_ratios=(2, 2),
        sr_ratios=(2, 1),
        num_classes=3,
    )
    sites = replace_norms(model, "dtn")
    assert [(s.path, s.grid_size, s.prefix_tokens) for s in sites] == [
        ("block1.0.norm1", (8, 16), 0),
        ("block1.0.norm2", (8, 16), 0),
    ]
    assert model(torch.randn(2, 3, 32, 64)).shape == (2, 3)
