"""Files of weights: published ones into timm's models, ours out, and what bad ones are told."""

from __future__ import annotations

import argparse
import sys
import types

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models.swin_transformer import SwinTransformer
from timm.models.twins import Twins
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer import checkpoint_filter_fn as timm_vit_filter
from torch.nn import functional as F

from triptych.mim.models import GreenMIM
from triptych.mim.swin import VisibleSwin
from triptych.mim.weights import WeightsError, load_backbone, save_backbone

SWIN = {
    "img_size": 32, "patch_size": 4, "in_chans": 1, "embed_dim": 16, "depths": (2, 2),
    "num_heads": (1, 2), "window_size": 4,
}  # fmt: skip
VIT = {
    "img_size": 32, "patch_size": 4, "in_chans": 1, "embed_dim": 16, "depth": 2, "num_heads": 2,
}  # fmt: skip


def swin(**options):
    return SwinTransformer(**(SWIN | {"num_classes": 3} | options)).eval()


def vit(**options):
    return VisionTransformer(**(VIT | {"num_classes": 3} | options)).eval()


def twins(num_classes=3):
    return Twins(
        img_size=32, in_chans=1, num_classes=num_classes, embed_dims=(16, 32), num_heads=(1, 2),
        depths=(2, 1), wss=(4, 4), mlp_ratios=(2, 2), sr_ratios=(2, 1),
    ).eval()  # fmt: skip


def features(model, seed=0):
    images = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return model.forward_features(images)


def published_file(path, state, **beside):
    torch.save({"model": state, "epoch": 799, "scaler": {"scale": 1.0}, **beside}, path)
    return path


@pytest.mark.parametrize("name", ["swin_p1", "swin_p3"])
def test_a_published_greenmim_file_gives_the_published_latents(
    golden, build_golden_swin, tmp_path, name
):
    reference = golden(name)
    settings = argparse.Namespace(model="greenmim", blr=1e-4)
    path = published_file(tmp_path / "greenmim.pth", reference.weights(), args=settings)
    model = build_golden_swin(reference)
    load_backbone(model, path)
    with torch.no_grad():
        latents = VisibleSwin(model, "published")(reference.tensor("imgs"), reference.mask)
    torch.testing.assert_close(latents, reference.tensor("latent"), atol=2e-5, rtol=1e-5)


def test_files_of_2022_merge_row_first(golden, build_golden_swin, tmp_path):
    reference = golden("swin_p1")
    weights = reference.weights()
    for name, tensor in weights.items():
        if ".downsample." in name:
            first, second, third, fourth = tensor.chunk(4, -1)
            weights[name] = torch.cat((first, third, second, fourth), -1)
    path = published_file(tmp_path / "greenmim.pth", weights)
    model = build_golden_swin(reference)
    load_backbone(model, path, row_first_merging=True)
    with torch.no_grad():
        latents = VisibleSwin(model, "published")(reference.tensor("imgs"), reference.mask)
    torch.testing.assert_close(latents, reference.tensor("latent"), atol=2e-5, rtol=1e-5)


def microsoft_names(state):
    """timm's Swin under Microsoft's names: merging belongs to the stage before."""
    renamed = {}
    for name, tensor in state.items():
        if name.startswith("layers.1.downsample."):
            name = name.replace("layers.1.", "layers.0.")
        renamed[name.replace("head.fc.", "head.")] = tensor
    return renamed


def test_a_simmim_file_with_its_settings(tmp_path, monkeypatch):
    torch.manual_seed(0)
    source, target = swin(), swin()
    module = types.ModuleType("yacs.config")
    module.CfgNode = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", module)
    settings = module.CfgNode(DATA=module.CfgNode(IMG_SIZE=32))
    settings.__dict__["_immutable"] = True
    state = {f"encoder.{n}": t for n, t in microsoft_names(source.state_dict()).items()}
    state = {n: t for n, t in state.items() if ".head." not in n}
    state["encoder.mask_token"] = torch.zeros(1, 1, 16)
    state["encoder.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16).long()
    state["decoder.0.weight"] = torch.zeros(64, 32, 1, 1)
    path = published_file(tmp_path / "simmim.pth", state, config=settings, max_accuracy=0.0)
    monkeypatch.undo()
    assert "yacs.config" not in sys.modules
    assert not torch.equal(features(source), features(target))
    load_backbone(target, path)
    assert torch.equal(features(source), features(target))


def test_a_mae_file(tmp_path):
    torch.manual_seed(0)
    source, target = vit(), vit()
    state = {n: t for n, t in source.state_dict().items() if not n.startswith("head")}
    state |= {"mask_token": torch.zeros(1, 1, 8), "decoder_pos_embed": torch.zeros(1, 65, 8)}
    load_backbone(target, published_file(tmp_path / "mae.pth", state))
    assert torch.equal(features(source), features(target))


def test_a_greenmim_twins_file(tmp_path):
    """Sparse convolutions in their own layout, and a position encoding without its residual."""
    torch.manual_seed(0)
    source, target = twins(), twins()
    state = {}
    for name, tensor in source.state_dict().items():
        tensor = tensor.clone()
        if name == "patch_embeds.1.proj.weight" or name.endswith("attn.sr.weight"):
            tensor = tensor.permute(0, 2, 3, 1).contiguous()
        if name.startswith("pos_block.") and name.endswith("weight"):
            tensor[:, :, 1, 1] += 1
        state[f"encoder.{name}"] = tensor
    load_backbone(target, published_file(tmp_path / "twins.pth", state))
    torch.testing.assert_close(features(target), features(source), atol=1e-6, rtol=0)


@pytest.mark.parametrize("build", [swin, vit, twins])
def test_an_export_is_read_back(build, tmp_path):
    torch.manual_seed(0)
    source, target = build(), build()
    classifier = {n: t.clone() for n, t in target.state_dict().items() if n.startswith("head.")}
    save_backbone(source, tmp_path / "a.safetensors")
    load_backbone(target, tmp_path / "a.safetensors")
    assert torch.equal(features(source), features(target))
    for name, tensor in classifier.items():
        assert torch.equal(target.state_dict()[name], tensor)


def test_weights_of_a_whole_masked_model(tmp_path):
    torch.manual_seed(0)
    model = GreenMIM(swin())
    save_file(dict(model.state_dict()), tmp_path / "weights.safetensors")
    target = swin()
    load_backbone(target, tmp_path / "weights.safetensors")
    assert torch.equal(features(model.backbone), features(target))


@pytest.mark.parametrize(
    ("name", "build", "options"),
    [
        ("swin_tiny_patch4_window7_224", swin, SWIN),
        ("vit_tiny_patch16_224", vit, VIT),
    ],
)
def test_timm_loads_an_export_by_itself(name, build, options, tmp_path):
    torch.manual_seed(0)
    source = build(num_classes=0)
    path = tmp_path / "backbone.safetensors"
    save_backbone(source, path)
    model = timm.create_model(name, num_classes=0, checkpoint_path=str(path), **options).eval()
    assert torch.equal(features(source), features(model))
    again = timm.create_model(name, num_classes=0, **options).eval()
    again.load_state_dict(load_file(path), strict=True)
    assert torch.equal(features(source), features(again))


def test_windows_and_grids_of_another_size_are_interpolated(tmp_path):
    torch.manual_seed(0)
    source, wide = swin(), swin(img_size=64, window_size=8)
    save_backbone(source, tmp_path / "a.safetensors")
    load_backbone(wide, tmp_path / "a.safetensors")
    for name, tensor in wide.state_dict().items():
        if "relative_position_bias_table" in name:
            table = source.state_dict()[name].T.unflatten(1, (7, 7))[None]
            expected = F.interpolate(table, (15, 15), mode="bicubic", align_corners=False)
            torch.testing.assert_close(tensor, expected[0].flatten(1).T, atol=1e-7, rtol=0)
    source, large = vit(), vit(img_size=64)
    save_backbone(source, tmp_path / "b.safetensors")
    load_backbone(large, tmp_path / "b.safetensors")
    expected = timm_vit_filter(source.state_dict(), vit(img_size=64))
    assert torch.equal(large.pos_embed, expected["pos_embed"])


def test_bad_files(tmp_path):
    def refused(path, model):
        with pytest.raises(WeightsError) as error:
            load_backbone(model, path)
        sentence = str(error.value)
        assert "\n" not in sentence
        return sentence

    missing = tmp_path / "no.pth"
    assert refused(missing, swin()) == f"there is no file {missing}; give the file of a checkpoint"
    whole = tmp_path / "whole.safetensors"
    save_backbone(swin(), whole)
    for name in ("cut.safetensors", "cut.pth"):
        cut = tmp_path / name
        cut.write_bytes(whole.read_bytes()[:1000])
        assert refused(cut, swin()).startswith(f"{cut} cannot be read as weights (")
    (tmp_path / "empty.pth").touch()
    assert "cannot be read as weights" in refused(tmp_path / "empty.pth", swin())
    evil = tmp_path / "evil.pth"
    torch.save({"model": print}, evil)
    assert "cannot be read as weights" in refused(evil, swin())
    no_tensors = tmp_path / "numbers.pth"
    torch.save({"epoch": 3}, no_tensors)
    assert refused(no_tensors, swin()).startswith(f"{no_tensors} holds no tensors by name; give a ")


def test_weights_of_another_network(tmp_path):
    path = tmp_path / "a.safetensors"
    save_backbone(swin(), path)
    before = swin(embed_dim=8)
    state = {n: t.clone() for n, t in before.state_dict().items()}
    with pytest.raises(WeightsError) as error:
        load_backbone(before, path)
    assert str(error.value) == (
        f"{path} does not fit the backbone: it has the shapes patch_embed.proj.weight (16, 1, 4, 4)"
        f" for (8, 1, 4, 4), patch_embed.proj.bias (16,) for (8,), patch_embed.norm.weight (16,) "
        f"for (8,) and 54 more; use the backbone and the norm that it was made with"
    )
    for name, tensor in before.state_dict().items():
        assert torch.equal(tensor, state[name])
    with pytest.raises(
        WeightsError, match=r"it lacks cls_token, pos_embed, .* and \d+ more, and h"
    ):
        load_backbone(vit(), path)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(WeightsError, match=r"^/.*no/a\.safetensors cannot be written: "):
        save_backbone(swin(), tmp_path / "no" / "a.safetensors")
