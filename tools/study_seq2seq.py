"""Which variant of the sequence-to-sequence LM captions better at equal compute? Both from scratch, on a demo's scenes.

python tools/study_seq2seq.py runs/demo --steps 450 --variant causal
python tools/study_seq2seq.py runs/demo --steps 450 --variant masked --share 0.5

Equal compute: the same number of steps of the same row budget. Prints one JSON line with the scores on the held-out
split.
"""

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

import torch

from dimvl.data.annotations import read_captions
from dimvl.data.scenes import read_worlds, score_captions
from dimvl.decoding import DecodingOptions
from dimvl.demo.config import DemoPaths, load_demo_config, shipped_config
from dimvl.regions.store import RegionStore
from dimvl.tasks.captioning import CaptionConfig, Seq2seqConfig
from dimvl.tasks.captioning.prediction import caption_images
from dimvl.trained_model import load_model
from dimvl.training.run import run_training


def main() -> None:
    """Train one variant and score it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path)
    parser.add_argument("--steps", type=int, default=450)
    parser.add_argument("--variant", choices=("causal", "masked"), required=True)
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config, paths = load_demo_config(shipped_config("demo")), DemoPaths(arguments.demo)
    seq2seq = Seq2seqConfig(variant=arguments.variant, share=arguments.share)
    name = f"study-{arguments.variant}-{arguments.share}-{arguments.steps}-{arguments.learning_rate}"
    changes = {"steps": arguments.steps, "learning_rate": arguments.learning_rate}
    run = CaptionConfig(
        task="caption",
        output=paths.run(name),
        regions=paths.regions("train"),
        captions=paths.scenes / "train" / "captions.json",
        inputs=config.inputs.model_copy(update={"tokenizer": paths.tokenizer}),
        model=config.model,
        training=config.caption.model_copy(update=changes),
        seq2seq=seq2seq,
        seed=config.seed,
    )
    start = time.process_time()
    run_training(run)
    seconds = time.process_time() - start
    folder = paths.scenes / "heldout"
    references: dict[int, list[str]] = {}
    for caption in read_captions(folder / "captions.json"):
        references.setdefault(int(caption.image_id), []).append(caption.text)
    options = DecodingOptions(beams=3, max_tokens=config.inputs.text_tokens + 1)
    store = RegionStore(paths.regions("heldout"))
    given = caption_images(load_model(paths.run(name)), store, list(map(str, references)), options)
    captions = {int(image): text for image, text in given.items()}
    scores = asdict(score_captions(captions, read_worlds(folder / "worlds.jsonl"), references))
    print(json.dumps({"variant": arguments.variant, "cpu_seconds": round(seconds), **scores}))


if __name__ == "__main__":
    main()
