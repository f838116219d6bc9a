"""Reference models and arrays of the visualization tests."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from timm.models.swin_transformer import SwinTransformer
from timm.models.twins import Twins
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from triptych.backbones.build import BackboneSpec, Family, build_backbone
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


@pytest.fixture(scope="session")
def twins_reference() -> Mapping[str, Tensor]:
    return load("hier_twins.npz")


@pytest.fixture(scope="session")
def view_reference() -> Mapping[str, Tensor]:
    return load("small_views.npz")


@pytest.fixture
def twins() -> Twins:
    model = Twins(
        img_size=64,
        patch_size=4,
        embed_dims=(24, 48),
        num_heads=(2, 4),
        mlp_ratios=(2, 2),
        depths=(2, 2),
        sr_ratios=(4, 2),
        wss=(4, 4),
        num_classes=10,
    )
    model.load_state_dict(load_file(REFERENCE / "hier_twins_timm.safetensors"))
    return model


@pytest.fixture
def twins_capture(twins: Twins, forward: Mapping[str, Tensor]) -> Capture:
    return capture(twins, forward["x"][:1])


PYRAMID = {"embed_dims": (16, 32), "depths": (2, 2), "num_heads": (2, 4)}
# One small backbone of each family, for images of 32 x 32 pixels.
FAMILIES = {
    "vit": BackboneSpec(Family.vit, embed_dim=16, depths=(2,), num_heads=(2,)),
    "swin": BackboneSpec(
        Family.swin, embed_dim=8, depths=(2, 2), num_heads=(1, 2), window_size=4
    ),
    "released_vit": BackboneSpec(
        Family.released_vit,
        embed_dim=16,
        depths=(4,),
        num_heads=(2,),
        qkv_bias=False,
        class_token="late",
    ),
    "twins_svt": BackboneSpec(Family.twins_svt, **PYRAMID, sr_ratios=(2, 1), window_size=4),
    "twins_pcpvt": BackboneSpec(Family.twins_pcpvt, **PYRAMID, sr_ratios=(2, 1)),
    "pvt": BackboneSpec(
        Family.pvt, embed_dims=(8, 16, 16), depths=(1, 1, 2), num_heads=(2, 2, 4),
        sr_ratios=(4, 2, 1),
    ),
    "pvt_v2": BackboneSpec(Family.pvt_v2, **PYRAMID, sr_ratios=(2, 1)),
    "levit": BackboneSpec(
        Family.levit, embed_dims=(16, 24), depths=(2, 2), num_heads=(2, 3), patch_size=8,
        key_dim=8, mlp_ratio=2,
    ),
    "t2t_vit": BackboneSpec(
        Family.t2t_vit, embed_dim=16, depths=(3,), num_heads=(2,), qkv_bias=False,
        kernels=(3, 3, 3), strides=(2, 2, 1), token_dim=8, class_token="late",
    ),
    "t2t_vit_full": BackboneSpec(
        Family.t2t_vit, embed_dim=16, depths=(3,), num_heads=(2,), qkv_bias=False,
        kernels=(3, 3), strides=(2, 2), token_dim=8, token_attention="transformer",
    ),
}  # fmt: skip


def family_model(name: str, channels: int = 3) -> nn.Module:
    """A seeded backbone with weights far enough from zero that no map is flat."""
    torch.manual_seed(0)
    model = build_backbone(FAMILIES[name], image_size=(32, 32), channels=channels, num_classes=5)
    for key, parameter in model.named_parameters():
        # LeViT starts the last norm of each branch at 0 and its biases flat.
        if "attention_biases" in key or (parameter == 0).all():
            nn.init.normal_(parameter, std=0.3)
        elif parameter.ndim == 2 and parameter.requires_grad and "tokens_to_token" not in key:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    return model


@pytest.fixture
def make_family() -> Callable[..., nn.Module]:
    """`family_model`: a seeded small backbone by the name of its family."""
    return family_model


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def family_images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
