import numpy as np
import pytest
import tokenizers

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


def test_special_tokens_have_the_first_ids():
    assert make_tokenizer().tokens()[:5] == list(SPECIAL)


def test_every_token_is_either_special_or_ordinary():
    tokenizer = make_tokenizer()
    ordinary = tokenizer.ordinary_ids.tolist()
    assert ordinary == sorted(ordinary)
    assert sorted([*ordinary, *tokenizer.special_ids]) == list(range(len(tokenizer)))
