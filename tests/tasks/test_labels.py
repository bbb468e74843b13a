"""Zero-shot classification: labels and templates, probabilities by hand, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dimvl.data.prefixes import PrefixImages, make_prefix
from dimvl.errors import UserError
from dimvl.predictor import Predictor
from dimvl.regions.store import RegionStore
from dimvl.tasks.retrieval.labels import TEMPLATES, filled, read_labels, read_templates
from dimvl.tasks.retrieval.prediction import embed_images, embed_texts, scales
from dimvl.tasks.retrieval.zero_shot import class_probabilities, embed_classes
from dimvl.trained_model import TrainedModel
from tests.exports import all_abilities, make_trained
from tests.factories import make_regions, make_store

LABELS = ["star", "blue square", "circle"]


@pytest.fixture(scope="module")
def trained() -> TrainedModel:
    return make_trained(all_abilities(answers=(), aligns=True, task="pretrain"), seed=2)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> RegionStore:
    return RegionStore(make_store(tmp_path_factory.mktemp("store") / "regions", 6, empty=4))


def test_probabilities_are_the_softmax_of_cosines_with_the_mean_sentence_of_each_class(
    trained: TrainedModel, store: RegionStore
) -> None:
    keys = [((str(image),), ()) for image in range(1, 7)]  # image 4 has no region
    prefixes = trained.processor.reader(store).prefixes(PrefixImages.find(store, keys))
    found = class_probabilities(trained, prefixes, None, embed_classes(trained, LABELS))
    scale = float(scales(trained)[0])
    for prefix, probabilities in zip(prefixes, found, strict=True):
        image, logits = embed_images(trained, [prefix]).pooled[0], []
        for label in LABELS:
            units = embed_texts(trained, trained.tokenise([filled(one, label) for one in TEMPLATES])).pooled
            mean = units.mean(dim=0)
            logits.append(scale * image @ mean / mean.norm())
        torch.testing.assert_close(probabilities, torch.stack(logits).softmax(dim=0), atol=1e-5, rtol=1e-4)
    assert (found.std(dim=0) > 0.005).all(), "a model that sees everything alike would prove nothing"


def test_a_predictor_ranks_labels_of_one_image_or_of_several(trained: TrainedModel, tmp_path: Path) -> None:
    predictor = Predictor(trained, tmp_path)
    images = [make_regions(seed, str(seed)) for seed in range(4)]
    several = predictor.classify(images, LABELS, top=2)
    assert [len(found) for found in several] == [2] * 4 and len(predictor.classify(images[0], LABELS)) == 3
    classes = embed_classes(trained, LABELS)
    for image, found in zip(images, several, strict=True):
        assert predictor.classify(image, classes)[0] == pytest.approx(found[0])
        assert found[0][1] >= found[1][1]
        prefix = make_prefix(image, trained.processor.tags)
        best = class_probabilities(trained, [prefix], None, classes)[0].max()
        assert found[0][1] == pytest.approx(float(best), abs=1e-5)
    other = predictor.classify(images, LABELS, templates=["two {} above a circle"])
    assert [found[0][1] for found in other] != pytest.approx([found[0][1] for found in several])


@pytest.mark.parametrize(
    ("template", "name", "text"),
    [
        ("a photo of a(n) {}.", "apple", "a photo of an apple."),
        ("A(n) {}.", "Red star", "A Red star."),
        ("a(n) old {}", "dog", "an old dog"),
        ("the {}, a(n) animal", "cat", "the cat, an animal"),
        ("{}", "a(n)", "a(n)"),
    ],
)
def test_a_template_fits_the_article_to_the_word_that_follows(template: str, name: str, text: str) -> None:
    assert filled(template, name) == text


def test_files_of_labels_and_templates_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.txt"
    path.write_text("background\ntabby, tabby cat\r\ndog\n\n")
    assert read_labels(path) == ["tabby", "dog"]
    assert "begins with 'background', which is no class" in caplog.text
    path.write_text("a {}.\n\n  {} there\n")
    assert read_templates(path) == ["a {}.", "{} there"]


@pytest.mark.parametrize(
    ("read", "content", "words"),
    [
        (read_labels, "", "has 0 names; give 1 to"),
        (read_labels, "dog\n", "has only the class 'dog', whose probability would always be 1; give at least two"),
        (read_labels, "unknown\ndog\n", "has only the class 'dog'"),
        (read_labels, "dog\ncat\ndog", "names twice: 'dog' in lines 1 and 3; make them differ"),
        (read_labels, "dog\n\ncat", "has no name in line 2"),
        (read_labels, "dog\ncat\nbackground", "'background' stands for no class, and no image shows it; remove"),
        (read_templates, "\n", "has no template; give one per line"),
        (read_templates, "a {}\na photo", "line 2: 'a photo' needs {} once, where the class stands; add it"),
        (read_templates, "{} and {}", "line 1: '{} and {}' needs {} once"),
        (read_templates, "a {}\na {} ", "line 2: 'a {}' appears twice; remove one"),
    ],
)
def test_a_mistake_in_labels_or_templates_is_one_sentence(
    read: Callable[[Path], list[str]], content: str, words: str, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(UserError) as error:
        read(tmp_path / "a.txt")
    assert "a.txt" in str(error.value) and words in str(error.value)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["star"], "has only the class 'star'"),
        ("star", "has only the class 'star'"),
        ([], "has no class; give at least two"),
        (["star", " "], "label 2 of 2 is empty"),
        (["star", "star "], "label 'star' appears twice"),
        (["star", "\u4e00"], "has no word that the model knows; write it"),
        (["star", "Star"], "labels 'star' and 'Star' are the same tokens to the model; remove one"),
    ],
)
def test_labels_that_the_model_cannot_tell_apart_are_refused(
    trained: TrainedModel, labels: list[str], words: str
) -> None:
    with pytest.raises(UserError) as error:
        embed_classes(trained, labels)
    assert words in str(error.value)


def test_a_model_without_alignment_cannot_classify(tmp_path: Path) -> None:
    predictor = Predictor(make_trained(), tmp_path)
    with pytest.raises(UserError, match=r"cannot classify by labels, but it can answer .* and match; give another"):
        predictor.classify(make_regions(1), LABELS)
    with pytest.raises(UserError, match="cannot classify by labels; give one trained to"):
        embed_classes(predictor.trained, LABELS)
