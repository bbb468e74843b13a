import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import dimvl.concepts.run
from dimvl.concepts.config import ConceptConfig
from dimvl.concepts.run import draw_folds, train_concepts
from dimvl.config import read_keys
from dimvl.errors import UserError
from dimvl.files import read_json
from dimvl.regions.naming.concepts import ConceptNamer
from dimvl.regions.naming.folds import Folds
from dimvl.regions.naming.load import load_namer
from dimvl.regions.store import RegionStore
from tests.cli.calls import call, refused
from tests.concepts.made import EXTRACTOR, SHOWN, make_captioned, write_config

NO_VALIDATION = {"validation": None}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a store, captions, a configuration, and concepts with folds trained by it."""
    folder = tmp_path_factory.mktemp("concepts")
    store, captions = make_captioned(folder)
    config = write_config(folder, store, captions)
    train_concepts(read_keys(ConceptConfig, config, ["training.folds=3"]), "cpu")
    return folder


@pytest.fixture
def run(monkeypatch, capfd):
    return lambda *arguments: call(monkeypatch, capfd, *arguments)


def test_concepts_find_the_region_that_shows_a_word_from_captions_of_whole_images(made):
    namer = load_namer(made / "concepts")
    for word, form in enumerate(SHOWN):
        features = torch.zeros(3, 8)
        features[1, word] = 3
        ids, scores = namer.name(features)
        # "Two" always occurs with "ball", "look" with "snow", and "bus" with "red" or "run".
        best = {namer.names[number] for number in ids[1, :3].tolist()}
        assert form in best and scores[1, 0] > 0.5 > scores[0, 0]
        assert (scores.diff(dim=1) <= 0).all() and ids.shape == (3, 5)


def test_the_report_says_what_was_measured(made):
    report = read_json(made / "concepts" / "report.json")
    assert report["images"] == 60 and report["captions"] == 120 and report["captions_dropped"] == 0
    precision = report["average_precision"]
    assert precision.keys() == {"validation", "training", "held_out"}
    assert precision["validation"]["all"]["mean"] > 0.95 and precision["held_out"]["all"]["mean"] > 0.8
    assert [each["word"] for each in report["each_word"]] == list(load_namer(made / "concepts").names)
    assert 0 < report["tags"]["precision"] <= 1


def test_training_depends_on_its_seed_only(made, tmp_path):
    config = read_keys(ConceptConfig, made / "concepts.yaml", [f"output={tmp_path / 'one'}", "training.dropout=0.2"])
    other = config.model_copy(update={"output": tmp_path / "two"})
    third = config.model_copy(update={"output": tmp_path / "three", "seed": 1})
    for each in (config, other, third):
        torch.manual_seed(len(str(each.output)))
        train_concepts(each.model_copy(update=NO_VALIDATION), "cpu")
    prints = [load_namer(tmp_path / name).fingerprint for name in ("one", "two", "three")]
    assert prints[0] == prints[1] != prints[2]


def test_each_model_of_a_fold_is_trained_on_all_images_but_its_own(made, tmp_path, monkeypatch):
    seen, train = [], dimvl.concepts.run.train

    def recorded(images, *rest):
        seen.append({images.store.image_id(int(position)) for position in images.positions})
        return train(images, *rest)

    monkeypatch.setattr(dimvl.concepts.run, "train", recorded)
    overrides = [f"output={tmp_path / 'out'}", "training.folds=3", "training.epochs=1", "validation=null"]
    train_concepts(read_keys(ConceptConfig, made / "concepts.yaml", overrides), "cpu")
    every, *others = seen
    parts = [set(own) for own in Folds.load(tmp_path / "out").images]
    assert len(every) == sum(map(len, parts)) == len(set.union(*parts)) == 60
    assert others == [every - own for own in parts]


def test_saved_concepts_are_the_same(made, tmp_path):
    namer = load_namer(made / "concepts")
    namer.save(tmp_path / "copy")
    copy, features = load_namer(tmp_path / "copy"), torch.randn(4, 8)
    assert copy.fingerprint == namer.fingerprint and copy.names == namer.names
    assert torch.equal(copy.name(features)[1], namer.name(features)[1])


def test_every_changed_byte_of_a_folder_is_noticed(made, tmp_path):
    namer = load_namer(made / "concepts")
    namer.save(tmp_path)
    rng = np.random.default_rng(0)
    for name in ("called.json", "concepts.safetensors"):
        whole = (tmp_path / name).read_bytes()
        for place in rng.integers(len(whole), size=60).tolist():
            (tmp_path / name).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            try:  # the safetensors header may describe the same in another way
                assert load_namer(tmp_path).fingerprint == namer.fingerprint
                assert name == "concepts.safetensors"
            except UserError as error:
                assert ";" in str(error)
        (tmp_path / name).write_bytes(whole)
    (tmp_path / "concepts.safetensors").unlink()
    with pytest.raises(UserError, match="does not exist"):
        load_namer(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"looks": "b" * 64}, "weights bbbbbbbbbbbb, not aaaaaaaaaaaa"),
        ({"feature_width": 9}, "a width of 9, not 8"),
        ({"sizes": {"side": 99}}, "side 99, not 100"),
    ],
)
def test_features_of_another_extractor_are_refused(made, changes, words):
    namer = load_namer(made / "concepts")
    namer.features = namer.features.model_copy(update=changes)
    with pytest.raises(UserError) as error:
        namer.check_features(EXTRACTOR)
    swapped = [part.split(" ") for part in words.split(", not ")]
    assert all(value[-1] in str(error.value) for value in swapped)


def test_thresholds_of_a_detector_do_not_matter(made):
    other = replace(EXTRACTOR, parameters={**EXTRACTOR.parameters, "score_threshold": 0.9})
    load_namer(made / "concepts").check_features(other)


def test_the_command_trains_and_names_a_store(run, made, tmp_path):
    result = run("concepts", made / "concepts.yaml", f"output={tmp_path / 'c'}", "training.epochs=2")
    assert result.code == 0 and "mean average precision, validation images: all" in result.out
    assert isinstance(load_namer(tmp_path / "c"), ConceptNamer)
    result = run("name", made / "store", tmp_path / "c", tmp_path / "named")
    assert (result.code, result.out) == (0, f"60 images done, 0 already there: {tmp_path / 'named'}\n")
    assert RegionStore(tmp_path / "named").extractor.classes == load_namer(tmp_path / "c").names


def test_a_mistake_is_one_sentence_and_nothing_is_written(run, made, tmp_path):
    config, out = made / "concepts.yaml", tmp_path / "c"
    (tmp_path / "other.json").write_text((made / "captions.json").read_text().replace(".jpg", ".gif"))
    (tmp_path / "french.json").write_text(
        json.dumps({"images": [{"id": "0.jpg"}], "annotations": [{"id": 1, "image_id": "0.jpg", "caption": "."}]})
    )
    both = [{"images": ["0.jpg", "1.jpg"], "caption": "Two dogs."}]
    (tmp_path / "both.jsonl").write_text("\n".join(map(json.dumps, both)))
    for override, *words in (
        ("words=50", "content words but words is 50; set words="),
        (f"captions={tmp_path / 'other.json'}", "none of the 60 images"),
        (f"captions={tmp_path / 'french.json'}", "no content word"),
        (f"captions={tmp_path / 'both.jsonl'}", "several images", "one image each"),
        ("captions=nowhere.json", "nowhere.json does not exist (captions)"),
        ("training.folds=1", "at least 2"),
        ("training.folds=61", "61", "images with captions of their own"),
        ("training.pooling=mode", "pooling"),
        ("word=9", "did you mean 'words'"),
        (f"output={made / 'concepts'}", "exists already"),
    ):
        refused(run("concepts", config, f"output={out}", override), *words)
        assert not out.exists(), override


def test_captions_of_missing_images_are_refused_or_dropped_and_counted(run, made, tmp_path):
    content = read_json(made / "captions.json")
    content["images"].append({"id": "x.jpg", "file_name": "x.jpg"})
    content["annotations"].append({"id": 999, "image_id": "x.jpg", "caption": "A cat."})
    (tmp_path / "more.json").write_text(json.dumps(content))
    overrides = [f"output={tmp_path / 'c'}", f"captions={tmp_path / 'more.json'}", "training.epochs=1"]
    refused(run("concepts", made / "concepts.yaml", *overrides), "lacks image 'x.jpg'", "missing=skip")
    result = run("concepts", made / "concepts.yaml", *overrides, "missing=skip")
    assert result.code == 0 and "left out: 1 caption (image not in the store)" in result.err


def test_a_configuration_has_all_sections_by_default():
    config = ConceptConfig(output="c", regions="s", captions="f")
    assert config.validation is None and config.training.folds == 0 and config.words == 1000


def test_copies_of_an_image_are_never_named_by_a_model_that_has_seen_one_of_them():
    config = ConceptConfig(output="c", regions="s", captions="f", training={"folds": 3})
    texts = [[f"dog {number}", "a dog"] for number in range(30)]
    folds = draw_folds([*texts, *([second, first] for first, second in texts)], config)
    assert (folds[:30] == folds[30:]).all() and np.bincount(folds).tolist() == [20, 20, 20]
