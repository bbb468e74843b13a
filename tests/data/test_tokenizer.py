import json

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from dimvl.data import tokenizer_file
from dimvl.data.tokenizer import SPECIAL, Tokenizer
from dimvl.errors import UserError
from tests.factories import TEXTS, make_tokenizer


def test_the_same_texts_in_any_order_give_the_same_tokenizer():
    texts = [*TEXTS, "unbelievable squares", "circling starfish"]
    shuffled = [np.random.default_rng(seed).permutation(texts).tolist() for seed in range(6)]
    assert len({Tokenizer.train(order, 70).fingerprint for order in shuffled}) == 1


def test_words_are_decoded_in_lower_case_and_unknown_characters_become_unk():
    tokenizer = make_tokenizer()
    assert tokenizer.decode(tokenizer.encode("The STAR is above a circle")) == "the star is above a circle"
    unknown = tokenizer.encode("star ж")
    assert unknown[-1] not in (tokenizer.cls, tokenizer.sep, tokenizer.mask) and unknown[-1] in tokenizer.special_ids


def test_encoding_adds_no_special_token_even_if_the_text_contains_one():
    tokenizer = Tokenizer.train([*TEXTS, "[ mask ] sep"], 200)
    for text in ("a star", "a [MASK] star [SEP]", "[CLS]"):
        assert not {tokenizer.cls, tokenizer.sep, tokenizer.mask} & set(tokenizer.encode(text))


def test_encode_all_equals_encode_one_by_one():
    tokenizer = make_tokenizer()
    assert tokenizer.encode_all(list(TEXTS)) == [tokenizer.encode(text) for text in TEXTS]


def test_decoding_omits_special_tokens():
    tokenizer = make_tokenizer()
    words = tokenizer.encode("two blue stars")
    assert tokenizer.decode([tokenizer.cls, *words, tokenizer.sep]) == "two blue stars"


def test_the_tokenizer_knows_which_pieces_continue_a_word():
    tokenizer = make_tokenizer()
    pieces = tokenizer.encode("starcircle star")
    assert len(pieces) > 2
    starts = [not tokenizer.continues_word(piece) for piece in pieces]
    assert sum(starts) == 2 and starts[0] and starts[-1]


def test_a_saved_tokenizer_loads_unchanged(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.save(tmp_path)
    for place in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = Tokenizer.load(place)
        assert loaded.fingerprint == tokenizer.fingerprint and len(loaded) == len(tokenizer)
        assert loaded.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])


def test_padding_and_truncation_of_a_loaded_file_are_disabled(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.save(tmp_path)
    inner = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    inner.enable_truncation(2)
    inner.enable_padding(length=9)
    inner.save(str(tmp_path / "other.json"))
    assert Tokenizer.load(tmp_path / "other.json").encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])


def test_files_without_a_wordpiece_and_special_tokens_are_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="not a tokenizer file"):
        Tokenizer.load(tmp_path)
    bare = tokenizers.Tokenizer(tokenizers.models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    bare.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=r"no \[PAD\] token"):
        Tokenizer.load(tmp_path)


PUBLISHED = {  # as on the hub: model, normalizer, pre-tokenizer, post-processor, decoder
    "BERT": (
        models.WordPiece,
        normalizers.BertNormalizer(),
        pre_tokenizers.BertPreTokenizer(),
        processors.TemplateProcessing(
            single="[CLS]:0 $A:0 [SEP]:0",
            pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        ),
        decoders.WordPiece(),
    ),
    "ModernBERT": (
        models.BPE,
        normalizers.NFC(),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2)),
        decoders.ByteLevel(),
    ),
    "DeBERTa": (
        models.Unigram,
        normalizers.Sequence([normalizers.Strip(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]),
        pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Digits()]),
        None,
        decoders.Sequence([decoders.Metaspace(), decoders.Replace("a", "a")]),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_tokenizers_of_the_kinds_that_the_hub_has_open(tmp_path, name):
    kind, *parts = PUBLISHED[name]
    tokens = [*SPECIAL, "a", "s", "t", "r", "##r"]
    if kind is models.Unigram:
        model = models.Unigram([(token, -1.0) for token in tokens], unk_id=1)
    else:
        numbered = {token: number for number, token in enumerate(tokens)}
        model = models.BPE(numbered, []) if kind is models.BPE else models.WordPiece(numbered, unk_token="[UNK]")
    inner = tokenizers.Tokenizer(model)
    inner.normalizer, inner.pre_tokenizer, inner.post_processor, inner.decoder = parts
    inner.save(str(tmp_path / "tokenizer.json"))
    assert len(Tokenizer.load(tmp_path)) == len(tokens)


DOUBLED = {"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaaaaaaaaaaaaaa"}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"normalizer": DOUBLED}, "its normalizer makes a text 20 times longer"),
        ({"normalizer": {"type": "Sequence", "normalizers": [DOUBLED] * 9}}, "its normalizer has 9 parts"),
        ({"decoder": {"type": "Sequence", "decoders": [DOUBLED]}}, "its decoder makes a text 20 times longer"),
        ({"normalizer": {**DOUBLED, "pattern": {"Regex": "(a+)+$"}}}, r"its normalizer replaces '\(a\+\)\+\$'"),
        ({"normalizer": {**DOUBLED, "pattern": {"String": ""}}}, "its normalizer replaces ''"),
        ({"normalizer": {"type": "Prepend", "prepend": "a" * 10**6}}, "prepends more than 100 characters"),
        (
            {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTES] * 2}},
            "its pre_tokenizer encodes bytes twice",
        ),
        ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "."}}}, "has a part 'Split'"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Sequence"}]}}, "has a part 'Sequence'"),
        ({"post_processor": {"type": "TemplateProcessing", "single": [{}] * 9, "pair": []}}, "more than 8 pieces"),
        ({"model": {"type": "Other", "vocab": {}}}, "its model is 'Other'"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [], "dropout": 0.1}}, "drops tokens at random"),
        ({"model": {"type": "WordPiece", "vocab": {"a": 7}}}, "not 0, 1, 2 and so on, each once"),
        ({"model": {"type": "WordPiece", "vocab": {"a": 5, "b": 5}}}, "not 0, 1, 2 and so on, each once"),
        ({"model": {"type": "WordPiece", "vocab": {"a": "5"}}}, "not 0, 1, 2 and so on, each once"),
        (
            {"model": {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "b"}, "added_tokens": []},
            "unknown words, 'b'",
        ),
        ({"model": None}, "TypeError"),
        ({"added_tokens": [3]}, "TypeError"),
        ({"normalizer": {"type": "NFC", "normalizers": 4}, "decoder": {"type": "Metaspace"}}, "did not match"),
    ],
)
def test_a_tokenizer_file_with_other_parts_or_out_of_bounds_is_one_sentence(tmp_path, changes, says):
    make_tokenizer().save(tmp_path)
    values = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps({**values, **changes}))
    with pytest.raises(UserError, match=f"tokenizer.json is not a tokenizer file that can be used .*{says}"):
        Tokenizer.load(tmp_path)


def test_a_tokenizer_file_of_too_many_tokens_or_more_than_32_mib_is_not_read(tmp_path, monkeypatch):
    make_tokenizer().save(tmp_path)
    monkeypatch.setattr(tokenizer_file, "MOST_TOKENS", 9)
    with pytest.raises(UserError, match=r"it has \d+ tokens, at most 9 are read"):
        Tokenizer.load(tmp_path)
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(2**25 + 1)
    with pytest.raises(UserError, match="has 33,554,433 bytes but such a file has at most 33,554,432"):
        Tokenizer.load(tmp_path)


def test_special_tokens_have_the_first_ids():
    assert make_tokenizer().tokens()[:5] == list(SPECIAL)


def test_every_token_is_either_special_or_ordinary():
    tokenizer = make_tokenizer()
    ordinary = tokenizer.ordinary_ids.tolist()
    assert ordinary == sorted(ordinary)
    assert sorted([*ordinary, *tokenizer.special_ids]) == list(range(len(tokenizer)))
