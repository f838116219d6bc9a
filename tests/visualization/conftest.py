"""Reference models and arrays of the visualization tests."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from triptych.visualization.capture import Capture, capture

REFERENCE = Path(__file__).parents[1] / "reference" / "visualization"


def load(name: str) -> Mapping[str, Tensor]:
    with np.load(REFERENCE / name) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files if arrays[key].ndim}


@pytest.fixture(scope="session")
def forward() -> Mapping[str, Tensor]:
    return load("small_forward.npz")


@pytest.fixture(scope="session")
def attribution() -> Mapping[str, Tensor]:
    return load("small_attribution.npz")


@pytest.fixture(scope="session")
def hier() -> Mapping[str, Tensor]:
    return load("hier_swin.npz")


@pytest.fixture
def vit() -> VisionTransformer:
    model = VisionTransformer(
        img_size=64,
        patch_size=8,
        embed_dim=48,
        depth=4,
        num_heads=4,
        mlp_ratio=2,
        num_classes=10,
    )
    model.load_state_dict(load_file(REFERENCE / "small_weights_timm.safetensors"))
    return model


@pytest.fixture
def swin() -> SwinTransformer:
    model = SwinTransformer(
        img_size=64,
        patch_size=4,
        window_size=4,
        embed_dim=24,
        depths=(2, 2),
        num_heads=(2, 4),
        num_classes=10,
    )
    model.load_state_dict(load_file(REFERENCE / "hier_swin_timm.safetensors"))
    return model


@pytest.fixture
def vit_capture(vit: VisionTransformer, forward: Mapping[str, Tensor]) -> Capture:
    return capture(vit, forward["x"])


@pytest.fixture
def swin_capture(swin: SwinTransformer, forward: Mapping[str, Tensor]) -> Capture:
    return capture(swin, forward["x"][:1])
