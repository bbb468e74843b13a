import io
import itertools
import logging
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dimvl.image_inputs
import dimvl.predictor_base
from dimvl.data.annotations import Question
from dimvl.data.prefixes import make_prefix
from dimvl.decoding import DecodingOptions
from dimvl.errors import UserError
from dimvl.export import export
from dimvl.predictor import Predictor
from dimvl.regions.detectors import scenes
from dimvl.regions.detectors.scenes import Detector
from dimvl.regions.extract import extract
from dimvl.regions.listing import images_of_folder
from dimvl.regions.records import Regions
from dimvl.regions.store import RegionStore
from dimvl.regions.store.writer import RegionStoreWriter
from dimvl.tasks.answering.prediction import answer_probabilities, answer_questions
from dimvl.tasks.captioning.prediction import caption_images, captions
from dimvl.tasks.pretraining.matching import match_pairs
from dimvl.trained_model import load_model
from tests import typed_predictor
from tests.exports import all_abilities, make_detector, make_image, make_trained, write_run

QUESTION = "is the star above a circle"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export, and images 1.png to 3.png beside it."""
    place = tmp_path_factory.mktemp("predictor")
    detector = make_detector()
    detector.save(place / "detector")
    run = write_run(place / "run", make_trained(all_abilities(detector.extractor)))
    export(run, place / "export", place / "detector")
    for number in (1, 2, 3):
        make_image(number).save(place / f"{number}.png")
    return place


@pytest.fixture(scope="module")
def predictor(folder: Path) -> Predictor:
    return Predictor.from_pretrained(folder / "export", "cpu")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of images in each call of the detector."""
    calls: list[int] = []
    detect = Detector.detect_prepared

    def counted(self: Detector, arrays: Sequence[np.ndarray], boxes: None = None) -> object:
        calls.append(len(arrays))
        return detect(self, arrays, boxes)

    monkeypatch.setattr(Detector, "detect_prepared", counted)
    return calls


def test_predictions_from_images_are_those_from_a_region_store(folder: Path, predictor: Predictor) -> None:
    with RegionStoreWriter(folder / "regions", Detector.load(folder / "detector").extractor) as writer:
        extract(images_of_folder(folder), Detector.load(folder / "detector"), writer)
    store, trained = RegionStore(folder / "regions"), load_model(folder / "export")
    images = [folder / f"{number}.png" for number in (1, 2, 3)]
    questions = [Question(number, (str(number),), QUESTION, ()) for number in (1, 2, 3)]
    answers = [answer.text for answer in predictor.answer(images, QUESTION)]
    assert answers == list(answer_questions(trained, store, questions).values())
    assert predictor.caption(images) == list(caption_images(trained, store, ["1", "2", "3"]).values())
    matches = match_pairs(trained, store, [(str(number), QUESTION) for number in (1, 2, 3)])
    np.testing.assert_allclose(predictor.match(images, QUESTION), matches, atol=1e-5)


def test_a_list_gives_the_results_of_its_items(folder: Path, predictor: Predictor) -> None:
    images = [folder / f"{number}.png" for number in (1, 2, 3)]
    texts = ["a star", "is it red", "two blue stars"]
    pairs = list(zip(images, texts, strict=True))
    single = [predictor.answer(image, text) for image, text in pairs]
    for answer, expected in zip(predictor.answer(images, texts), single, strict=True):
        assert answer.text == expected.text
        assert answer.probability == pytest.approx(expected.probability, abs=1e-5)
    assert predictor.match(images, texts) == pytest.approx([predictor.match(*pair) for pair in pairs], abs=1e-5)
    assert predictor.caption(images) == [predictor.caption(image) for image in images]


def test_answers_come_best_first_with_a_probability_of_their_own(folder: Path, predictor: Predictor) -> None:
    answer = predictor.answer(folder / "1.png", QUESTION, top=3)
    assert (answer.text, answer.probability) == answer.top[0]
    assert len(answer.top) == 3
    assert sorted(answer.top, key=lambda pair: -pair[1]) == answer.top
    with pytest.raises(UserError, match="top is 0; it must be at least 1"):
        predictor.answer(folder / "1.png", QUESTION, top=0)
    assert len(predictor.answer(folder / "1.png", QUESTION, top=99).top) == len(predictor.trained.processor.answers)


def test_regions_are_detected_once_for_many_questions_about_an_image(
    folder: Path, predictor: Predictor, seen: list[int]
) -> None:
    assert len(predictor.answer(folder / "1.png", ["is it red", QUESTION, "a star"])) == 3
    predictor.caption([folder / "1.png", folder / "2.png", str(folder / "1.png")])
    assert seen == [1, 2]


def test_the_weights_of_the_detector_are_hashed_once_for_all_images(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[int] = []
    fingerprint = scenes.fingerprint
    monkeypatch.setattr(scenes, "fingerprint", lambda *given: hashed.append(1) or fingerprint(*given))
    opened = Predictor.from_pretrained(folder / "export", "cpu")
    opened.caption(folder / "1.png")
    first = len(hashed)
    opened.caption([folder / f"{number}.png" for number in (1, 2, 3)])
    assert first and len(hashed) == first


@pytest.mark.parametrize("shared", [True, False])
def test_pairs_in_any_order_get_the_single_answers_with_one_detection_and_one_prefix_per_image(
    folder: Path, tmp_path: Path, seen: list[int], monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    processor = all_abilities(Detector.load(folder / "detector").extractor, shared_prefix=shared)
    run = write_run(tmp_path / "run", make_trained(processor))
    predictor = Predictor.from_pretrained(export(run, tmp_path / "export", folder / "detector"), "cpu")
    images = [folder / f"{number}.png" for number in (1, 2, 1, 3, 2, 1)]
    questions = ["is it red", "a star", "two blue stars", QUESTION, "is it red", QUESTION]
    alone = [predictor.answer(*pair) for pair in zip(images, questions, strict=True)]
    matches = [predictor.match(*pair) for pair in zip(images, questions, strict=True)]
    prefixes: list[int] = []
    embed = type(predictor.trained.model).embed
    counted = lambda model, batch: prefixes.append(len(batch.layout.num_regions)) or embed(model, batch)  # noqa: E731
    monkeypatch.setattr(type(predictor.trained.model), "embed", counted)
    seen.clear()
    together = predictor.answer(images, questions)
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    for answer, expected in zip(together, alone, strict=True):
        assert dict(answer.top) == pytest.approx(dict(expected.top), abs=1e-5)
    assert predictor.match(images, questions) == pytest.approx(matches, abs=1e-5)
    assert seen == [3, 3] and prefixes == ([3, 3] if shared else [6, 6])
    assert len({answer.top[0] for answer in alone}) == 6, "they differ, so an exchange would show"
    monkeypatch.setattr(dimvl.predictor_base, "ROWS_AT_ONCE", 20)
    assert [answer.text for answer in predictor.answer(images, questions)] == [answer.text for answer in alone]
    assert len(prefixes) > 4
    assert predictor.answer([], []) == predictor.answer([], QUESTION) == predictor.caption([]) == []


def test_images_of_a_long_list_are_read_ahead_and_a_bad_one_is_skipped(
    folder: Path,
    tmp_path: Path,
    predictor: Predictor,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    torn, missing = tmp_path / "torn.png", tmp_path / "missing.png"
    torn.write_bytes((folder / "1.png").read_bytes()[:200])
    files = [folder / "1.png", torn, folder / "2.png", missing, folder / "3.png"]
    monkeypatch.setattr(dimvl.image_inputs, "AT_ONCE", 2)
    skipped: list[tuple[Path, str]] = []
    shown: list[tuple[int, int]] = []
    found = list(predictor.regions_of_files(files, skipped, lambda *done: shown.append(done)))
    assert [[regions.image_id for regions in part] for part in found] == [
        [str(folder / "1.png"), str(folder / "2.png")],
        [str(folder / "3.png")],
    ]
    assert [path for path, _ in skipped] == [torn, missing] and "does not exist" in skipped[1][1]
    assert (
        caplog.text.count("skipped: ") == 2 and shown[-1] == (5, 5) and [done for done, _ in shown] == [0, 1, 3, 4, 5]
    )
    for regions, file in zip(itertools.chain(*found), (1, 2, 3), strict=True):
        np.testing.assert_array_equal(regions.features, predictor.regions(folder / f"{file}.png").features)


def test_a_long_list_is_processed_in_parts_with_the_same_results(
    folder: Path, predictor: Predictor, seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [folder / f"{number}.png" for number in (1, 2, 3, 1, 2)]
    answers, captions = predictor.answer(images, QUESTION), predictor.caption(images)
    matches = predictor.match(images, QUESTION)
    assert seen == [3, 3, 3]
    monkeypatch.setattr(dimvl.image_inputs, "AT_ONCE", 2)
    seen.clear()
    assert [answer.text for answer in predictor.answer(images, QUESTION)] == [answer.text for answer in answers]
    assert seen == [2, 1]
    assert predictor.caption(images) == captions
    assert predictor.match(images, QUESTION) == pytest.approx(matches, abs=1e-5)


def test_an_image_gives_the_same_caption_from_every_kind_of_source_and_in_every_sequence(
    folder: Path, predictor: Predictor
) -> None:
    files = [folder / f"{number}.png" for number in (1, 2, 3)]
    wanted = [predictor.caption(file) for file in files]
    assert len(set(wanted)) == 3
    assert set(typed_predictor.captions_of_one_image_of_any_kind(predictor, files[0])) == {wanted[0]}
    for found in typed_predictor.captions_of_every_sequence(predictor, files):
        assert found == wanted
    with pytest.raises(UserError, match=r"image 1 of 1 is an array of shape \(3, 70, 90, 3\)"):
        predictor.caption(np.stack([np.asarray(Image.open(file)) for file in files]))
    with pytest.raises(UserError, match=r"image 2 of 2 is 7 of type int; give a path"):
        predictor.caption([files[0], 7])  # type: ignore[list-item]


def torn_image(path: Path) -> Image.Image:
    """An open image whose file ends early: it fails when its pixels are needed."""
    return Image.open(io.BytesIO(path.read_bytes()[:300]))


def test_a_torn_image_in_memory_is_named_and_with_skipped_costs_only_itself(folder: Path, predictor: Predictor) -> None:
    images = [Image.open(io.BytesIO((folder / f"{number}.png").read_bytes())) for number in (1, 2, 3)]
    whole, images[1] = [images[0], images[2]], torn_image(folder / "2.png")
    with pytest.raises(UserError, match="image 1 of 1 cannot be read"):
        predictor.caption(images[1])
    with pytest.raises(UserError, match="image 2 of 3 cannot be read"):
        predictor.caption(images)
    with pytest.raises(UserError, match="image 2 of 3 in input 2 of 2 cannot be read"):
        predictor._finder.find([images[:1], images], None)
    skipped: list[tuple[int, str]] = []
    regions, *results = typed_predictor.results_without_torn_images(predictor, images, QUESTION, skipped)
    assert [place for place, _ in skipped] == [1] * 4
    assert all(reason.startswith("image 2 of 3 cannot be read") for _, reason in skipped)
    assert [one and len(one) for one in regions] == [
        len(predictor.regions(whole[0])),
        None,
        len(predictor.regions(whole[1])),
    ]
    wanted = [predictor.caption(whole), predictor.answer(whole, QUESTION), predictor.match(whole, QUESTION)]
    assert results == [[first, None, last] for first, last in wanted]
    assert predictor.match([folder / "no.png"], ["a star", "two"], skipped=skipped) == [None, None]
    assert skipped[-1][0] == 0 and "does not exist" in skipped[-1][1]


def test_an_image_on_which_the_detector_fails_costs_only_itself(
    folder: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    detect, bad = Detector.detect_prepared, predictor._finder.detector.prepare(Image.open(folder / "2.png"))

    def failing(self: Detector, arrays: Sequence[np.ndarray], boxes: None = None) -> object:
        if any(np.array_equal(array, bad) for array in arrays):
            raise RuntimeError("no memory")
        return detect(self, arrays, boxes)

    images = [folder / f"{number}.png" for number in (1, 2, 3)]
    wanted = predictor.caption([images[0], images[2]])
    monkeypatch.setattr(Detector, "detect_prepared", failing)
    skipped: list[tuple[int, str]] = []
    assert predictor.caption(images, skipped=skipped) == [wanted[0], None, wanted[1]]
    assert skipped == [(1, f"image {images[1]}: the detector fails on it (no memory)")]


def test_a_predictor_has_as_many_parameters_as_its_model_card_says(folder: Path, predictor: Predictor) -> None:
    plain = load_model(folder / "export")
    assert predictor.num_parameters == plain.num_parameters == sum(p.numel() for p in plain.model.parameters())
    card = (folder / "export" / "README.md").read_text(encoding="utf-8")
    assert f"({predictor.num_parameters / 1e6:.2f} million parameters)" in card


def test_captions_are_decoded_as_asked(folder: Path, predictor: Predictor) -> None:
    images = [folder / f"{number}.png" for number in (1, 2, 3)]
    store = captions_of(predictor, images)
    short = predictor.caption(images, 2, max_tokens=4)
    assert all(len(text.split()) <= 3 for text in short) and short != predictor.caption(images, 2)
    for options in ({}, {"length_penalty": 3.0}, {"block_ngrams": 1}, {"max_tokens": 4}):
        assert predictor.caption(images, 2, **options) == store(DecodingOptions(beams=2, **options))
    for options, words in [
        ({"block_ngrams": -1}, "block_ngrams is -1"),
        ({"max_tokens": 40}, "max_tokens is 40 but .* at most 17"),
        ({"length": 2}, "unknown key 'length'"),
    ]:
        with pytest.raises(UserError, match=words):
            predictor.caption(images, **options)


def captions_of(predictor: Predictor, images: Sequence[Path]) -> Callable[[DecodingOptions], list[str]]:
    prefixes = [make_prefix(regions, predictor.trained.processor.tags) for regions in predictor.regions(images)]
    return lambda options: captions(predictor.trained, prefixes, options)


def test_regions_in_place_of_an_image_are_not_detected_again(
    folder: Path, predictor: Predictor, seen: list[int]
) -> None:
    regions = predictor.regions(folder / "1.png")
    assert predictor.answer(regions, QUESTION) == predictor.answer(folder / "1.png", QUESTION)
    predictor.explain(regions, QUESTION)
    predictor.caption(regions)
    assert seen == [1, 1]


def rotated(image: Image.Image, path: Path) -> None:
    """Save with the camera's flag to turn the image upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)


@pytest.mark.parametrize("kind", ["grey", "rgba", "16-bit", "exif", "palette"])
def test_images_of_every_format_give_the_same_answer_from_file_and_from_memory(
    tmp_path: Path, predictor: Predictor, kind: str
) -> None:
    path, image = tmp_path / "image.png", make_image()
    if kind == "exif":
        rotated(image, path)
    elif kind == "16-bit":
        Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 16).save(path)
    else:
        image.convert({"grey": "L", "rgba": "RGBA", "palette": "P"}[kind]).save(path)
    answer = predictor.answer(path, QUESTION)
    with Image.open(path) as opened:
        assert predictor.answer(opened, QUESTION) == answer
    if kind in ("exif", "rgba"):
        assert answer == predictor.answer(image, QUESTION), "upright and opaque it is the same image"
        assert (predictor.regions(path).width, predictor.regions(path).height) == image.size


def test_an_image_without_objects_is_one_region_and_every_method_takes_it(tmp_path: Path) -> None:
    blind = make_detector(score_threshold=1.0)
    blind.save(tmp_path / "detector")
    run = write_run(tmp_path / "run", make_trained(all_abilities(blind.extractor)))
    predictor = Predictor.from_pretrained(export(run, tmp_path / "export", tmp_path / "detector"))
    regions = predictor.regions(make_image())
    np.testing.assert_array_equal(regions.boxes, [[0, 0, 1, 1]])
    assert predictor.answer(regions, QUESTION).text and isinstance(predictor.caption(regions), str)
    assert 0 < predictor.match(regions, QUESTION) < 1
    explanation = predictor.explain(regions, QUESTION)
    assert [(region.name, region.attributes, region.score) for region in explanation.regions] == [("", (), 0.0)]


def test_vectors_of_an_image_do_not_depend_on_the_batch_and_each_region_keeps_its_own(
    folder: Path, predictor: Predictor, seen: list[int]
) -> None:
    first, second = folder / "1.png", folder / "2.png"
    alone, torn, both = predictor.encode([first, b"torn", second], skipped=(skipped := []))
    assert torn is None and [place for place, _ in skipped] == [1] and alone is not None and both is not None
    regions = predictor.regions(first)
    assert alone.image.shape == (16,) and alone.regions.shape == (len(regions), 16) and alone.image.dtype == np.float32
    np.testing.assert_array_equal(alone.boxes, regions.boxes)
    np.testing.assert_allclose(predictor.encode(first).regions, alone.regions, atol=1e-5)  # other sizes, other rounding
    order = np.arange(len(regions))[::-1]
    turned = replace(regions, **{name: array[order] for name, array in regions.arrays.items()})
    found = predictor.encode(turned)
    np.testing.assert_allclose(found.regions, alone.regions[order], atol=1e-4)  # sums in another order
    np.testing.assert_allclose(found.image, alone.image, atol=1e-4)
    changed = regions.features.copy()
    changed[0] += 1
    other = predictor.encode(replace(regions, features=changed))
    assert abs(other.image - alone.image).max() > 1e-3 and abs(other.regions[1] - alone.regions[1]).max() > 1e-3


def test_drawn_regions_are_on_the_image_and_an_open_file_is_read_once(folder: Path, predictor: Predictor) -> None:
    drawn = predictor.draw(folder / "1.png", longest_side=180)
    assert drawn.size == (180, 140) and drawn != make_image(1).resize(drawn.size)
    with (folder / "1.png").open("rb") as file:
        assert predictor.draw(file, longest_side=180) == drawn
    explained = predictor.draw(folder / "1.png", predictor.explain(folder / "1.png", QUESTION), 180)
    assert explained.size == drawn.size and explained != drawn
    with pytest.raises(UserError, match="is given as regions, which have no pixels; give the image"):
        predictor.draw(predictor.regions(folder / "1.png"))


def test_an_explanation_is_the_probability_drop_when_a_region_and_its_tags_are_removed(
    folder: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    regions = predictor.regions(folder / "1.png")
    assert len(regions) > 2
    trained = predictor.trained
    words = trained.tokenise([QUESTION])
    whole = answer_probabilities(trained, [make_prefix(regions, trained.processor.tags)], words)[0]
    best = int(whole.argmax())
    expected = {}
    for place in range(len(regions)):
        kept = [other for other in range(len(regions)) if other != place]
        arrays = {name: value[kept] for name, value in vars(regions).items() if isinstance(value, np.ndarray)}
        prefix = make_prefix(replace(regions, **arrays), trained.processor.tags)
        left = answer_probabilities(trained, [prefix], words)[0, best]
        corner = regions.boxes[place] * [regions.width, regions.height, regions.width, regions.height]
        expected[tuple(np.round(corner, 2))] = float(whole[best] - left)
    calls = []
    forward = type(trained.model).forward
    monkeypatch.setattr(
        type(trained.model), "forward", lambda model, batch: calls.append(batch) or forward(model, batch)
    )
    explanation = predictor.explain(regions, QUESTION)
    assert len(calls) == 1 and len(calls[0].layout.num_regions) == len(regions) + 1
    assert explanation.result.text == trained.processor.answers[best]
    drops = {tuple(np.round(region.box, 2)): region.probability_drop for region in explanation.regions}
    assert drops == pytest.approx(expected, abs=1e-5)
    assert max(map(abs, drops.values())) > 1e-3
    drops = [region.probability_drop for region in explanation.regions]
    assert drops == sorted(drops, reverse=True)


def test_an_explanation_names_regions_as_the_detector_did(folder: Path, predictor: Predictor) -> None:
    regions, extractor = predictor.regions(folder / "1.png"), predictor.trained.processor.extractor
    expected = {
        (
            extractor.classes[class_ids[0]],
            tuple(extractor.attributes[index] for index in attribute_ids),
            float(scores[0]),
        )
        for class_ids, attribute_ids, scores in zip(
            regions.class_ids, regions.attribute_ids, regions.class_scores, strict=True
        )
    }
    described = {
        (region.name, region.attributes, region.score) for region in predictor.explain(regions, QUESTION).regions
    }
    assert described == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty; give some words"),
        ("  \n", "is empty; give some words"),
        ("\u200b\x01", r"is empty \(it has only '\\u200b\\x01'\); give some words"),
        ("a" * 100_001, "has 100,001 characters, more than 100,000; shorten it"),
    ],
    ids=["empty", "blank", "invisible", "long"],
)
def test_an_empty_or_endless_question_is_refused_before_the_detector_runs(
    folder: Path, predictor: Predictor, seen: list[int], text: str, says: str
) -> None:
    for ask in (predictor.answer, predictor.match, predictor.explain):
        with pytest.raises(UserError, match=says):
            ask(folder / "1.png", text)
    assert seen == []


def test_a_question_that_is_too_long_is_cut_with_a_warning(
    folder: Path, predictor: Predictor, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        answer = predictor.answer(folder / "1.png", "a star " * 30)
    assert "1 of 1 texts are longer than 16 tokens and were truncated" in caplog.text
    assert answer == predictor.answer(folder / "1.png", "a star " * 8)


def test_images_and_texts_that_do_not_pair_up_are_refused(folder: Path, predictor: Predictor) -> None:
    with pytest.raises(UserError, match="2 images and 3 texts do not pair up"):
        predictor.answer([folder / "1.png", folder / "2.png"], ["a", "b", "c"])


def test_regions_of_another_width_are_refused(folder: Path, predictor: Predictor) -> None:
    regions: Regions = predictor.regions(folder / "1.png")
    wide = replace(regions, features=np.concatenate([regions.features, regions.features], axis=1))
    with pytest.raises(UserError, match="features of width 12 but those of tiny are 6 wide"):
        predictor.answer(wide, QUESTION)
    with pytest.raises(UserError, match="features of width 12 but those of tiny are 6 wide"):
        predictor.explain(wide, QUESTION)


def test_a_missing_ability_is_refused_with_the_list_of_abilities(folder: Path, tmp_path: Path) -> None:
    processor = all_abilities(Detector.load(folder / "detector").extractor, answers=(), matches=False)
    run = write_run(tmp_path / "run", make_trained(processor))
    predictor = Predictor.from_pretrained(export(run, tmp_path / "export", folder / "detector"))
    for ask in (predictor.answer, predictor.match, predictor.explain):
        with pytest.raises(UserError, match=r"cannot (answer|match), but it can caption"):
            ask(folder / "1.png", QUESTION)
    assert predictor.caption(folder / "1.png")


def test_a_detector_replaced_after_the_export_is_refused(folder: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", make_trained(all_abilities(Detector.load(folder / "detector").extractor)))
    predictor = Predictor.from_pretrained(export(run, tmp_path / "export", folder / "detector"))
    make_detector(seed=5).save(tmp_path / "export" / "detector")
    with pytest.raises(UserError, match="the model was trained with tiny"):
        predictor.caption(folder / "1.png")


def test_a_hub_name_is_downloaded_but_a_missing_folder_is_not_mistaken_for_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub

    asked: list[str] = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, revision: asked.append(name) or str(folder / "export")
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "exports").mkdir()
    assert Predictor.from_pretrained("someone/scenes-vqa").trained.processor.answers
    for missing in ("exports/vqa", tmp_path / "nowhere", "nowhere"):
        with pytest.raises(UserError, match="does not exist; give the folder of an export"):
            Predictor.from_pretrained(missing)
    assert asked == ["someone/scenes-vqa"]


def test_an_unreachable_hub_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(name: str, revision: str | None) -> str:
        raise OSError("no route to host\nand many more lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(UserError, match=r"scenes-vqa: the hub's client failed \(no route to host and"):
        Predictor.from_pretrained("someone/scenes-vqa")


def test_the_predictor_needs_no_training_code_and_loads_torchvision_with_the_first_image(folder: Path) -> None:
    unwanted = ["dimvl.training", "torchvision", "transformers", "deepspeed", "wandb", "matplotlib", "pandas", "rich"]
    code = f"import sys, dimvl.predictor, dimvl.evaluation; print([n for n in {unwanted} if n in sys.modules])\n"
    # torch's compiler takes over a second to import, and torch imports it for what models rarely need
    code += (
        f"dimvl.predictor.Predictor.from_pretrained({str(folder / 'export')!r}).caption({str(folder / '1.png')!r})\n"
    )
    code += "print('torchvision' in sys.modules, 'torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "True False"]
