"""tools/trim_text_encoder.py: fewer tokens, the same captions."""

import json
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dimvl.data.tokenizer import SPECIAL, Tokenizer
from dimvl.files.weights import load_weights, save_weights
from tools.trim_text_encoder import WORDS, trim

LETTERS = "abcdefgh"
WORDLIST = ["bad", "badge", "cafe", "face", "faced", "head", "headache", "bagged", "decade", "hedge"]


def make_encoder(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer.train([" ".join(WORDLIST * 3), " ".join(LETTERS), LETTERS + "a"], 200)
    tokenizer.save(folder)
    generator = torch.Generator().manual_seed(0)
    weights = {
        WORDS: torch.randn(len(tokenizer), 4, generator=generator),
        "encoder.layer.0.output.dense.weight": torch.ones(4, 4),
        "embeddings.position_ids": torch.arange(9)[None],
    }
    save_weights(folder / "model.safetensors", weights)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": len(tokenizer)}))
    return tokenizer


def test_captions_keep_their_tokens_and_embeddings_and_no_word_becomes_unknown(tmp_path: Path) -> None:
    whole = make_encoder(tmp_path)
    texts = ["a bad cafe", "badge"]
    before, after = trim(tmp_path, texts, tmp_path / "out")
    trimmed = Tokenizer.load(tmp_path / "out")
    assert (before, after) == (len(whole), len(trimmed)) and after < before
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == after
    old, new = (load_weights(folder / "model.safetensors", "") for folder in (tmp_path, tmp_path / "out"))
    assert new.keys() == old.keys() - {"embeddings.position_ids"}, "integers are no weights"
    assert torch.equal(new["encoder.layer.0.output.dense.weight"], torch.ones(4, 4))
    for text in texts:
        theirs, own = whole.encode(text), trimmed.encode(text)
        assert [whole.tokens()[token] for token in theirs] == [trimmed.tokens()[token] for token in own]
        assert torch.equal(old[WORDS][theirs], new[WORDS][own])
    assert len(trimmed.special_ids) == len(SPECIAL)

    unknown = trimmed.tokens().index("[UNK]")

    @settings(max_examples=50, deadline=None)
    @given(st.text(LETTERS, min_size=1, max_size=12))
    def every_word_is_written(word: str) -> None:
        own = trimmed.encode(word)
        assert unknown not in own and trimmed.decode(own) == word

    every_word_is_written()
