"""Captions made noisy, with the kind of noise of each."""

import json
from collections import Counter
from pathlib import Path

import pytest

from dimvl.data.annotations import read_captions
from dimvl.data.examples import keyed_generator
from dimvl.data.noise import BOILERPLATE, CLEAN, KINDS, corrupt
from dimvl.data.scenes import SceneOptions, is_true, read_worlds, write_scenes
from tools.corrupt_captions import noisy_lines, word_changes

SENTENCES = [
    f"a {colour} dog runs over the {place}" for colour in ("red", "black", "small") for place in ("beach", "road")
]
IMAGES = [number // 2 for number in range(600)]
TEXTS = [f"{SENTENCES[number % 6]} number {number // 2}" for number in range(600)]


def test_a_share_of_captions_gets_noise_in_equal_parts_and_the_others_stay() -> None:
    found = corrupt(IMAGES, TEXTS, 0.6, 3, change=lambda place, generator: TEXTS[place].replace("dog", "cat"))
    counts = Counter(noisy.kind for noisy in found)
    assert counts.keys() == {CLEAN, *KINDS} and 210 <= counts[CLEAN] <= 270
    assert all(60 <= counts[kind] <= 120 for kind in KINDS), counts
    for place, (text, kind) in enumerate(found):
        own = {TEXTS[place], TEXTS[place ^ 1]}
        if kind == CLEAN:
            assert text == TEXTS[place]
        elif kind == "swapped":
            assert text in set(TEXTS) - own
        elif kind == "changed":
            assert text == TEXTS[place].replace("dog", "cat")
        elif kind == "truncated":
            assert TEXTS[place].startswith(text) and 0 < len(text.split()) < len(TEXTS[place].split())
        else:
            assert len(text) < 40 and text not in TEXTS
    assert found == corrupt(IMAGES, TEXTS, 0.6, 3, change=lambda place, generator: TEXTS[place].replace("dog", "cat"))
    assert len(BOILERPLATE) == len(set(BOILERPLATE))


def test_what_cannot_be_changed_or_cut_gets_another_kind_and_what_fits_is_no_noise() -> None:
    found = corrupt(
        [0, 1], ["a dog", "a cat"], 1.0, 1, change=lambda *_: None, fits=lambda place, text: text == "a cat"
    )
    assert found[0].kind == "boilerplate", "a cat would fit image 0"
    assert found[1].kind in ("boilerplate", "swapped")
    assert [noisy.text for noisy in corrupt(IMAGES, TEXTS, 0.0, 1, change=lambda *_: None)] == TEXTS


def test_noisy_captions_of_scenes_are_false_of_them_and_the_other_files_stay(tmp_path: Path) -> None:
    plain = SceneOptions(train=6, heldout=0, compositional=0)
    write_scenes(tmp_path / "plain", plain)
    write_scenes(tmp_path / "noisy", SceneOptions(train=6, heldout=0, compositional=0, noisy_captions=0.8))
    train = tmp_path / "noisy" / "train"
    lines = [json.loads(line) for line in (train / "noisy.jsonl").read_text().splitlines()]
    clean, worlds = read_captions(train / "captions.json"), read_worlds(train / "worlds.jsonl")
    assert [caption.text for caption in read_captions(train / "noisy.jsonl")] == [line["caption"] for line in lines]
    for caption, line in zip(clean, lines, strict=True):
        assert caption.image_id == str(line["image"])
        same = caption.text == line["caption"]
        assert same == (line["noise"] == CLEAN) == is_true(line["caption"], worlds[line["image"]])
    assert {line["noise"] for line in lines} == {CLEAN, *KINDS}
    for file in (tmp_path / "plain" / "train").rglob("*.*"):
        assert file.read_bytes() == (train / file.relative_to(tmp_path / "plain" / "train")).read_bytes()


def test_a_changed_word_has_the_same_form_and_another_lemma(tmp_path: Path) -> None:
    pytest.importorskip("lemminflect")
    file = tmp_path / "c.jsonl"
    file.write_text("".join(json.dumps({"image": str(n), "caption": text}) + "\n" for n, text in enumerate(SENTENCES)))
    captions = read_captions(file)
    lines = noisy_lines(captions, 1.0, 2)
    assert len(lines) == 6 and {line["image"] for line in lines} == set("012345")
    change = word_changes(SENTENCES)
    for seed in range(20):
        for place, before in enumerate(SENTENCES):
            after = change(place, keyed_generator(seed))
            pairs = (
                []
                if after is None
                else [pair for pair in zip(before.split(), after.split(), strict=True) if pair[0] != pair[1]]
            )
            assert len(pairs) == (after is not None)
            for old, new in pairs:
                assert {old, new} <= {"red", "black", "small"} or {old, new} <= {"dog", "beach", "road"}
