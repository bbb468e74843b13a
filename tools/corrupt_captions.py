"""Make a share of the captions of a file noisy, in four kinds, and write the kind of each.

python -m tools.corrupt_captions captions.json noisy.jsonl --share 0.6

`dimvl/data/noise.py` says what the kinds are. One changed fact is a changed word: a noun, verb or adjective becomes
another one of the same form that is frequent in the file, so that now and then the caption remains true. Needs the
extra photos, which has the dictionary of words. `dimvl scenes --noisy-captions` does the same for scenes.
"""

import argparse
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dimvl.concepts.words import Lexicon
from dimvl.data.annotations import Caption, read_captions
from dimvl.data.noise import Change, corrupt
from dimvl.errors import UserError
from dimvl.files import atomic_path

FREQUENT = 200
"""Forms of a kind that a word may become, the most frequent."""
ENDINGS = ("ing", "ed", "s", "")
WORD = re.compile(r"[^\W\d_]+")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captions", type=Path, help="captions in any format of docs/annotations.md")
    parser.add_argument("out", type=Path, help="JSON lines to write")
    parser.add_argument("--share", type=float, default=0.6, help="of the captions that become noisy")
    parser.add_argument("--split", nargs="*", default=[], help="splits of a file that has them")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        captions = read_captions(arguments.captions, arguments.split)
        write_lines(arguments.out, noisy_lines(captions, arguments.share, arguments.seed))
    except UserError as error:
        parser.error(str(error))


def noisy_lines(captions: Sequence[Caption], share: float, seed: int) -> list[dict[str, Any]]:
    """Return lines of image, caption and kind of noise; images are named by their file names if they have them."""
    texts = [caption.text for caption in captions]
    made = corrupt([caption.image_ids for caption in captions], texts, share, seed, change=word_changes(texts))
    return [
        {"image": (*caption.file_names, *caption.image_ids)[0], "caption": noisy.text, "noise": noisy.kind}
        for caption, noisy in zip(captions, made, strict=True)
    ]


def word_changes(texts: Sequence[str]) -> Change:
    """Return what changes a word of one of the texts into another one of its part of speech and its ending."""
    lexicon = Lexicon(texts)
    kinds = defaultdict[tuple[str, str], list[str]](list)
    for form in sorted(lexicon.words, key=lambda form: (-lexicon.counts[form], form)):
        kinds[_kind(lexicon, form)].append(form)

    def change(place: int, generator: np.random.Generator) -> str | None:
        found = [word for word in WORD.finditer(texts[place]) if word[0].lower() in lexicon.words]
        if not found:
            return None
        word = found[int(generator.integers(len(found)))]
        form = word[0].lower()
        others = [
            other
            for other in kinds[_kind(lexicon, form)][:FREQUENT]
            if lexicon.words[other].lemma != lexicon.words[form].lemma
        ]
        if not others:
            return None
        return texts[place][: word.start()] + others[int(generator.integers(len(others)))] + texts[place][word.end() :]

    return change


def _kind(lexicon: Lexicon, form: str) -> tuple[str, str]:
    """Part of speech and ending of a form."""
    return lexicon.words[form].part, next(ending for ending in ENDINGS if form.endswith(ending))


def write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
