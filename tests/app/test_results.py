"""What the page says is what the predictor says."""

from pathlib import Path

import pytest

from dimvl.app.exports import Exports
from dimvl.app.results import answers, caption, ground, match, one_word_changes
from dimvl.errors import UserError
from dimvl.explanation import without
from dimvl.export import export
from dimvl.predictor import Predictor
from dimvl.search.index import ImageIndex
from tests.app.made import make_export
from tests.factories import make_regions
from tests.search.made import draw, make_index

QUESTION, TEXT = "what is red?", "a red circle above two stars"


@pytest.fixture(scope="module")
def predictor(exports: Exports) -> Predictor:
    return exports.predictors["all"]


def test_each_answer_rests_on_the_regions_that_explain_says_and_the_best_is_that_of_answer(
    exports: Exports, predictor: Predictor
) -> None:
    regions = exports.open_known("1").regions["all"]
    found = answers(predictor, regions, QUESTION)
    # float32 sums of a batch of another size are in another order
    assert [one.text for one in found] == [text for text, _ in predictor.answer(regions, QUESTION).top]
    assert found[0].probability == pytest.approx(predictor.answer(regions, QUESTION).probability, abs=1e-6)
    explained = predictor.explain(regions, QUESTION)
    assert [mark.value for mark in found[0].marks] == pytest.approx(
        [region.probability_drop for region in explained.regions], abs=1e-5
    )
    fewer = predictor.predict("answer", [without(regions, place) for place in range(len(regions))], QUESTION)
    for one in found:
        drops = [one.probability - dict(answer.top)[one.text] for answer in fewer]
        assert [mark.value for mark in one.marks] == pytest.approx(sorted(drops, reverse=True), abs=1e-5)


def test_each_word_of_the_caption_rests_on_what_explain_says(exports: Exports, predictor: Predictor) -> None:
    regions = exports.open_known("1").regions["all"]
    whole, words = caption(predictor, regions)
    explained = predictor.explain(regions, None, "caption")
    assert whole.text == explained.result and tuple(word.text for word in words) == explained.words
    drops = [sorted((region.word_drops[place] for region in explained.regions), reverse=True) for place in (0, 1)]
    assert [[mark.value for mark in word.marks] for word in words[:2]] == drops
    best = explained.regions[0]
    assert whole.marks[0].box == pytest.approx([side / size for side, size in zip(best.box, (90, 70) * 2, strict=True)])


def test_changes_of_one_word_have_the_scores_of_match(exports: Exports, predictor: Predictor) -> None:
    regions = exports.open_known("1").regions["all"]
    whole, changes = match(predictor, regions, TEXT)
    assert whole.probability == pytest.approx(predictor.match(regions, TEXT), abs=1e-6)
    scores = [score for _, score in changes]
    assert scores == sorted(scores, reverse=True)
    assert scores == pytest.approx(predictor.match(regions, [change.text for change, _ in changes]), abs=1e-6)


def test_words_change_to_others_of_their_kind_with_article_and_plural(predictor: Predictor) -> None:
    changes = one_word_changes(predictor, make_regions(0), "A red circle left of two stars")
    assert {change.text for change in changes} == {
        *(f"A {word} circle left of two stars" for word in ("small", "large", "blue")),
        *(f"A red {word} left of two stars" for word in ("square", "star")),
        *(f"A red circle left of two {word}" for word in ("circles", "squares")),
        "A red circle right of two stars",
        *(f"A red circle left of {number} stars" for number in ("one", "three", "four", "five", "six")),
    }
    for change in changes:
        assert change.text[change.place :].startswith(change.new)
    texts = [change.text for change in one_word_changes(predictor, make_regions(0), "An red star")]
    assert [text for text in texts if text.endswith(" star")] == [
        f"A {word} star" for word in ("small", "large", "blue")
    ]


def test_a_phrase_refers_to_what_ground_says(exports: Exports, predictor: Predictor) -> None:
    regions = exports.open_known("1").regions["all"]
    marks, nowhere = ground(predictor, regions, "the star")
    found = predictor.ground(regions, "the star")
    assert [mark.value for mark in marks] == found.probabilities and nowhere == found.nowhere


def test_an_image_without_regions_has_results_that_rest_on_none(predictor: Predictor) -> None:
    empty = make_regions(0, count=0)
    assert not caption(predictor, empty)[0].marks and not answers(predictor, empty, QUESTION)[0].marks
    assert match(predictor, empty, TEXT)[0].probability is not None and ground(predictor, empty, "star")[0] == []


def test_images_of_the_store_are_opened_with_their_regions_and_without_a_file(exports: Exports) -> None:
    assert exports.store is not None
    for image_id in ("1", "4"):  # "4" has no file
        picture = exports.open_known(image_id)
        stored = exports.store.read(exports.store.position(image_id))
        assert (picture.regions["all"].boxes == stored.boxes).all() and picture.size == (90, 70)
        assert exports.thumbnail(image_id).uri.startswith("data:image/jpeg;base64,")


def test_an_image_of_the_index_is_not_among_those_like_it_but_a_copy_of_its_file_finds_it(exports: Exports) -> None:
    assert "1" not in [one.image_id for one in exports.similar(exports.open_known("1"))]
    copy = exports.open(exports.files["1"].read_bytes(), "copy.png")
    assert exports.similar(copy)[0].image_id == "1"


@pytest.mark.parametrize("image_id", ["../1.png", "/etc/passwd", "9", ""])
def test_only_known_ids_open_an_image(exports: Exports, image_id: str) -> None:
    with pytest.raises(UserError, match=r"there is no image .*; choose one"):
        exports.open_known(image_id)


def test_an_export_without_a_detector_takes_stored_images_only(exports: Exports, tmp_path: Path) -> None:
    folder = Path(exports.predictors["all"].trained.weights).parents[1]
    bare = Predictor.from_pretrained(export(folder / "run-all", tmp_path / "bare", "none"))
    alone = Exports({"bare": bare}, store=exports.store)
    assert alone.open_known("2").marks
    with pytest.raises(UserError, match=r"bare has no detector.*--store"):
        alone.open((folder / "1.png").read_bytes(), "1.png")


def test_exports_that_fit_neither_the_page_nor_the_index_are_refused(exports: Exports, tmp_path: Path) -> None:
    other = make_index(tmp_path / "index", draw(3))
    with pytest.raises(UserError, match="was made by exports/made; give that export too"):
        Exports(exports.predictors, ImageIndex(other))
    embeds = Predictor.from_pretrained(make_export(tmp_path, answers=(), captions=False, matches=False, grounds=False))
    with pytest.raises(UserError, match="cannot caption or answer or match or ground; omit it"):
        Exports({"embeds": embeds})


def test_the_examples_of_an_export_come_first(exports: Exports, tmp_path: Path) -> None:
    made = make_export(tmp_path)
    (made / "examples").mkdir()
    (tmp_path / "cat.png").write_bytes(exports.files["1"].read_bytes())
    (made / "examples" / "cat.png").write_bytes(exports.files["1"].read_bytes())
    assert exports.examples == ["1", "2", "3"]
    opened = Exports({"all": Predictor.from_pretrained(made)}, files=exports.files)
    assert opened.examples == ["cat", "1", "2", "3"] and opened.open_known("cat").marks
