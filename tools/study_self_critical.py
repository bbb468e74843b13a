"""What does self-critical training change? A finished caption run goes on with it; scores on held-out scenes.

python tools/study_self_critical.py runs/demo/train/caption runs/self-critical --steps 100 \
    --scenes runs/demo/scenes/heldout --regions runs/demo/regions/heldout

With --control the run goes on with cross entropy instead, with the same row budget and rate. With --without-end the
reward does not see the final [SEP], which is what is said to cut captions short. Prints one JSON line for the run as it
was and one for the run that went on, each decoded greedily and by beam search:

- cider_d: mean CIDEr-D on plainly split words (not the official tokenisation), from 0 to 10;
- fact_precision, fact_recall: of what the captions state, judged by the scenes' ground truth;
- bad_endings: share of captions that had not ended at the longest length, or end in a word that something has to follow
  (`dimvl/metrics/words.py`);
- words: mean number in a caption.
"""

import argparse
import json
import time
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dimvl.checkpoints import run_arguments
from dimvl.config import validate
from dimvl.data.annotations import read_captions
from dimvl.data.scenes import read_worlds, score_captions
from dimvl.decoding import DecodingOptions
from dimvl.metrics.cider import CiderD
from dimvl.metrics.words import ends_badly, plain_words
from dimvl.regions.store import RegionStore
from dimvl.tasks.captioning import CaptionConfig, SelfCriticalConfig
from dimvl.tasks.captioning.prediction import caption_images
from dimvl.trained_model import TrainedModel, load_model
from dimvl.training import build
from dimvl.training.run import run_training


class WithoutEnd(CiderD):
    """The reward without the end of texts; references are known to end with it."""

    def __init__(self, references: Sequence[Sequence[Sequence[Hashable]]]) -> None:
        self.end = references[0][0][-1]
        super().__init__([[text[:-1] for text in texts] for texts in references])

    def scores(self, candidates: Sequence[Sequence[Hashable]], images: Sequence[int] | np.ndarray) -> np.ndarray:
        """Score candidates without their ends: (M,)."""
        return super().scores([text[:-1] if text[-1] == self.end else text for text in candidates], images)


def main() -> None:
    """Go on with a run, and score it before and after."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="finished caption run without dropout")
    parser.add_argument("out", type=Path, help="folder of the run that goes on")
    parser.add_argument("--scenes", type=Path, required=True, help="held-out scenes: captions.json and worlds.jsonl")
    parser.add_argument("--regions", type=Path, required=True, help="their region store")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--rows-per-step", type=int, default=4800)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--control", action="store_true", help="cross entropy instead")
    parser.add_argument("--without-end", action="store_true", help="take [SEP] out of the reward")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps({"run": str(arguments.run), **scores(load_model(arguments.run), arguments)}), flush=True)
    if arguments.without_end:
        build.CiderD = WithoutEnd  # type: ignore[misc]
    start = time.process_time()
    run_training(went_on(arguments))
    seconds = round(time.process_time() - start)
    settings = {name: getattr(arguments, name) for name in ("control", "without_end", "steps", "learning_rate")}
    after = scores(load_model(arguments.out), arguments)
    print(json.dumps({"run": str(arguments.out), **settings, "cpu_seconds": seconds, **after}))


def went_on(arguments: argparse.Namespace) -> CaptionConfig:
    """Configuration of the run that goes on: as that of the run, but for what is trained and how fast."""
    before = validate(CaptionConfig, run_arguments(arguments.run)["config"], str(arguments.run))
    pace = {"steps": arguments.steps, "learning_rate": arguments.learning_rate, "warmup_steps": 5}
    pace |= dict.fromkeys(("rows_per_step", "rows_per_micro_batch"), arguments.rows_per_step)
    changes: dict[str, Any] = {
        "output": arguments.out,
        "initial": arguments.run,
        "training": before.training.model_copy(update=pace),
        "validation": None,
    }
    if not arguments.control:
        self_critical = SelfCriticalConfig(samples=arguments.samples)
        changes |= {"smoothing": 0.0, "drop_worst": None, "self_critical": self_critical}
    return validate(CaptionConfig, before.model_copy(update=changes).model_dump(), "the study")


def scores(trained: TrainedModel, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Scores of the captions of all held-out scenes, by way of decoding."""
    references: dict[int, list[str]] = {}
    for caption in read_captions(arguments.scenes / "captions.json"):
        references.setdefault(int(caption.image_id), []).append(caption.text)
    scorer = CiderD([[plain_words(text) for text in texts] for texts in references.values()])
    worlds, store = read_worlds(arguments.scenes / "worlds.jsonl"), RegionStore(arguments.regions)
    result = {}
    for name, beams in (("greedy", 1), ("beam_3", 3)):
        options = DecodingOptions(beams=beams)
        given = caption_images(trained, store, list(map(str, references)), options)
        longest = min(options.max_tokens - 1, trained.processor.text_tokens)
        words = [plain_words(text) for text in given.values()]
        cut = [len(trained.processor.tokenizer.encode(text)) >= longest for text in given.values()]
        bad = [over or ends_badly(text) for over, text in zip(cut, words, strict=True)]
        facts = score_captions({int(image): text for image, text in given.items()}, worlds, references)
        found = {
            "cider_d": scorer.scores(words, np.arange(len(words))).mean(),
            "fact_precision": facts.fact_precision,
            "fact_recall": facts.fact_recall,
            "bad_endings": np.mean(bad),
            "words": np.mean([len(text) for text in words]),
        }
        result[name] = {key: round(float(value), 4) for key, value in found.items()}
    return result


if __name__ == "__main__":
    main()
