"""Trained models read back from a run or an export, and applied to prefixes.

Stands between the model and everything that uses a finished one: fine-tuning, export, predictor and evaluation. It
needs neither the training code nor the detector.

Letters: M questions or pairs, A answers.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dimvl import cpu
from dimvl.cpu.packed import pack_linears
from dimvl.data.batch import Batch, MatchTargets
from dimvl.data.examples import BatchShape, Example, Prefix, collate
from dimvl.data.processor import Processor
from dimvl.data.trained_on import NOTHING, read_trained_on, trained_images
from dimvl.decoding import AllRanks, DecodingOptions, caption_prefixes
from dimvl.errors import UserError
from dimvl.files import read_json, sha256
from dimvl.model.convert import load_pretrained, read_weights
from dimvl.model.model import DimvlModel
from dimvl.tasks.answering import VqaTask, question_example
from dimvl.tasks.base import plain_text

logger = logging.getLogger(__name__)
MODEL = "config.json"
RUN = "run.json"
ORIGIN = "training.json"
STATE = "state.json"
WEIGHTS = "model.safetensors"
OPTIMISER = "optimiser.safetensors"
GO_ON = "remove this checkpoint to go on from the one before it, or from the start where there is none"


@dataclass(frozen=True)
class TrainedModel:
    """A model in eval mode with what it needs, from a run or an export.

    Attributes:
        model: the network.
        processor: tokenizer, extractor, limits, answer vocabulary.
        weights: the file that the weights came from.
        trained_on: hashes of the images that it was trained on, see `dimvl/data/trained_on.py`.

    """

    model: DimvlModel
    processor: Processor
    weights: Path
    trained_on: np.ndarray = field(default_factory=NOTHING.copy)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def require(self, ability: str) -> None:
        """Check that the model was trained for something.

        Args:
            ability: `answer`, `caption` or `match`.

        Raises:
            UserError: it was not; names what it can do.

        """
        processor = self.processor
        abilities = {"answer": bool(processor.answers), "caption": processor.captions, "match": processor.matches}
        if not abilities[ability]:
            others = " and ".join(name for name, there in abilities.items() if there)
            raise UserError(f"the model {self.weights.parent} cannot {ability}, it can {others}; give another model")

    def for_prediction(self) -> "TrainedModel":
        """Return the same, its linear layers laid out for the processor if it is on one; it can be trained no more."""
        pack_linears(self.model)
        return self

    def without_guard(self) -> "TrainedModel":
        """Return the same model, which `refuse_trained` lets evaluate on any image."""
        return replace(self, trained_on=NOTHING)

    def refuse_trained(self, image_ids: Sequence[str]) -> None:
        """Check that images to evaluate on were not trained on.

        Args:
            image_ids: as the region store has them.

        Raises:
            UserError: some were; names the first ones.

        """
        if trained := trained_images(image_ids, self.trained_on):
            names = ", ".join(map(repr, trained[:3]))
            raise UserError(
                f"{len(trained):,} of the {len(set(image_ids)):,} images were trained on by {self.weights.parent} or "
                f"by what it started from, such as {names}; evaluate on others, or give --allow-trained-images"
            )

    def tokenise(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the token ids (T,) of each text; longer texts are cut, and a warning counts them.

        Raises:
            UserError: a text is empty.

        """
        for place, text in enumerate(texts):
            if not text.strip():
                raise UserError(f"text {place + 1} of {len(texts)} is empty; give some words")
        limit = self.processor.text_tokens
        encoded = self.processor.tokenizer.encode_all([text.strip() for text in texts])
        if cut := sum(len(tokens) > limit for tokens in encoded):
            logger.warning("%d of %d texts are longer than %d tokens and were cut", cut, len(texts), limit)
        return [np.array(tokens[:limit], dtype=np.int64) for tokens in encoded]

    @torch.inference_mode()
    def answer_probabilities(self, prefixes: Sequence[Prefix], words: Sequence[np.ndarray]) -> Tensor:
        """Probability of each answer by itself, for one question on each prefix: (M, A).

        Where the model's prefixes do not depend on the question, one that is given several times in a row (the same
        object) is computed once.

        Raises:
            UserError: the model cannot answer.

        """
        self.require("answer")
        task = VqaTask(self.model, self.processor)
        processor = self.processor
        examples = [
            question_example("question", prefix, texts, processor.tokenizer, processor.shared_prefix)
            for prefix, texts in self._by_prefix(prefixes, words)
        ]
        return task.probabilities(collate(examples, task.shape).to(self.device)).cpu()

    @torch.inference_mode()
    def match_probabilities(self, prefixes: Sequence[Prefix], words: Sequence[np.ndarray]) -> Tensor:
        """Probability that a text belongs to its prefix, for one text on each: (M,).

        A prefix that is given several times in a row is shared as in `answer_probabilities`.

        Raises:
            UserError: the model cannot match.

        """
        self.require("match")
        tokenizer = self.processor.tokenizer
        examples = [
            Example(
                source="pair",
                objective="matching",
                prefix=prefix,
                texts=[plain_text(text, tokenizer) for text in texts],
                seq2seq=self.processor.shared_prefix,
                match=[0.0] * len(texts),
            )
            for prefix, texts in self._by_prefix(prefixes, words)
        ]
        batch = self._batch(examples, {"matching": MatchTargets})
        assert self.model.match_head is not None
        rows = self.model(batch)[batch.targets["matching"].rows]
        return self.model.match_head(rows).float().sigmoid().cpu()

    def captions(self, prefixes: Sequence[Prefix], options: DecodingOptions, all_ranks: AllRanks = bool) -> list[str]:
        """Caption each prefix.

        Args:
            prefixes: images and context.
            options: how to decode; `max_tokens` is lowered to what the model's positions allow.
            all_ranks: as in `beam_search`.

        Raises:
            UserError: the model cannot caption.

        """
        self.require("caption")
        options = replace(options, max_tokens=min(options.max_tokens, self.processor.text_tokens + 1))
        examples = [Example(source="image", objective="", prefix=p, texts=[], seq2seq=True) for p in prefixes]
        found = caption_prefixes(self.model, self.processor, self._batch(examples, {}), options, all_ranks, wanted=1)
        return [self.processor.tokenizer.decode(hypotheses[0].token_ids) for hypotheses in found]

    def _by_prefix(
        self, prefixes: Sequence[Prefix], words: Sequence[np.ndarray]
    ) -> Iterator[tuple[Prefix, list[np.ndarray]]]:
        """Each prefix with its texts: those in a row that share it, or where texts change it one."""
        owners = map(id, prefixes) if self.processor.shared_prefix else range(len(prefixes))
        for _, group in groupby(zip(prefixes, words, owners, strict=True), key=itemgetter(2)):
            pairs = list(group)
            yield pairs[0][0], [text for _, text, _ in pairs]

    def _batch(self, examples: Sequence[Example], objectives: dict[str, type[MatchTargets]]) -> Batch:
        shape = BatchShape(
            objectives=objectives,
            text_start=self.processor.text_start,
            feature_width=self.processor.extractor.feature_width,
        )
        return collate(examples, shape).to(self.device)


def choose_device(name: str) -> torch.device:
    """Turn `auto`, `cpu` or `cuda` into a device.

    Raises:
        UserError: it is another name, or CUDA was asked for and is not there.

    """
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"device is {name!r}; it must be auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device is 'cuda' but no CUDA device is available; use device 'cpu' or 'auto'")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def checkpoint_folder(run: Path, step: int) -> Path:
    """Return where a run has the checkpoint of a step."""
    return run / "checkpoints" / f"step-{step:08d}"


def checkpoint_folders(run: Path) -> list[Path]:
    """Return the whole checkpoints of a run, oldest first."""
    return sorted((run / "checkpoints").glob("step-????????"))


def latest_checkpoint(run: Path) -> Path | None:
    """Return the newest whole checkpoint of a run."""
    folders = checkpoint_folders(run)
    return folders[-1] if folders else None


def best_checkpoint(run: Path) -> Path | None:
    """Return the checkpoint with the best validation score, or of a run without validation the newest whole one.

    It is the one that is evaluated, exported and fine-tuned; training goes on from the newest. Of its files only the
    weights are looked at.

    Raises:
        UserError: a checkpoint is missing, or its weights or a description are damaged.

    """
    newest = latest_checkpoint(run)
    if newest is None:
        return None
    state = check_checkpoint(newest, [])
    best = checkpoint_folder(run, state["best"]["step"]) if "best" in state else newest
    check_checkpoint(best, [WEIGHTS])
    return best


def check_checkpoint(folder: Path, files: Sequence[str] = (WEIGHTS, OPTIMISER)) -> dict[str, Any]:
    """Return a checkpoint's `state.json` after comparing the checksums of what is to be read.

    Raises:
        UserError: a file is missing or damaged.

    """
    for name in (STATE, *files):
        if not (folder / name).is_file():
            raise UserError(f"{folder} lacks {name}; {GO_ON}")
    state = read_json(folder / STATE)
    try:
        step, checksums = int(state["step"]), {name: str(state["checksums"][name]) for name in (WEIGHTS, OPTIMISER)}
        if "best" in state:
            _ = float(state["best"]["score"]), int(state["best"]["step"]), int(state["best"]["misses"])
    except (KeyError, TypeError, ValueError):
        step, checksums = -1, {}
    if step != int(folder.name.rpartition("-")[2]):
        raise UserError(f"{folder / STATE} is damaged; {GO_ON}")
    for name in files:
        if sha256(folder / name) != checksums[name]:
            raise UserError(f"{folder / name} is damaged; {GO_ON}")
    return dict(state)


def load_model(folder: Path, device: torch.device | str = "cpu") -> TrainedModel:
    """Open the best checkpoint of a run (without validation the newest), or an export, for inference.

    Raises:
        UserError: it is neither, or a file is missing or damaged.

    """
    cpu.configure()
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; give the folder of a run or of an export")
    weights = folder / WEIGHTS
    if not weights.exists():
        checkpoint = best_checkpoint(folder)
        if checkpoint is None:
            raise UserError(f"{folder} has neither {WEIGHTS} nor a checkpoint; give a finished run or a whole export")
        weights = checkpoint / WEIGHTS
    processor = Processor.load(folder)
    arguments = read_json(folder / MODEL)
    try:
        model = DimvlModel(**arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"{folder / MODEL} is not of this version of dimvl ({error}); export the run again") from None
    load_pretrained(model, state := read_weights(weights), str(weights))
    if lacking := [name for name in model.state_dict() if name not in state and name != "word_head.decoder.weight"]:
        raise UserError(f"{weights} lacks {lacking[0]}; copy or export it again")
    return TrainedModel(model.to(device).eval(), processor, weights, read_trained_on(folder))


def origin_of(folder: Path) -> dict[str, Any]:
    """Tell how the model of a run, or of an export made of one, was trained: seed, git revision and data files."""
    if not (folder / RUN).exists():
        return dict(read_json(folder / ORIGIN)) if (folder / ORIGIN).exists() else {}
    run = run_arguments(folder)
    return {"seed": run["config"].get("seed"), "git_revision": run.get("git_revision"), "data": run.get("data")}


def run_arguments(run: Path) -> dict[str, Any]:
    """Return what `run.json` of a run says: configuration, data, versions and git revision.

    Raises:
        UserError: it is no run, or the file is damaged.

    """
    if not (run / RUN).exists():
        raise UserError(f"{run} is not a run of dimvl; it has no {RUN}")
    described = read_json(run / RUN)
    if not isinstance(described, dict) or not isinstance(described.get("config"), dict):
        raise UserError(f"{run / RUN} is damaged; it is not what a run writes")
    return described
