"""Released arrays of JAX against timm's own reading of them, and against the same net in timm."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from timm.models import VisionTransformer

from triptych.mim.original_vit import original_vit_state
from triptych.mim.weights import WeightsError, load_backbone, read_weights

REFERENCE = Path(__file__).parents[1] / "reference" / "visualization"


def small_vit() -> VisionTransformer:
    return VisionTransformer(
        img_size=64, patch_size=8, embed_dim=48, depth=4, num_heads=4, mlp_ratio=2, num_classes=10
    )


def test_equals_the_same_weights_in_timms_names() -> None:
    state = read_weights(REFERENCE / "small_weights_jax.npz")
    wanted = load_file(REFERENCE / "small_weights_timm.safetensors")
    assert set(state) == set(wanted)
    for name, tensor in wanted.items():
        assert torch.equal(state[name], tensor), name


def test_timm_reads_the_same_from_the_file() -> None:
    model = small_vit()
    model.load_pretrained(REFERENCE / "small_weights_jax.npz")
    state = read_weights(REFERENCE / "small_weights_jax.npz")
    for name, tensor in model.state_dict().items():
        assert torch.equal(state[name], tensor), name


def test_features_reach_a_backbone() -> None:
    model = small_vit()
    load_backbone(model, REFERENCE / "small_weights_jax.npz")
    wanted = load_file(REFERENCE / "small_weights_timm.safetensors")
    assert torch.equal(model.blocks[2].attn.qkv.weight, wanted["blocks.2.attn.qkv.weight"])


def test_weights_beside_an_optimizer_are_the_same() -> None:
    with np.load(REFERENCE / "small_weights_jax.npz") as arrays:
        given = dict(arrays)
    plain = original_vit_state(given)
    beside = original_vit_state({f"opt/target/{name}": array for name, array in given.items()})
    assert all(torch.equal(plain[name], beside[name]) for name in plain)


def test_arrays_without_a_place_keep_their_names() -> None:
    odd = {"pre_logits/kernel": np.zeros((2, 2)), "Transformer/encoderblock_0/Odd/x": np.zeros(1)}
    assert set(original_vit_state(odd)) == {"pre_logits/kernel", "blocks.0.Odd/x"}


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"no archive at all"])
def test_a_damaged_file_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "vit.npz"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"vit\.npz cannot be read as weights"):
        read_weights(path)
