"""The texts of a run, tokenised once: found again by a later start, or written with what belongs to them."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from dimvl.callbacks import NamedProgress
from dimvl.checkpoints import TEXTS
from dimvl.config import RunConfig
from dimvl.data.processor import Processor
from dimvl.data.text_store import LabelledText, TextStore, open_text_store, text_store
from dimvl.data.trained_on import NOTHING, read_trained_on, write_trained_on
from dimvl.errors import UserError
from dimvl.files import read_json, write_json
from dimvl.trained_model import TrainedModel


def known_texts(config: RunConfig) -> TextStore | None:
    """Open the texts that an earlier start of this run, or rank 0, has tokenised; None if missing or damaged.

    They replace the annotations, which need not be read again; the caller has made sure that these are the same.
    """
    try:
        name = str(read_json(config.output / TEXTS)["store"])
        read_trained_on(config.output)
    except (UserError, TypeError, KeyError):
        return None
    return open_text_store(config.texts_folder / name)


def tokenised(
    config: RunConfig,
    processor: Processor,
    sources: Sequence[Path],
    texts: Sequence[LabelledText],
    initial: TrainedModel | None,
    progress: NamedProgress,
) -> TextStore:
    """Tokenise texts, and record in the run's folder where they are and which images are trained on.

    Args:
        config: of the run.
        processor: of the run.
        sources: files that the texts come from.
        texts: what they hold.
        initial: the model that the run starts from, whose images count too.
        progress: called while texts are tokenised.

    Raises:
        UserError: there are no texts.

    """
    images = dict.fromkeys(image for text in texts for image in text.image_ids)
    write_trained_on(config.output, images, NOTHING if initial is None else initial.trained_on)
    store = text_store(
        config.texts_folder,
        processor.tokenizer,
        processor.text_tokens,
        sources,
        texts,
        partial(progress, "texts tokenised"),
    )
    write_json(config.output / TEXTS, {"store": store.path.name})
    return store
