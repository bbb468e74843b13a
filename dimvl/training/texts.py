"""The texts of a run, tokenised at its first start and reopened at later ones."""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from pydantic import Field

from dimvl.callbacks import NamedProgress
from dimvl.checkpoints import RUN, TEXTS, run_arguments
from dimvl.config import RunConfig
from dimvl.data.processor import Processor
from dimvl.data.text_store import LabelledText, TextStore, open_text_store, text_store
from dimvl.data.trained_on import FILE as TRAINED_ON
from dimvl.data.trained_on import NOTHING, hash_images, read_trained_on, write_trained_on
from dimvl.errors import UserError
from dimvl.files import CHECKSUMS, RESTORE, Strict, check_folder, read_sealed_as, write_sealed
from dimvl.trained_model import TrainedModel

logger = logging.getLogger(__name__)


class Texts(Strict):
    """The content of `texts.json`: the name of the text store."""

    store: str = Field(pattern="^[0-9a-f]{20}$")


def known_texts(config: RunConfig) -> TextStore | None:
    """Open the texts that an earlier start or rank 0 has tokenised; None if missing or, with a warning, damaged.

    The caller must have checked that the annotations have not changed.
    """
    if not (config.output / TEXTS).exists():
        return None
    try:
        name = read_sealed_as(config.output / TEXTS, Texts, "").store
        read_trained_on(config.output)
        if (config.output / CHECKSUMS).exists():
            check_folder(config.output, RESTORE, [TRAINED_ON])
    except UserError as error:
        logger.warning("%s; it is written again", str(error).partition(";")[0])
        return None
    return open_text_store(config.texts_folder / name)


def own_images(run: Path) -> np.ndarray | None:
    """Return sorted hashes (I,) of the images that a run itself was trained on, without those of its initial model.

    None for an export, and if the run's tokenised texts are missing or damaged: only they tell.
    """
    if not (run / RUN).exists() or not (run / TEXTS).exists():
        return None
    cache = run_arguments(run)["config"].get("cache")
    name = read_sealed_as(run / TEXTS, Texts, RESTORE).store
    store = open_text_store((Path(cache) if cache else run / "texts") / name)
    return None if store is None else np.unique(hash_images(store.image_ids()))


def tokenised(
    config: RunConfig,
    processor: Processor,
    sources: Sequence[Path],
    texts: Sequence[LabelledText],
    initial: TrainedModel | None,
    progress: NamedProgress,
) -> TextStore:
    """Tokenise the texts of the annotation files `sources`.

    The run's folder records where the tokens are and which images the model is trained on, those of `initial` included.

    Raises:
        UserError: there are no texts.

    """
    images = dict.fromkeys(image for text in texts for image in text.image_ids)
    write_trained_on(config.output, images, NOTHING if initial is None else initial.trained_on)
    show = partial(progress, "texts tokenised")
    store = text_store(config.texts_folder, processor.tokenizer, processor.text_tokens, sources, texts, show)
    write_sealed(config.output / TEXTS, {"store": store.path.name})
    return store
