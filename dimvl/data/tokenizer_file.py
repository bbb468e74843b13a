"""What a `tokenizer.json` may hold: the parts of published tokenizers, within bounds.

A file of a few bytes could otherwise take all memory: replacements in a chain that each double the text, patterns
without end, byte encodings of byte encodings.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dimvl.errors import UserError
from dimvl.files import read_json
from dimvl.showing import short

LARGEST_FILE = 2**25
"""Bytes; 250,000 tokens of many languages take about 17 MB."""
MOST_TOKENS = 2**20
MOST_PARTS = 8
LONGEST_PART = 100
GROWTH = 16
"""How many times longer replacements may make a text."""
LONGEST_WORD = 1000
PATTERNS = {" {2,}", r"\s+", "[\r\n]+"}
"""Regular expressions that are allowed; others may take forever."""
KINDS = {
    "normalizer": {
        *("BertNormalizer", "Lowercase", "Nmt", "NFC", "NFD", "NFKC", "NFKD", "Strip", "StripAccents"),
        *("Precompiled", "Prepend", "Replace"),
    },
    "pre_tokenizer": {
        *("BertPreTokenizer", "ByteLevel", "Digits", "Metaspace", "Punctuation", "UnicodeScripts", "Whitespace"),
        "WhitespaceSplit",
    },
    "post_processor": {"BertProcessing", "ByteLevel", "RobertaProcessing", "TemplateProcessing"},
    "decoder": {"BPEDecoder", "ByteFallback", "ByteLevel", "Fuse", "Metaspace", "Replace", "Strip", "WordPiece"},
}
MODELS = {"BPE", "Unigram", "WordLevel", "WordPiece"}


def read_tokenizer_file(path: Path) -> dict[str, Any]:
    """Read and check a `tokenizer.json`.

    Raises:
        UserError: it is missing, too large, or has parts that published tokenizers do not have.

    """
    values = read_json(path, LARGEST_FILE)
    try:
        reason = _fault(values)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
    if reason:
        raise UserError(f"{path} is not a tokenizer file that can be used ({reason}); give another, or restore it")
    return dict(values)


def _fault(values: Mapping[str, Any]) -> str:
    """Say what is wrong with the content of a file; empty if nothing is."""
    model, added = values["model"], values.get("added_tokens") or []
    vocabulary = model["vocab"]
    if model.get("type", "WordPiece") not in MODELS:
        return f"its model is {short(model['type'])}"
    if model.get("dropout"):
        return "it drops tokens at random"
    if model.get("max_input_chars_per_word", 0) > LONGEST_WORD:
        return f"max_input_chars_per_word is above {LONGEST_WORD}"
    own = list(vocabulary.values()) if isinstance(vocabulary, dict) else list(range(len(vocabulary)))
    ids = {*own, *(token["id"] for token in added)}
    if len(ids) > MOST_TOKENS:
        return f"it has {len(ids):,} tokens, at most {MOST_TOKENS:,} are read"
    if len(own) != len(set(own)) or ids != set(range(len(ids))):
        return "the ids of its tokens are not 0, 1, 2 and so on, each once"
    if model.get("type", "WordPiece") == "WordPiece" and model.get("unk_token", "[UNK]") not in vocabulary:
        return f"its vocabulary lacks its token for unknown words, {short(model.get('unk_token'))}"
    faults = (_fault_of_parts(section, values.get(section)) for section in KINDS)
    return next((fault for fault in faults if fault), "")


def _fault_of_parts(section: str, value: Any) -> str:
    parts = [] if value is None else [value]
    if value is not None and value["type"] == "Sequence":
        parts = next(part for part in value.values() if isinstance(part, list))
    names = [part["type"] for part in parts]
    if unknown := [name for name in names if name not in KINDS[section]]:
        return f"its {section} has a part {short(unknown[0])}"
    if len(names) > MOST_PARTS:
        return f"its {section} has {len(names)} parts"
    if names.count("ByteLevel") > 1:
        return f"its {section} encodes bytes twice"
    growth = 1.0
    for part in parts:
        if part["type"] == "TemplateProcessing" and max(len(part["single"]), len(part["pair"])) > MOST_PARTS:
            return f"a template of its {section} has more than {MOST_PARTS} pieces"
        if len(part.get("prepend", "")) > LONGEST_PART:
            return f"its {section} prepends more than {LONGEST_PART} characters"
        if part["type"] == "Replace":
            ((kind, pattern),) = part["pattern"].items()
            if not pattern or (kind == "Regex" and pattern not in PATTERNS):
                return f"its {section} replaces {short(pattern)}"
            growth *= max(len(part["content"]) / (len(pattern) if kind == "String" else 1), 1)
    return f"its {section} makes a text {growth:.0f} times longer" if growth > GROWTH else ""
