"""torchvision's classification networks, up to their last map.

The map is what the last global pooling of the network reads: this is found in the graph of its operations, whatever the
architecture. Networks without one (vision transformers) are refused. Batch norms are folded into the convolutions
before them, which gives the same map in less time.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dimvl.errors import UserError
from dimvl.regions.backbones.base import MEAN, SPREAD, WEIGHTS, Backbone, Pixels, read_looks
from dimvl.regions.detectors.torchvision_ops import import_torchvision
from dimvl.regions.detectors.weights import read_weights, torchvision_weights

EXAMPLES = "resnet50, mobilenet_v2, efficientnet_b0, convnext_tiny"
HALVES = (0.5, 0.5, 0.5)
INCEPTION = ("googlenet", "inception_v3")  # trained on images from -1 to 1


class TorchvisionBackbone(Backbone):
    """A classification network of torchvision."""

    kind = "torchvision"

    @classmethod
    def create(cls, name: str, weights: str | None = None, side: int | None = None) -> "TorchvisionBackbone":
        """Open one by the name of its architecture.

        Args:
            name: the architecture.
            weights: a weight name of torchvision (downloaded once), or a file: `.safetensors`, or a state dictionary
                in `.pth`, which is read without pickle. By default torchvision's best.
            side: S; by default that of torchvision's weights.

        Raises:
            UserError: the name is unknown, the network has no map, or the weights do not exist, do not fit, or cannot
                be read or downloaded.

        """
        network = cut(name)
        state, published = torchvision_weights(name, weights)
        published = published or import_torchvision().models.get_model_weights(name)["DEFAULT"]
        known = network.state_dict().keys()  # without the classifier, which may have any classes
        _load(network, {own: value for own, value in state.items() if own in known}, str(weights or name), name)
        mean, std = (HALVES, HALVES) if name in INCEPTION else (MEAN, SPREAD)
        pixels = Pixels(mean, std, Image.Resampling.BILINEAR)
        return cls(name, folded(network), published.transforms().crop_size[0] if side is None else side, pixels)

    @classmethod
    def load(cls, folder: Path, side: int | None = None) -> "TorchvisionBackbone":
        """See `Backbone.load`."""
        name, side, pixels = read_looks(folder, side)
        network = folded(cut(name))
        _load(network, read_weights(folder / WEIGHTS), str(folder / WEIGHTS), name)
        return cls(name, network, side, pixels)


def cut(name: str) -> fx.GraphModule:
    """Build a network of torchvision, in evaluation mode, that ends with the map that its last global pooling reads.

    Raises:
        UserError: torchvision has no such classification network, or it has no map.

    """
    models = import_torchvision().models
    if name not in models.list_models(module=models):
        raise UserError(
            f"backbone {name} is neither a folder here nor a network of torchvision; use a folder, a name of the "
            f"Hugging Face hub (owner/name), efficientnet_lite0 to efficientnet_lite4, or one of torchvision's "
            f"classification networks ({EXAMPLES}, ...)"
        )
    no_map = UserError(
        f"torchvision's {name} has no feature map to pool regions from; use a convolutional network, such as "
        f"{EXAMPLES}, or a vision transformer from the Hugging Face hub (owner/name)"
    )
    if name.startswith("vit_"):
        raise no_map
    network = models.get_model_builder(name)(weights=None).eval()
    traced = fx.symbolic_trace(network)
    modules = dict(traced.named_modules())
    pools = [node for node in traced.graph.nodes if _pools(node, modules)]
    if not pools:
        raise no_map
    output = next(node for node in traced.graph.nodes if node.op == "output")
    output.args = (pools[-1].args[0],)
    traced.graph.eliminate_dead_code()
    traced.recompile()
    traced.delete_all_unused_submodules()
    return traced


def _pools(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether an operation of the graph is a global pooling."""
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], nn.AdaptiveAvgPool2d)
    if node.op == "call_method":
        return node.target == "mean" and node.args[1:] == ([2, 3],)
    return node.target is nn.functional.adaptive_avg_pool2d


def folded(network: fx.GraphModule) -> fx.GraphModule:
    """Fold each batch norm into the convolution before it, in double precision."""
    modules: dict[str, Any] = dict(network.named_modules())
    for node in list(network.graph.nodes):
        if node.op != "call_module" or not isinstance(modules[str(node.target)], nn.BatchNorm2d):
            continue
        before = node.args[0]
        if before.op == "call_module" and isinstance(modules[str(before.target)], nn.Conv2d) and len(before.users) == 1:
            fused = fuse_conv_bn_eval(modules[before.target].double(), modules[node.target].double()).float()
            network.set_submodule(before.target, fused)
            node.replace_all_uses_with(before)
            network.graph.erase_node(node)
    network.recompile()
    network.delete_all_unused_submodules()
    return network


def _load(network: nn.Module, state: Mapping[str, Tensor], place: str, name: str) -> None:
    """Load weights; a `UserError` if they do not fit."""
    try:
        network.load_state_dict(dict(state))
    except RuntimeError:
        raise UserError(f"{place} does not hold weights of {name}; check both names") from None
