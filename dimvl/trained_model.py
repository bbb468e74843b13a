"""A trained model loaded from a run or an export, without training code or detector.

What a model can do with prefixes and texts is in `dimvl/tasks/`.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch

from dimvl import cpu
from dimvl.adapters.folder import ADAPTER_WEIGHTS, adapted, read_adapter
from dimvl.checkpoints import (
    ADAPTER,
    MODEL,
    PROCESSOR,
    TOKENIZER,
    TOKENIZER_CONFIG,
    WEIGHTS,
    check_seal,
    latest_checkpoint,
    origin_of,
    read_best_checkpoint,
)
from dimvl.cpu.packed import pack_linears
from dimvl.data.batch import Batch
from dimvl.data.examples import BatchShape, Example, collate
from dimvl.data.prefixes import Prefix
from dimvl.data.processor import Processor
from dimvl.data.targets import TargetSpec
from dimvl.data.trained_on import NOTHING, read_trained_on, trained_images
from dimvl.errors import UserError
from dimvl.fields import LONGEST_TEXT
from dimvl.files import CHECKSUMS, RESTORE, existing_folder, folder_checksums, read_bytes, sha256
from dimvl.model.convert import load_trained
from dimvl.model.heads import heads_of
from dimvl.model.model import DimvlModel
from dimvl.showing import short

logger = logging.getLogger(__name__)
MODEL_FILES = (MODEL, WEIGHTS, PROCESSOR, TOKENIZER, TOKENIZER_CONFIG)
"""The files that predictions depend on; the processor names the extractor of the regions."""


@dataclass(frozen=True)
class TrainedModel:
    """A model in eval mode with its processor.

    Attributes:
        model: the network.
        processor: tokenizer, extractor, limits, answer vocabulary.
        weights: the file of the weights; a run may have removed this checkpoint since.
        trained_on: hashes of the images that it was trained on, see `dimvl/data/trained_on.py`.
        synthetic: whether it was trained on synthetic scenes only.
        weights_sha256: checksum of the file; empty if it was not read from one.

    """

    model: DimvlModel
    processor: Processor
    weights: Path
    trained_on: np.ndarray = field(default_factory=NOTHING.copy)
    synthetic: bool = False
    weights_sha256: str = ""

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.model.parameters()).device

    @property
    def num_parameters(self) -> int:
        """Number of parameters; weights that modules share count once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def for_prediction(self) -> "TrainedModel":
        """Pack the linear layers if the model is on a CPU; it can no longer be trained.

        Weights of a model that captions are rounded to half precision, see `dimvl/cpu/packed.py`.
        """
        pack_linears(self.model, half=self.processor.captions)
        return self

    def with_adapter(self, folder: Path | str, check: bool = True) -> "TrainedModel":
        """Return a model with an adapter of this one, with which it shares all weights that the adapter has not.

        Args:
            folder: the export or the run of the adapter.
            check: as in `load_model`.

        Raises:
            UserError: the folder is not one, a file is missing or damaged, or this is not the adapter's base.

        """
        folder = existing_folder(Path(folder))
        read_adapter(folder).check_base(folder, self.model, self.weights, self.weights_sha256)
        return _read(folder, ADAPTER_WEIGHTS, check, lambda weights: adapted(self.model, folder, weights))

    def without_guard(self) -> "TrainedModel":
        """Return the same model without a record of its training images, so that `refuse_trained` accepts any image."""
        return replace(self, trained_on=NOTHING)

    def refuse_trained(self, image_ids: Sequence[str]) -> None:
        """Check that the model was not trained on the images with these ids in the region store.

        Raises:
            UserError: it was trained on some of them.

        """
        if trained := trained_images(image_ids, self.trained_on):
            names = ", ".join(map(repr, trained[:3]))
            raise UserError(
                f"{self.weights.parent} or its initial model was trained on {len(trained):,} of the "
                f"{len(set(image_ids)):,} images, such as {names}; evaluate on others, or give --allow-trained-images"
            )

    def tokenise(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the token ids (T,) of each text; texts that are too long are cut, and a warning counts them.

        Raises:
            UserError: a text is empty, has only characters of which the tokenizer makes no token, or is too long.

        """
        for place, text in enumerate(texts, start=1):
            if len(text) > LONGEST_TEXT:
                raise UserError(
                    f"text {place} of {len(texts)} has {len(text):,} characters, more than {LONGEST_TEXT:,}; shorten it"
                )
        limit = self.processor.text_tokens
        encoded = self.processor.tokenizer.encode_all([text.strip() for text in texts])
        if not all(encoded):
            place = next(place for place, tokens in enumerate(encoded) if not tokens)
            characters = f" (it has only {short(texts[place])})" if texts[place].strip() else ""
            raise UserError(f"text {place + 1} of {len(texts)} is empty{characters}; give some words")
        if cut := sum(len(tokens) > limit for tokens in encoded):
            logger.warning("%d of %d texts are longer than %d tokens and were truncated", cut, len(texts), limit)
        return [np.array(tokens[:limit], dtype=np.int64) for tokens in encoded]

    def tokenise_known(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the token ids of texts as `tokenise` does, where texts of unknown words only make no sense.

        Raises:
            UserError: as `tokenise`, or the model knows none of the words of a text.

        """
        words = self.tokenise(texts)
        for text, tokens in zip(texts, words, strict=True):
            if (tokens == self.processor.tokenizer.unknown).all():
                raise UserError(f"the model knows no word of {short(text)}; use other words")
        return words

    def by_prefix(
        self, prefixes: Sequence[Prefix], words: Sequence[np.ndarray]
    ) -> Iterator[tuple[Prefix, list[np.ndarray]]]:
        """Yield each prefix with its texts.

        Consecutive texts on the same prefix (the same object) share it if the model's prefixes do not depend on the
        text; otherwise each text has its own.
        """
        owners = map(id, prefixes) if self.processor.shared_prefix else range(len(prefixes))
        for _, group in groupby(zip(prefixes, words, owners, strict=True), key=itemgetter(2)):
            pairs = list(group)
            yield pairs[0][0], [text for _, text, _ in pairs]

    def batch(self, examples: Sequence[Example], objectives: Mapping[str, TargetSpec]) -> Batch:
        """Collate examples into a batch on the model's device."""
        shape = BatchShape(
            objectives=objectives,
            text_start=self.processor.text_start,
            feature_width=self.processor.extractor.feature_width,
        )
        return collate(examples, shape).to(self.device)


def choose_device(name: str) -> torch.device:
    """Turn `auto`, `cpu` or `cuda` into a device.

    Raises:
        UserError: another name, or `cuda` where CUDA is not available.

    """
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"device is {name!r}; it must be auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device is 'cuda' but no CUDA device is available; use device 'cpu' or 'auto'")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def load_model(folder: Path | str, device: torch.device | str = "cpu", check: bool = True) -> TrainedModel:
    """Load an export, or the best checkpoint of a run (without validation the newest), for inference.

    A run that trains an adapter is put onto its base, which must be where it was.

    Args:
        folder: the export or the run.
        device: where the weights go.
        check: whether to compare all files of an export with their checksums, which reads them once more; the files of
            a run are always compared. Without it, an adapter's base is known by the checksum that its folder states.

    Raises:
        UserError: the folder is neither, or a file is missing or damaged.

    """
    cpu.configure()
    folder = existing_folder(Path(folder))
    if (folder / ADAPTER).exists():
        described = read_adapter(folder)
        if described.base_folder is None:
            raise UserError(
                f"{folder} is an adapter of {described.base}; give its base as the model and this folder as --adapter "
                "or, in Python, to with_adapter, or merge the two with `dimvl export RUN OUT --merge`"
            )
        if not Path(described.base_folder).exists():
            raise UserError(
                f"the base of {folder}, {described.base_folder}, does not exist; move the base back there, or, to a "
                "command that has --adapter, give the base as the model and this folder as --adapter"
            )
        return load_model(described.base_folder, device, check).with_adapter(folder, check)
    return _read(folder, WEIGHTS, check, lambda weights: load_trained(folder / MODEL, weights).to(device))


def _read(folder: Path, name: str, check: bool, load: Callable[[Path], DimvlModel]) -> TrainedModel:
    """Read the files of an export, whose weights have this name, or of a run; `load` makes a model of the weights."""
    is_export = (folder / name).exists()
    if not is_export and latest_checkpoint(folder) is None:
        raise UserError(f"{folder} has neither {name} nor a checkpoint; give a trained run or an export")
    seal = _seal(folder)
    if check or not is_export:
        check_seal(folder)
    processor = Processor.load(folder)

    def read(at: Path, digest: str) -> tuple[Path, str, DimvlModel]:
        return at / WEIGHTS, digest, load(at / WEIGHTS)

    if is_export:
        sums = {} if seal is None else folder_checksums(folder, RESTORE)
        weights = folder / name
        digest, model = sums[name].sha256 if name in sums else sha256(weights), load(weights)
    else:
        weights, digest, model = read_best_checkpoint(folder, read)
    _check_fit(folder, processor, model)
    trained_on, origin = read_trained_on(folder), origin_of(folder)
    if _seal(folder) != seal:
        raise UserError(f"{folder} was overwritten while it was being read; open it again")
    return TrainedModel(model.eval(), processor, weights, trained_on, origin.synthetic, digest)


def model_fingerprint(trained: TrainedModel) -> str:
    """Return the SHA-256 of all that the predictions of a model depend on.

    Raises:
        UserError: it was not read from a run or an export, or from one without checksums.

    """
    folder = trained.weights.parent
    if not (folder / CHECKSUMS).exists():  # a checkpoint of a run
        folder = trained.weights.parents[2]
    files = folder_checksums(folder, RESTORE)
    digests = {name: file.sha256 for name, file in files.items()} | {WEIGHTS: trained.weights_sha256}
    names = [*MODEL_FILES, *([ADAPTER] if ADAPTER in files else [])]  # which names its base by checksum
    return hashlib.sha256("".join(f"{name} {digests[name]} " for name in names).encode()).hexdigest()


def _seal(folder: Path) -> bytes | None:
    return read_bytes(folder / CHECKSUMS) if (folder / CHECKSUMS).exists() else None


def _check_fit(folder: Path, processor: Processor, model: DimvlModel) -> None:
    """Check that token ids, answers, regions and texts of a processor are those of the model.

    Raises:
        UserError: they are not.

    """
    heads = heads_of(model)
    numbers = {
        "features of a region": (processor.extractor.feature_width, model.regions.hidden_feature.numel()),
        "images": (processor.max_images, model.regions.image_index.num_embeddings),
        "times": (processor.times, model.regions.time is not None),
        "words in regions": (processor.region_words, model.regions.words is not None),
        "soft rows": (
            processor.prompt or processor.class_prompt,
            0 if model.tokens.prompt is None else model.tokens.prompt.num_embeddings,
        ),
        "answers": (len(processor.answers), heads["answer_head"].outputs if "answer_head" in heads else 0),
        "labels": (
            0 if processor.class_prompt else len(processor.labels),
            heads["label_head"].outputs if "label_head" in heads else 0,
        ),
    }
    found = [(name, own, other) for name, (own, other) in numbers.items() if own != other]
    limits = {
        "tokens": (len(processor.tokenizer), model.tokens.word.num_embeddings),
        "token positions": (processor.max_positions, model.tokens.position.num_embeddings),
        "heads for words": (int(processor.captions), int("word_head" in heads)),
        "heads for matching": (int(processor.matches or processor.chooses), int("match_head" in heads)),
        "heads for alignment": (int(processor.aligns or processor.class_prompt > 0), int("align_head" in heads)),
        "heads for grounding": (int(processor.grounds), int("region_head" in heads)),
    }
    found += [(name, own, other) for name, (own, other) in limits.items() if own > other]
    for name, own, other in found:
        raise UserError(f"{folder}: processor and tokenizer have {own} {name} but the model has {other}; {RESTORE}")
