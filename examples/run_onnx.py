"""Apply a program of `dimvl export --onnx` with onnxruntime and numpy alone; see docs/elsewhere.md.

Example: python run_onnx.py programs/vqa answer regions.npz "which colour is the star?"
"""

import json
import sys
from pathlib import Path
from unicodedata import category, normalize

import numpy as np
import onnxruntime

CHINESE = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2CEAF), (0x2F800, 0x2FA1F))


def apart(letter):
    """Remove control characters, and put blanks around punctuation and Chinese characters."""
    kind = category(letter)
    if letter in "\t\n\r" or kind[0] == "Z":
        return " "
    alone = kind[0] == "P" or (kind[0] == "S" and letter.isascii()) or any(a <= ord(letter) <= b for a, b in CHINESE)
    return "" if kind in ("Cc", "Cf", "Co") or letter == "\ufffd" else f" {letter} " if alone else letter


def word_pieces(text, settings):
    """Return the token ids of a text as BERT's tokenizer does: of each word the longest pieces from the left."""
    vocabulary, found = settings["model"]["vocab"], []
    if settings["normalizer"]["lowercase"]:
        text = "".join(letter for letter in normalize("NFD", text) if category(letter) != "Mn").lower()
    for word in "".join(map(apart, text)).split():
        start, pieces = 0, []
        while start < len(word):
            names = ((end, "##" * (start > 0) + word[start:end]) for end in range(len(word), start, -1))
            start, name = next((pair for pair in names if pair[1] in vocabulary), (len(word), "[UNK]"))
            pieces.append(name)
        found += [vocabulary[name] for name in (["[UNK]"] if "[UNK]" in pieces or len(word) > 100 else pieces)]
    return found


def main(folder, name, regions, text=""):
    """Print what a program finds for the regions of an image and a text."""
    description, settings = (json.loads((folder / file).read_bytes()) for file in ("program.json", "tokenizer.json"))
    program, most = description["programs"][name], description["limits"]["words"]
    words, arrays = word_pieces(text, settings)[:most], dict(np.load(regions))
    session = onnxruntime.InferenceSession(folder / f"{name}.onnx")

    def outputs():
        given = {**arrays, "words": np.array(words, dtype=np.int64)}
        return session.run(None, {one["name"]: given[one["name"]] for one in program["inputs"]})

    if name == "caption":  # greedily, word by word
        while len(words) < most and (best := int(outputs()[0].argmax())) != settings["model"]["vocab"]["[SEP]"]:
            words.append(best)
        print(" ".join(list(settings["model"]["vocab"])[word] for word in words).replace(" ##", "").replace(" .", "."))
    elif program["labels"]:
        for logit, label in sorted(zip(outputs()[0], program["labels"], strict=True), reverse=True)[:5]:
            print(f"{logit:8.3f}  {label}")
    else:
        print(*(f"{one['name']}: {found}" for one, found in zip(program["outputs"], outputs(), strict=True)), sep="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
