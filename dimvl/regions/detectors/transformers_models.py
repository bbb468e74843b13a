"""Detectors of the library transformers: the DETR family, with each query's decoder state as its region's feature.

DETR (Carion et al., 2020) predicts one box, class distribution and decoder state for each of a fixed number of queries;
RT-DETR (Zhao et al., 2024) and its successors judge each class independently. A query finds its own box, so boxes from
elsewhere cannot be described. The feature of the whole image, where it is a region, is the mean state of all queries,
whichever are kept.

transformers is imported when a detector is loaded, after `import_torchvision`, because it imports torchvision where
that is installed. Images are scaled by the model's own image processor in its PIL form, which gives the same pixels on
every machine. Letters: B images, Q queries, R regions, K classes, F feature width.
"""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dimvl.errors import UserError
from dimvl.files import HUB_NAME, write_json
from dimvl.files.weights import full_disk
from dimvl.regions.detectors.base import (
    CLASSES_KEPT,
    KIND,
    SETTINGS,
    Detections,
    RegionDetector,
    padded,
    split_by_image,
)
from dimvl.regions.detectors.selection import Selection, label_first, select
from dimvl.regions.detectors.settings import LibrarySettings, library_settings
from dimvl.regions.detectors.torchvision_ops import import_torchvision
from dimvl.regions.detectors.weights import fingerprint
from dimvl.showing import reason

SOFTMAX = ("detr", "table-transformer")  # families whose last class is "no object"
SIGMOID = ("rt_detr", "rt_detr_v2", "d_fine")  # families that judge each class independently
OPEN_VOCABULARY = ("owlv2", "owlvit", "grounding-dino", "mm-grounding-dino")  # see `open_vocabulary`
TEXTS_AT_ONCE = 256
SIDES = {"shortest_edge": "shortest_side", "longest_edge": "longest_side", "height": "height", "width": "width"}
"""Sizes of an image processor, and their names here."""
PIXELS = ("do_resize", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
"""Settings of an image processor, beside the sizes, that change the features."""


class Candidates(NamedTuple):
    """What a detector saw in one image, before selection.

    Attributes:
        probabilities: (Q, K) of classes.
        corners: (Q, 4) fractions of the image.
        states: (Q, F) features.
        whole: (F,) feature of the whole image.

    """

    probabilities: Tensor
    corners: Tensor
    states: Tensor
    whole: Tensor


class QueryDetector(RegionDetector):
    """A detector of transformers whose candidates each have one box, class probabilities and a feature.

    Args:
        name: readable name.
        network: the model, as transformers loads it.
        processor: its image processor.
        selection: which candidates become regions.
        feature_width: F.
        classes: class names.

    """

    files: ClassVar[tuple[str, ...]] = ("config.json", "model.safetensors", "preprocessor_config.json")
    describes = False

    def __init__(
        self,
        name: str,
        network: Any,
        processor: Any,
        selection: Selection,
        feature_width: int,
        classes: Sequence[str],
    ) -> None:
        self.processor = processor
        super().__init__(name, network, selection, feature_width, classes)

    @abstractmethod
    def _candidates(self, arrays: Sequence[np.ndarray]) -> Iterable[Candidates]:
        """Return the candidates of each of some prepared images of one shape."""

    def _find(self, probabilities: Tensor, corners: Tensor) -> tuple[Tensor, Tensor]:
        """Choose candidates (R,) of one image, best first, and their labels (R,), by (Q, K) and boxes (Q, 4)."""
        scores, labels = probabilities.max(-1)
        chosen = select(corners, scores, labels, self.selection).to(scores.device)
        return chosen, labels[chosen]

    def _numbers(self) -> dict[str, int]:
        size = self.processor.size
        return {side: int(size[edge]) for edge, side in SIDES.items() if size[edge] is not None}

    def _set_numbers(self, numbers: Mapping[str, int]) -> None:
        size = {edge: numbers[side] for edge, side in SIDES.items() if side in numbers}
        self.processor.size = replace(self.processor.size, **size)

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Return what the image processor makes of the image, (3, height, width) float32."""
        # The format is named because the processor cannot find the channels of an image three pixels high.
        inputs = self.processor(images=[np.asarray(image)], return_tensors="np", input_data_format="channels_last")
        return np.asarray(inputs["pixel_values"][0], dtype=np.float32)

    @torch.inference_mode()
    def _detect_equal(self, arrays: Sequence[np.ndarray], given: list[np.ndarray] | None) -> list[Detections]:
        found, boxes, features, rows, labels = [], [], [], [], []
        for own in self._candidates(arrays):
            chosen, label = self._find(own.probabilities, own.corners)
            found.append(own.corners[chosen])
            boxes.append(self._with_whole_image(found[-1]))
            whole = own.whole.expand(len(boxes[-1]) - len(chosen), -1)
            features.append(torch.cat([own.states[chosen], whole]))
            rows.append(own.probabilities[chosen])
            labels.append(label)
        class_ids, class_scores = label_first(padded(rows, boxes), padded(labels, boxes), CLASSES_KEPT)
        return split_by_image(
            found, boxes, features=torch.cat(features), class_ids=class_ids, class_scores=class_scores
        )


class TransformersDetector(QueryDetector):
    """A detector of the DETR family, ready for use.

    Args:
        name: readable name.
        network: the model, as `AutoModelForObjectDetection` loads it.
        processor: its image processor.

    """

    def __init__(self, name: str, network: Any, processor: Any) -> None:
        config = network.config
        self.softmax = config.model_type in SOFTMAX
        # Each query has one box and few are alike: as in the library, none is suppressed unless a threshold is set.
        selection = Selection(nms_threshold=1.0)
        classes = [str(config.id2label[label]) for label in range(config.num_labels)]
        super().__init__(name, network, processor, selection, config.d_model, classes)

    @classmethod
    def load(cls, folder: str | Path) -> "TransformersDetector":
        """Load from a folder of `save` or `save_pretrained`, or by a name on the hub, `owner/name[@revision]`.

        Raises:
            UserError: transformers is not installed, or the detector does not exist, is of another family or has no
                safetensors weights.

        """
        settings = LibrarySettings()
        if isinstance(folder, Path) and (folder / SETTINGS).exists():
            settings = library_settings(folder, LibrarySettings)
        name = settings.name or (folder.name if isinstance(folder, Path) else folder)
        if (family := family_of(folder)) not in (*SOFTMAX, *SIGMOID):
            raise UserError(
                f"detector {folder} is of the family {family}, which is not supported; use one of "
                f"{', '.join((*SOFTMAX, *SIGMOID, *OPEN_VOCABULARY))}"
            )
        with opening(folder) as transformers:
            place = fetched(folder, "*.json", "*.safetensors")
            processor = transformers.AutoImageProcessor.from_pretrained(place, backend="pil")
            model = whole_model(transformers.AutoModelForObjectDetection, place)
        return cls(name, model, processor).configure(settings.options)

    def save(self, folder: Path) -> None:
        """Write settings and what `save_pretrained` of transformers writes."""
        with full_disk():
            self.network.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        write_json(folder / SETTINGS, {KIND: "transformers", "name": self.name, **self.parameters})

    @cached_property
    def _fingerprint(self) -> str:
        settings = [f"{name}={getattr(self.processor, name, None)}" for name in PIXELS]
        return fingerprint(self.network.state_dict(), *settings)

    def _candidates(self, arrays: Sequence[np.ndarray]) -> Iterable[Candidates]:
        output = self.network(pixel_values=torch.from_numpy(np.stack(arrays)).to(self.device))
        probabilities = output.logits.softmax(-1)[..., :-1] if self.softmax else output.logits.sigmoid()
        states = output.last_hidden_state
        return map(Candidates, probabilities, corners_of(output.pred_boxes), states, states.mean(1))

    def _find(self, probabilities: Tensor, corners: Tensor) -> tuple[Tensor, Tensor]:
        if self.softmax:
            return super()._find(probabilities, corners)
        # A query may be found by several classes.
        scores, flat = probabilities.flatten().topk(len(probabilities))
        queries, labels = flat // probabilities.shape[1], flat % probabilities.shape[1]
        chosen = select(corners[queries], scores, labels, self.selection).to(scores.device)
        return queries[chosen], labels[chosen]


def corners_of(boxes: Tensor) -> Tensor:
    """Turn boxes (..., 4) of centre, width and height into corners."""
    centres, sides = boxes.split(2, dim=-1)
    return torch.cat([centres - sides / 2, centres + sides / 2], dim=-1)


def family_of(place: str | Path, what: str = "detector") -> str:
    """Return the `model_type` of a folder or of a name on the hub, by its JSON files.

    Raises:
        UserError: transformers is not installed, or the place does not exist or has no `config.json` of transformers.

    """
    with opening(place, what) as transformers:
        return str(transformers.AutoConfig.from_pretrained(fetched(place, "*.json")).model_type)


def whole_model(kind: Any, folder: Path, spare: str = "", **options: Any) -> Any:
    """Load a model of transformers, ready for use.

    Args:
        kind: a class such as `AutoModel`.
        folder: where it is.
        spare: a part that is not needed; it is removed if its weights are absent.
        options: of `from_pretrained`.

    Raises:
        UserError: other weights are absent, which transformers would draw at random.

    """
    model, info = kind.from_pretrained(
        folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **options
    )
    absent = sorted(info["missing_keys"])
    if spare and any(name.startswith(f"{spare}.") for name in absent):
        setattr(model, spare, None)
        absent = [name for name in absent if not name.startswith(f"{spare}.")]
    if absent:
        raise UserError(
            f"{folder} lacks {len(absent)} of the weights of {type(model).__name__}, such as {absent[0]}; use a "
            "complete checkpoint"
        )
    return model.eval()


@contextmanager
def opening(place: str | Path, what: str = "detector") -> Iterator[Any]:
    """Import transformers, and turn what it raises while it opens `what` at a place into a `UserError`."""
    import_torchvision()
    try:
        import transformers
    except ImportError:
        raise UserError(f"{what} {place} needs the package transformers; pip install 'dimvl[detectors]'") from None
    transformers.utils.logging.disable_progress_bar()
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()  # it lists tokens that do not exist, and weights that are not read
    try:
        yield transformers
    except UserError:
        raise
    except Exception as error:  # missing files, no network, another format, a missing extra: many types
        raise UserError(
            f"{what} {place} cannot be loaded by transformers ({reason(error)}); check name, files and network"
        ) from None
    finally:
        transformers.utils.logging.set_verbosity(verbosity)


@torch.inference_mode()
def text_embeddings(model: Any, tokenizer: Any, texts: Sequence[str], inputs: Sequence[str]) -> Tensor:
    """Embed texts (K, D) by a text tower, to length 1.

    Args:
        model: has `get_text_features`.
        tokenizer: its tokenizer.
        texts: K texts; the ends of too long ones are ignored.
        inputs: what the tower reads of the tokenizer's output.

    """
    longest = model.config.text_config.max_position_embeddings
    rows = []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        batch = list(texts[start : start + TEXTS_AT_ONCE])
        tokens = tokenizer(batch, padding="max_length", truncation=True, max_length=longest, return_tensors="pt")
        features = model.get_text_features(**{name: tokens[name].to(model.device) for name in inputs})
        rows.append(features.pooler_output)
    return torch.nn.functional.normalize(torch.cat(rows), dim=-1)


def is_hub_name(name: str, what: str = "detector") -> bool:
    """Return whether a name that is no folder's is one of the hub, `owner/name` or `owner/name@revision`.

    "detectors/mine" looks like one; where a folder "detectors" exists, a folder was meant.

    Raises:
        UserError: it is a path, which does not exist.

    """
    if len(Path(name).parts) < 2:
        return False
    if not HUB_NAME.fullmatch(name.partition("@")[0]) or Path(name).parent.is_dir():
        raise UserError(f"{what} {name} does not exist; check the path")
    return True


def fetched(place: str | Path, *patterns: str) -> Path:
    """Return a folder with files of these patterns: the given one, or that of a name on the hub, downloaded once.

    Without a network this fails at once, or finds an earlier download; `from_pretrained` would try for half a minute,
    with warnings.
    """
    if isinstance(place, Path):
        return place
    from huggingface_hub import snapshot_download

    name, _, revision = place.partition("@")
    return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(patterns)))
