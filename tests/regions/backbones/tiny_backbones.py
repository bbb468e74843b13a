"""Tiny backbones with random weights: of packages, of torchvision, and of transformers without any layer."""

import functools
from pathlib import Path

import torch
from torch import Tensor

from dimvl.regions.backbones.efficientnet_lite import Network
from dimvl.regions.detectors.torchvision_ops import import_torchvision

PUBLISHED = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
PUBLISHED |= {"expand": ("_expand_conv", "_bn0"), "depthwise": ("_depthwise_conv", "_bn1")}
PUBLISHED |= {"project": ("_project_conv", "_bn2")}
TINY = {"hidden_size": 16, "num_hidden_layers": 0, "num_attention_heads": 2, "intermediate_size": 16}
PATCHES = {"image_size": 32, "patch_size": 8}


@functools.cache
def published_state(name: str = "efficientnet_lite0", seed: int = 0) -> dict[str, Tensor]:
    """Return random weights in the form of the packages: batch norms beside convolutions, and a classifier."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in Network(name).state_dict().items() if key.endswith("weight")}
    state = {"_fc.weight": torch.zeros(10, 1280), "_fc.bias": torch.zeros(10)}
    for key, shape in shapes.items():
        *place, layer, _ = ("_" * key.startswith("blocks") + key).split(".")
        convolution, norm = (".".join([*place, own]) for own in PUBLISHED[layer])
        state[f"{convolution}.weight"] = torch.randn(shape, generator=generator) * (2 / shape[1:].numel()) ** 0.5
        state[f"{norm}.weight"] = torch.rand(shape[0], generator=generator) + 0.5
        state[f"{norm}.bias"] = torch.randn(shape[0], generator=generator) / 4
        state[f"{norm}.running_mean"] = torch.randn(shape[0], generator=generator) / 4
        state[f"{norm}.running_var"] = torch.rand(shape[0], generator=generator) + 0.5
        state[f"{norm}.num_batches_tracked"] = torch.tensor(7)
    return state


def lite_file(folder: Path, seed: int = 0) -> Path:
    """Write random weights of EfficientNet-Lite0 as its package has them."""
    torch.save(published_state(seed=seed), folder / "lite0.pth")
    return folder / "lite0.pth"


def torchvision_model(name: str, **options):
    """Return a classifier of torchvision in evaluation mode, with batch norms that change something.

    Its own initial weights of convolutions within channels are so small that nothing of the image would be left.
    """
    torch.manual_seed(0)
    model = import_torchvision().models.get_model_builder(name)(weights=None, **options).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, mode="fan_in")
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model


def torchvision_file(folder: Path, name: str = "mobilenet_v3_small", **options) -> Path:
    """Write random weights of a classifier of torchvision."""
    torch.save(torchvision_model(name, **options).state_dict(), folder / f"{name}.pth")
    return folder / f"{name}.pth"


def transformers_folder(folder: Path, family: str) -> Path:
    """Write a model of transformers and its image processor for images of 32 pixels, as `save_pretrained` does."""
    import_torchvision()
    import transformers as library

    towers = {"vision_config": {**TINY, **PATCHES}, "text_config": {**TINY, "vocab_size": 50000}}
    convolutions = {"hidden_sizes": [4, 8, 8, 16], "depths": [1, 1, 1, 1]}
    models = {
        "vit": lambda: library.ViTForImageClassification(library.ViTConfig(**TINY, **PATCHES)),  # without a pooler
        "deit": lambda: library.DeiTModel(library.DeiTConfig(**TINY, **PATCHES)),
        "clip": lambda: library.CLIPModel(library.CLIPConfig(**towers, projection_dim=8)),
        "siglip": lambda: library.SiglipModel(library.SiglipConfig(**towers)),
        "dinov2": lambda: library.Dinov2Model(library.Dinov2Config(**TINY, **PATCHES)),
        "registers": lambda: library.Dinov2WithRegistersModel(library.Dinov2WithRegistersConfig(**TINY, **PATCHES)),
        "convnext": lambda: library.ConvNextModel(library.ConvNextConfig(**convolutions)),
        "resnet": lambda: library.ResNetModel(library.ResNetConfig(embedding_size=4, **convolutions)),
        "mae": lambda: library.ViTMAEModel(library.ViTMAEConfig(**TINY, **PATCHES)),
        "swin": lambda: library.SwinModel(
            library.SwinConfig(embed_dim=8, depths=[1, 1], num_heads=[2, 2], image_size=32, window_size=4)
        ),
        "bert": lambda: library.BertModel(library.BertConfig(**TINY, vocab_size=20)),
    }
    torch.manual_seed(0)
    models[family]().save_pretrained(folder)
    library.ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.1, 0.2, 0.3]).save_pretrained(folder)
    return folder
