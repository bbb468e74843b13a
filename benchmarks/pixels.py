"""From an image file to a caption and to an answer: dimvl with each source of regions, beside models of transformers.

    python -m benchmarks pixels

Images are JPEG files of 500 x 375 pixels. Every variant decodes and scales them itself. dimvl is a `Predictor` of base
size (12 layers x 768, vocabulary 30,522, 3,129 answers) with random weights; sources of regions have random weights of
the published architectures too. The end token is suppressed, so that every caption has `WORDS` words; beams are
`BEAMS`. Peers are in `pixel_peers.py`, each with the faster of the implementations of attention that it has, not
compiled (docs/performance.md says why).

A variant whose first call takes longer than `SLOW` seconds is measured by this call alone, and not in batches, where
there is nothing to gain. Others are measured in all rounds with one image, and in two with `BATCH`.

"extract": `dimvl extract` of a grid over EfficientNet-Lite2 against its network alone on scaled images in memory, in
batches of `BATCH`. CPU time is of the whole process: decoding, scaling, pooling and writing the store count.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.data import VOCABULARY, ModelSize, write_photographs, write_tokenizer
from benchmarks.harness import interleaved, ratio
from benchmarks.pixel_peers import ANSWERS, BEAMS, CAPTIONS, VQA, WORDS, make
from dimvl.data.processor import Processor
from dimvl.data.tokenizer import Tokenizer
from dimvl.model.model import DimvlModel
from dimvl.predictor import Predictor
from dimvl.regions.backbones.base import Backbone
from dimvl.regions.backbones.efficientnet_lite import PIXELS, EfficientNetLite, Network
from dimvl.regions.backbones.load import load_backbone
from dimvl.regions.detectors.base import RegionExtractor
from dimvl.regions.detectors.load import load_detector
from dimvl.regions.detectors.torchvision_ops import import_torchvision
from dimvl.regions.extract import extract
from dimvl.regions.extractors.composed import ComposedExtractor
from dimvl.regions.extractors.grid import Grid
from dimvl.regions.listing import images_of_folder
from dimvl.regions.store.writer import RegionStoreWriter
from dimvl.trained_model import TrainedModel

BATCH, SLOW, BATCH_ROUNDS = 16, 6.0, 2
RCNN = "fasterrcnn_resnet50_fpn_v2"
DETECTED = {"score_threshold": 0.0, "min_regions": 36, "max_regions": 36}  # random weights find nothing otherwise
QUESTION = " ".join(f"w{number}" for number in range(9))
Way = Callable[[Sequence[Path]], object]


@dataclass(frozen=True)
class Sizes:
    """What is measured."""

    model: ModelSize = field(default_factory=ModelSize)
    batch: int = BATCH
    extracted: int = 160
    sources: tuple[str, ...] = (
        "grid, DINOv2-small, 224 px",
        "grid, EfficientNet-Lite2, 224 px",
        "grid, EfficientNet-Lite2, 260 px",
        "grid, CLIP ViT-B/32, 224 px",
        "grid, ViT-B/16, 224 px",
        "Faster R-CNN ResNet-50 v2, 800 px",
        "OWLv2-base, 960 px",
    )


SMALL = Sizes(
    ModelSize(layers=1, width=32, heads=2), 2, 3, ("grid, DINOv2-small, 224 px", "grid, EfficientNet-Lite2, 224 px")
)  # fmt: skip


def make_source(name: str, folder: Path, small: bool) -> RegionExtractor:
    """Make a source of regions with random weights."""
    torch.manual_seed(0)
    torchvision = import_torchvision()
    if name.startswith("grid"):
        _, backbone, side = name.removesuffix(" px").split(", ")
        return ComposedExtractor(Grid(), make_backbone(backbone, int(side), folder, small), None)
    if name.startswith("OWLv2"):
        return make_owl(folder)
    model = torchvision.models.get_model_builder(RCNN)(weights=None, weights_backbone=None)
    save_file(model.state_dict(), folder / "rcnn.safetensors")
    return load_detector(RCNN, DETECTED, weights=str(folder / "rcnn.safetensors"))


def make_owl(folder: Path) -> RegionExtractor:
    """Make OWLv2-base with random weights, looking for 80 names."""
    from transformers import CLIPTokenizer, Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessor

    letters = [chr(code) for code in range(33, 127)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    last = len(tokens) - 1
    text = {"vocab_size": len(tokens), "pad_token_id": last, "bos_token_id": last - 1, "eos_token_id": last}
    model = Owlv2ForObjectDetection(Owlv2Config(text_config=text, vision_config={"image_size": 960}))
    parts = (model, Owlv2ImageProcessor(), CLIPTokenizer(vocab={name: id for id, name in enumerate(tokens)}, merges=[]))
    for part in parts:
        part.save_pretrained(folder / "owl")
    names = folder / "names.txt"
    names.write_text("\n".join(first + second for first in "abcdefgh" for second in "abcdefghij"))
    return load_detector(folder / "owl", DETECTED, vocabulary=names)


def make_backbone(name: str, side: int, folder: Path, small: bool) -> Backbone:
    """Make a backbone with random weights."""
    if name.startswith("EfficientNet"):
        return EfficientNetLite(architecture := f"efficientnet_lite{name[-1]}", Network(architecture), side, PIXELS)
    from transformers import (
        BitImageProcessor,
        CLIPImageProcessor,
        CLIPVisionConfig,
        CLIPVisionModel,
        Dinov2Config,
        Dinov2Model,
        ViTConfig,
        ViTImageProcessor,
        ViTModel,
    )

    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2} if small else {}
    dino = {"hidden_size": 384, "num_attention_heads": 6, "image_size": 518, "patch_size": 14, **shape}
    model, processor = {
        "DINOv2-small": (lambda: Dinov2Model(Dinov2Config(**dino)), BitImageProcessor),
        "CLIP ViT-B/32": (lambda: CLIPVisionModel(CLIPVisionConfig(**shape)), CLIPImageProcessor),
        "ViT-B/16": (lambda: ViTModel(ViTConfig(**shape), add_pooling_layer=False), ViTImageProcessor),
    }[name]
    place = folder / name.replace("/", "-")
    model().save_pretrained(place)
    processor().save_pretrained(place)
    return load_backbone(str(place), side=side)


def make_predictor(source: RegionExtractor, sizes: Sizes, folder: Path, captions: bool, device: str) -> Predictor:
    """Make a random model that captions or answers from a source of regions."""
    write_tokenizer(folder / "tokenizer.json")
    processor = Processor(
        tokenizer=Tokenizer.load(folder / "tokenizer.json"),
        extractor=source.extractor,
        **{
            "max_regions": 50,
            "concepts": "text",
            "concept_tokens": 20,
            "concept_score": 0.3,
            "text_tokens": 20,
            "shared_prefix": True,
        },
        answers=() if captions else tuple(f"answer {number}" for number in range(ANSWERS)),
        captions=captions,
    )
    size = replace(sizes.model, feature_width=source.extractor.feature_width)
    torch.manual_seed(0)
    heads = {"word_head": captions, "answers": len(processor.answers)}
    model = DimvlModel(**size.arguments, **heads, vocabulary=VOCABULARY, max_positions=processor.max_positions)
    if model.word_head is not None:
        model.word_head.decoder.bias.data[processor.tokenizer.sep] = -1e4
    saved = folder / "detector"
    if not saved.exists():
        saved.mkdir()
        source.save(saved)
    predictor = Predictor(TrainedModel(model.to(device).eval(), processor, Path("random")).for_prediction(), saved)
    assert predictor._finder.detector  # loaded here, not in the first call
    return predictor


def captions_of(predictor: Predictor, files: Sequence[Path]) -> list[str]:
    """Caption image files with exactly `WORDS` words, all of which are one piece."""
    return predictor.caption(list(files), beams=BEAMS, max_tokens=WORDS + 1)


def answers_of(predictor: Predictor, files: Sequence[Path]) -> list[Any]:
    """Answer one question about each of some image files."""
    return predictor.answer(list(files), QUESTION)


def measure(ways: Mapping[str, Way], files: Sequence[Path], rounds: int, device: str) -> dict[str, Any]:
    """Seconds an image of each way, with one image and with all files."""

    def run(names: Sequence[str], count: int, times: int) -> dict[str, np.ndarray]:
        calls = {name: partial(ways[name], files[:count]) for name in names}
        return {name: spent / count for name, spent in interleaved(calls, times, device, warm=True).items()}

    single = run(list(ways), 1, 1)
    fast = [name for name in ways if single[name][0] <= SLOW]
    single |= run(fast, 1, rounds)
    batch = run(fast, len(files), min(rounds, BATCH_ROUNDS))
    return {"1": single, str(len(files)): batch}


def report(found: Mapping[str, Mapping[str, np.ndarray]], peers: Sequence[str]) -> dict[str, Any]:
    """Medians of each way, and how many times its time each peer takes, within each round."""
    return {
        count: {
            name: {
                "seconds_an_image": round(float(np.median(spent)), 4),
                "rounds": len(spent),
                "times_slower": {
                    peer: ratio(seconds[peer][-len(spent) :], spent[-len(seconds[peer]) :])
                    for peer in peers
                    if peer in seconds and name not in peers
                },
            }
            for name, spent in seconds.items()
        }
        for count, seconds in found.items()
    }


def checked(way: Way, name: str, files: Sequence[Path]) -> None:
    """Caption; refuse captions of another number of words."""
    found: Any = way(files)
    lengths = {len(text.split()) for text in found} if isinstance(found, list) else {found.shape[1]}
    if lengths != {WORDS}:
        raise SystemExit(f"{name}: captions have {sorted(lengths)} words instead of {WORDS}")


def extraction(sizes: Sizes, files: Sequence[Path], folder: Path, rounds: int, device: str) -> dict[str, Any]:
    """Images a CPU second of `dimvl extract` with a grid over EfficientNet-Lite2, and of its network alone."""
    images = list(itertools.islice(itertools.cycle(images_of_folder(files[0].parent)), sizes.extracted))
    images = [(f"{number:05}", file) for number, (_, file) in enumerate(images)]
    found: dict[str, Any] = {"images": len(images)}
    stores = (folder / f"store-{number}" for number in itertools.count())
    for side in (224, 260):
        backbone = make_backbone("EfficientNet-Lite2", side, folder, small=False).to(device)
        extractor = ComposedExtractor(Grid(), backbone, None).for_prediction()
        pixels = np.random.default_rng(0).integers(0, 256, (sizes.batch, side, side, 3), dtype=np.uint8)

        def whole(extractor: RegionExtractor = extractor) -> None:
            with RegionStoreWriter(next(stores), extractor.extractor) as writer:
                extract(images, extractor, writer, batch_size=sizes.batch, workers=2)

        def alone(backbone: Backbone = backbone, pixels: np.ndarray = pixels) -> None:
            for start in range(0, len(images), sizes.batch):
                backbone.feature_map(pixels[: len(images) - start])

        seconds = interleaved({"extract": whole, "alone": alone}, rounds, device)
        rates = {name: round(len(images) / float(np.median(spent)), 1) for name, spent in seconds.items()}
        found[f"{side} px"] = {"images_per_second": rates, "share": ratio(seconds["alone"], seconds["extract"])}
    return found


@torch.inference_mode()
def run(device: str, rounds: int, small: bool, folder: Path) -> dict[str, Any]:
    """Measure captions, answers and extraction."""
    sizes = SMALL if small else Sizes()
    files = write_photographs(folder / "photographs", sizes.batch)
    facts: dict[str, Any] = {"photographs": [500, 375], "beams": BEAMS, "words": WORDS}
    sources = {}
    for number, name in enumerate(sizes.sources):
        (place := folder / str(number)).mkdir()
        sources[name] = (make_source(name, place, small), place)
    for kind, peers, ours in (("captions", CAPTIONS, captions_of), ("answers", VQA, answers_of)):
        ways: dict[str, Way] = {name: make(name, small) for name in peers}
        for name, (source, place) in sources.items():
            ways[name] = partial(ours, make_predictor(source, sizes, place, kind == "captions", device))
        if kind == "captions":
            ways = {name: partial(checked, way, name) for name, way in ways.items()}
        facts[kind] = report(measure(ways, files, rounds, device), list(peers))
    facts["extract"] = extraction(sizes, files, folder, rounds, device)
    return facts
