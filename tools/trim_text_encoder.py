"""Keep of a BERT checkpoint only the word embeddings that a set of captions needs.

python tools/trim_text_encoder.py FOLDER CAPTIONS OUT

FOLDER is a checkpoint in the layout of transformers with a WordPiece tokenizer, CAPTIONS a file of captions in any
format of docs/annotations.md; OUT becomes a folder for `model.bert`. It keeps the tokens that occur in the captions,
the special ones, and every single character, so that other words are written in smaller pieces and none becomes [UNK].
The captions themselves are tokenised as before, and the word head, which has a row for each token, becomes cheaper.
"""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dimvl.data.annotations import read_captions
from dimvl.data.tokenizer import FILE, SPECIAL, Tokenizer
from dimvl.files import atomic_folder, read_json, write_json
from dimvl.files.weights import load_weights, save_weights
from dimvl.model.convert import BERT_WEIGHTS

WORDS = "embeddings.word_embeddings.weight"
DECODER = ("cls.predictions.bias", "cls.predictions.decoder.bias", "cls.predictions.decoder.weight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="checkpoint in the layout of transformers")
    parser.add_argument("captions", type=Path, help="captions in any format of docs/annotations.md")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--split", nargs="+", default=[], help="splits of a file in Karpathy's format")
    arguments = parser.parse_args()
    texts = [caption.text for caption in read_captions(arguments.captions, arguments.split)]
    before, after = trim(arguments.folder, texts, arguments.out)
    print(f"{after:,} of {before:,} tokens kept in {arguments.out}")


def trim(folder: Path, texts: Sequence[str], out: Path) -> tuple[int, int]:
    """Write the smaller checkpoint; return the numbers of tokens before and after."""
    tokenizer = Tokenizer.load(folder)
    kept = kept_ids(tokenizer.tokens(), (token for tokens in tokenizer.encode_all(texts) for token in tokens))
    whole = load_weights(folder / BERT_WEIGHTS, "give a complete checkpoint")
    weights = {
        name: value[kept].contiguous() if name.removeprefix("bert.") in (WORDS, *DECODER) else value
        for name, value in whole.items()
        if value.is_floating_point()  # not position_ids of older checkpoints
    }
    with atomic_folder(out) as temporary:
        save_weights(temporary / BERT_WEIGHTS, weights)
        write_json(temporary / FILE, smaller_tokenizer(read_json(folder / FILE), kept))
        write_json(temporary / "config.json", {**read_json(folder / "config.json"), "vocab_size": len(kept)})
    return len(tokenizer), len(kept)


def kept_ids(tokens: Sequence[str], used: Iterable[int]) -> list[int]:
    """Return which tokens stay, ascending: special ones, single characters, and those in use."""
    always = {place for place, token in enumerate(tokens) if token in SPECIAL or len(token.removeprefix("##")) == 1}
    return sorted(always.union(used))


def smaller_tokenizer(values: dict[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """Return a `tokenizer.json` with the kept tokens alone, numbered from 0 in their old order."""
    number = {old: new for new, old in enumerate(kept)}
    vocabulary = {token: number[old] for token, old in values["model"]["vocab"].items() if old in number}
    added = [{**token, "id": number[token["id"]]} for token in values["added_tokens"] if token["id"] in number]
    return {
        **values,
        "added_tokens": added,
        "truncation": None,
        "padding": None,
        "post_processor": None,  # it has numbers of tokens, and dimvl adds special tokens itself
        "model": {**values["model"], "vocab": vocabulary},
    }


if __name__ == "__main__":
    main()
