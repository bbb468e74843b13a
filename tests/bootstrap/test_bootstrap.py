"""Captions written and filtered: what a line says, processes, interruptions, and what is refused."""

import itertools
import json
import random
import shutil
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import dimvl.bootstrap.results as results_module
import dimvl.bootstrap.run as run_module
import dimvl.bootstrap.texts as texts_module
import dimvl.bootstrap.writing as writing_module
from dimvl.bootstrap.results import DROPPED, KEPT, PAGE, REPORT, noise_scores
from dimvl.bootstrap.run import SETTINGS, bootstrap
from dimvl.bootstrap.texts import WebTexts, read_sample
from dimvl.bootstrap.threshold import Threshold, choose_threshold
from dimvl.checkpoints import ADAPTER, TEXTS
from dimvl.data.annotations import read_captions
from dimvl.data.prefixes import ImageReader
from dimvl.data.text_store import LabelledText, text_store
from dimvl.data.trained_on import hash_images
from dimvl.errors import UserError
from dimvl.files import read_json, sha256, write_json, write_sealed
from dimvl.regions.sources.base import Part
from dimvl.regions.store import RegionStore
from dimvl.regions.store.writer import RegionStoreWriter
from dimvl.tasks.pretraining.matching import match_pairs
from dimvl.tasks.retrieval.prediction import embed_all_texts, embed_store
from dimvl.trained_model import load_model
from tests.bootstrap.made import IMAGES, make_config, make_parts, read_lines, write_lines
from tests.cli.calls import call, refused
from tests.exports import all_abilities, make_trained, write_run
from tests.factories import make_extractor, make_regions
from tools.kill_bootstrap import contents, kill_and_resume

Keys = dict[str, Any]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "BLOCK", 3)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return make_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def whole(keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one process."""
    output = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "BLOCK", 3)
        assert bootstrap(make_config(keys, output), "cpu") is not None
    return output


def test_each_line_says_origin_score_and_models_and_pretraining_reads_it(keys: Keys, whole: Path) -> None:
    given = [json.loads(line) for line in keys["captions"].read_text().splitlines()]
    lines = read_lines(whole)
    web = [line for line in lines if line["origin"] == "web"]
    synthetic = [line for line in lines if line["origin"] == "synthetic"]
    assert Counter((line["image"], line["caption"], line.get("noise")) for line in web) == Counter(
        (line["image"], line["caption"], line.get("noise")) for line in given
    )
    assert {line["image"] for line in synthetic} == {str(number) for number in range(1, IMAGES + 1)}
    assert max(Counter(line["image"] for line in synthetic).values()) == 2
    models = read_json(whole / REPORT)["models"]
    assert {line["filter"] for line in lines} == {models["filter"]["fingerprint"][:16]}
    assert {line["captioner"] for line in synthetic} == {models["captioner"]["fingerprint"][:16]}
    kept = read_lines(whole, KEPT)
    assert all(line["score"] >= 0.5 for line in kept) and all(
        line["score"] < 0.5 for line in read_lines(whole, DROPPED)
    )
    assert 0 < len(kept) < len(lines)
    pairs = [(line["image"], line["caption"]) for line in lines]
    wanted = match_pairs(load_model(keys["filter"]), RegionStore(keys["regions"]), pairs)
    assert [line["score"] for line in lines] == pytest.approx(wanted, abs=1e-4), "as one by one"
    read = read_captions(whole / KEPT)
    assert [(caption.image_id, caption.text) for caption in read] == [(line["image"], line["caption"]) for line in kept]


def test_captions_of_an_image_stay_together_in_the_order_of_the_file(whole: Path) -> None:
    blocks = sorted((whole / "blocks").iterdir())
    lines = [json.loads(line) for block in blocks for line in block.read_text().splitlines()]
    groups = [
        (image, [one["origin"] for one in of]) for image, of in itertools.groupby(lines, lambda line: line["image"])
    ]
    assert [image for image, _ in groups] == [*map(str, range(1, IMAGES + 1)), "2"]
    assert all(origins == sorted(origins, reverse=True) and "synthetic" in origins for _, origins in groups[:-1])
    assert groups[-1][1] == ["web"], "an image that comes again gets no more synthetic captions"


def test_any_number_of_processes_writes_the_same_bytes(keys: Keys, whole: Path, tmp_path: Path) -> None:
    config = make_config(keys, tmp_path / "out")
    assert bootstrap(config, "cpu", Part(2, 3)) is None
    assert bootstrap(config, "cpu", Part(3, 3)) is None
    shown: list[tuple[int, int]] = []
    assert bootstrap(config, "cpu", Part(1, 3), lambda *how: shown.append(how)) is not None
    assert contents(config.output) == contents(whole)
    assert shown[-1] == (6, 6), "groups of captions of blocks 0 and 3"


def test_processes_may_start_at_the_same_moment(
    keys: Keys, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, exists, others = make_config(keys, tmp_path / "out"), Path.exists, [Part(2, 2)]

    def meanwhile(path: Path) -> bool:
        found = exists(path)
        if path == config.output / SETTINGS and not found and others:
            assert bootstrap(config, "cpu", others.pop()) is None
        return found

    monkeypatch.setattr(Path, "exists", meanwhile)
    assert bootstrap(config, "cpu", Part(1, 2)) is not None
    assert contents(config.output) == contents(whole)


def test_what_is_written_for_an_image_depends_on_it_and_the_seed_alone(
    keys: Keys, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "BLOCK", 5)
    lines = keys["captions"].read_text().splitlines(keepends=True)
    (tmp_path / "reversed.jsonl").write_text("".join(reversed(lines)))
    config = make_config(keys, tmp_path / "out", captions=tmp_path / "reversed.jsonl")

    def written(output: Path) -> Counter[tuple[str, str]]:
        return Counter((line["image"], line["caption"]) for line in read_lines(output) if line["origin"] == "synthetic")

    bootstrap(config, "cpu")
    assert written(config.output) == written(whole)
    other = make_config(keys, tmp_path / "other", seed=1)
    bootstrap(other, "cpu")
    assert written(other.output) != written(whole)


def test_images_with_equal_regions_get_captions_of_their_own(keys: Keys, tmp_path: Path) -> None:
    with RegionStoreWriter(tmp_path / "twins", make_extractor()) as writer:
        for name in ("1", "2"):
            writer.add(make_regions(1, name))
    file = write_lines(tmp_path / "twins.jsonl", [{"image": name, "caption": "a red star"} for name in ("1", "2")])
    config = make_config(keys, tmp_path / "out", regions=tmp_path / "twins", captions=file)
    bootstrap(config, "cpu")
    one, other = ({line["caption"] for line in read_lines(config.output) if line["image"] == name} for name in "12")
    assert one - other and other - one, "drawn by image"


def test_each_model_computes_an_image_once_for_all_of_its_texts(
    keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, prefixes = [], ImageReader.prefixes
    monkeypatch.setattr(
        ImageReader, "prefixes", lambda self, images: read.append(len(images)) or prefixes(self, images)
    )
    bootstrap(make_config(keys, tmp_path / "out"), "cpu")
    assert sum(read) == IMAGES + (IMAGES + 1), "by the captioner, and by the filter, which meets image 2 again"


def test_by_alignment_an_image_is_embedded_once_for_all_of_its_texts(
    keys: Keys, aligned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded, embed = [], writing_module.embed_images
    monkeypatch.setattr(
        writing_module, "embed_images", lambda trained, images: embedded.append(len(images)) or embed(trained, images)
    )
    sample = [{"image": "1", "caption": "a", "label": True}]
    keep = {"precision": 0.5, "sample": write_lines(tmp_path / "sample.jsonl", sample)}
    bootstrap(make_config(keys, tmp_path / "out", filter=aligned, score="alignment", keep=keep), "cpu")
    assert sum(embedded) == IMAGES + 1 + len(sample), "image 2 is met again; the sample is judged, too"


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_bootstrap_killed_at_random_moments_resumes_to_the_same_bytes(
    keys: Keys, whole: Path, tmp_path: Path
) -> None:
    """`python -m tools.kill_bootstrap` does this a hundred times."""
    drawn, kills, trials = random.Random(2), 0, 0
    while kills < 4:
        config = make_config(keys, tmp_path / f"out-{trials}")
        kills += kill_and_resume(config, drawn, 0.3, 2).total()
        assert contents(config.output) == contents(whole)
        trials += 1
    assert trials < 10, "most are killed before they end"


def test_captions_are_streamed(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts_module, "AT_ONCE", 2)
    read, records = [], texts_module.jsonl_records

    def counted(*arguments: Any) -> Any:
        for record in records(*arguments):
            read.append(record)
            yield record

    config = make_config(keys, Path("out"))
    texts = WebTexts(config, RegionStore(keys["regions"]), all_abilities())
    monkeypatch.setattr(texts_module, "jsonl_records", counted)
    of_images = iter(texts)
    next(of_images)
    assert len(read) <= 6, "no more than needed, of 24"
    assert 1 + len(list(of_images)) == IMAGES + 1 and texts.captions == 24


def test_without_a_captioner_captions_are_only_filtered(keys: Keys, whole: Path, tmp_path: Path) -> None:
    config = make_config(keys, tmp_path / "out", captioner=None, sampling=...)
    assert bootstrap(config, "cpu") is not None
    web = [(line["image"], line["caption"]) for line in read_lines(whole, KEPT) if line["origin"] == "web"]
    assert [(line["image"], line["caption"]) for line in read_lines(config.output, KEPT)] == web


def test_another_threshold_is_chosen_on_a_sample_without_computing_again(
    keys: Keys, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole, tmp_path / "out")
    web = [line for line in read_lines(whole) if line["origin"] == "web"]
    cut = sorted(line["score"] for line in web)[len(web) // 4]
    sample = [{"image": line["image"], "caption": line["caption"], "label": line["score"] >= cut} for line in web]
    keep = {"precision": 1.0, "sample": write_lines(tmp_path / "sample.jsonl", sample)}
    monkeypatch.setattr(run_module.BlockWriter, "lines", lambda *_: pytest.fail("computed again"))
    results = bootstrap(make_config(keys, tmp_path / "out", keep=keep), "cpu")
    assert results is not None and results.report["threshold"]["score"] == pytest.approx(cut, abs=1e-5)
    assert results.kept["web"] == sum(line["score"] >= results.report["threshold"]["score"] for line in web)


@pytest.fixture(scope="module")
def aligned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that aligns, and does not match."""
    model = make_trained(all_abilities(aligns=True, captions=False, matches=False, answers=()), seed=2)
    return write_run(tmp_path_factory.mktemp("parts") / "aligned", model, description="photographs")


def test_by_alignment_a_text_has_the_score_of_its_cosine(
    keys: Keys, whole: Path, aligned: Path, tmp_path: Path
) -> None:
    sample = [{**line, "label": True} for line in read_lines(whole)]
    keep = {"precision": 0.5, "sample": write_lines(tmp_path / "sample.jsonl", sample)}
    refuse(keys, tmp_path / "out", "not trained for alignment", "shares.contrastive", score="alignment", keep=keep)
    config = make_config(keys, tmp_path / "out", filter=aligned, score="alignment", keep=keep)
    results = bootstrap(config, "cpu")
    assert results is not None and results.report["score"] == "alignment"
    trained, store = load_model(aligned), RegionStore(keys["regions"])
    lines = read_lines(config.output)
    assert len({line["score"] for line in lines}) > len(lines) // 2
    for line in lines:
        images = embed_store(trained, store, [((line["image"],), ())])
        cosine = float(images.pooled @ embed_all_texts(trained, [line["caption"]]).pooled.T)
        assert line["score"] == pytest.approx((1 + cosine) / 2, abs=1e-5)
    least = min(line["score"] for line in lines)
    assert results.report["threshold"]["score"] == pytest.approx(least, abs=1e-5)


def test_alignment_needs_a_threshold(keys: Keys, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"keep\.precision and keep\.sample"):
        make_config(keys, tmp_path / "out", score="alignment")


def test_the_images_of_the_sample_are_found_by_the_rule_of_the_captions(keys: Keys, tmp_path: Path) -> None:
    sample = write_lines(tmp_path / "sample.jsonl", [{"image": "2.jpg", "caption": "a", "label": True}])
    store, limits = RegionStore(keys["regions"]), load_model(keys["filter"]).processor
    assert read_sample(sample, store, limits, "stem") == ([(1, "a")], [True])
    with pytest.raises(UserError, match=r"sample\.jsonl"):
        read_sample(sample, store, limits, "id")


def test_the_lowest_threshold_with_the_precision_is_chosen_and_equal_scores_go_together(tmp_path: Path) -> None:
    scores, labels = [0.9, 0.8, 0.8, 0.6, 0.3, 0.1], [True, True, False, True, True, False]

    def chosen(precision: float) -> Threshold:
        return choose_threshold(scores, labels, make_keep(tmp_path, precision))

    assert chosen(1.0) == Threshold(0.9, 6, 1.0, 0.25)
    assert chosen(0.75) == Threshold(0.3, 6, 0.8, 1.0)
    assert chosen(0.5).score == 0.1
    with pytest.raises(UserError, match=r"at most 0\.500.*lower keep\.precision"):
        choose_threshold([0.8, 0.8, 0.2], [True, False, False], make_keep(tmp_path, 0.9))


def make_keep(folder: Path, precision: float) -> Any:
    return make_config(
        {"regions": "r", "captions": "c", "filter": "f"},
        folder,
        captioner=None,
        sampling=...,
        keep={"precision": precision, "sample": folder / "sample.jsonl"},
    ).keep


def test_precision_and_recall_of_the_filter_by_kind_of_noise() -> None:
    counts = {("none", True): 6, ("none", False): 2, ("swapped", False): 3, ("swapped", True): 1, ("cut", True): 4}
    assert noise_scores(counts) == {
        "cut": {"texts": 4, "recall": 0.0, "precision": 0.0},
        "swapped": {"texts": 4, "recall": 0.75, "precision": 0.6},
        "clean": {"texts": 8, "kept": 0.75, "share_of_kept": 6 / 11},
    }
    assert noise_scores({}) == {}


def test_the_report_counts_what_is_in_the_files_and_the_page_shows_both_kinds(keys: Keys, whole: Path) -> None:
    report, lines = read_json(whole / REPORT), read_lines(whole)
    for origin in ("web", "synthetic"):
        own = [line for line in lines if line["origin"] == origin]
        found = report["origins"][origin]
        assert found["texts"] == len(own) == sum(found["histogram"])
        assert found["kept"] == sum(line["score"] >= 0.5 for line in own)
    assert report["captions_read"] == 24 and report["images"] == IMAGES
    page = (whole / PAGE).read_text()
    assert "synthetic, kept" in page and "web, dropped" in page and "noise: swapped" in page
    assert page.index('"col">web<') < page.index('"col">synthetic<'), "captions of the file come first"
    assert page.count('"bar other"') == 2 * 10, "ranges below one half are grey"
    assert 0 < page.count("<li class=dropped><bdi>") < page.count("<bdi>"), "no text turns its line around"


def test_captions_longer_than_the_filter_reads_are_counted_and_warned_of_once(
    keys: Keys, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    limit = load_model(keys["filter"]).processor.text_tokens
    lengths = {"1": limit, "2": limit + 1, "3": 2 * limit}
    lines = [{"image": name, "caption": " ".join(["a"] * length), "cut": 7} for name, length in lengths.items()]
    file = write_lines(tmp_path / "long.jsonl", lines)
    config = make_config(keys, tmp_path / "out", captions=file, captioner=None, sampling=...)
    bootstrap(config, "cpu")
    written = {line["image"]: line for line in read_lines(config.output)}
    assert [written[name].get("cut") for name in lengths] == [None, True, True]
    assert read_json(config.output / REPORT)["captions_cut"] == {f"longer than {limit} tokens": 2}
    assert f"judged by their beginning: longer than {limit} tokens" in (config.output / PAGE).read_text()
    warnings = [record.message for record in caplog.records if "truncated" in record.message]
    assert warnings == [f"2 of 3 texts are longer than {limit} tokens and were truncated"]


def test_a_result_filtered_again_keeps_origins_and_counts_only_what_is_written_anew(
    keys: Keys, whole: Path, tmp_path: Path
) -> None:
    config = make_config(keys, tmp_path / "out", captions=whole / KEPT, seed=1)
    bootstrap(config, "cpu")
    given, lines = read_lines(whole, KEPT), read_lines(config.output)
    synthetic, images = [line for line in lines if line["origin"] == "synthetic"], {line["image"] for line in given}
    carried = sum(line["origin"] == "synthetic" for line in given)
    assert carried and sum(line["origin"] == "web" for line in lines) == len(given) - carried
    not_written = read_json(config.output / REPORT)["origins"]["synthetic"]["not_written"]
    assert 0 <= not_written == 2 * len(images) - (len(synthetic) - carried)


def test_a_captioner_that_writes_nothing_is_told(
    keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    mute = make_trained(all_abilities(matches=False, answers=()), seed=0)
    assert mute.model.word_head is not None
    with torch.no_grad():
        mute.model.word_head.decoder.bias[mute.processor.tokenizer.sep] = 1000.0
    captioner = write_run(tmp_path / "mute", mute, description="photographs")
    config = make_config(keys, tmp_path / "out", captioner=captioner)
    write_json(tmp_path / "bootstrap.yaml", config.model_dump(mode="json", exclude_unset=True))
    done = call(monkeypatch, capfd, "bootstrap", tmp_path / "bootstrap.yaml")
    assert done.code == 0 and f"not written: {2 * IMAGES} synthetic captions (empty" in done.err
    assert "not written: synthetic, empty or a duplicate" in (config.output / PAGE).read_text()


def test_the_page_finds_the_files_of_its_images_by_name_or_coco_number(tmp_path: Path) -> None:
    for name in ("7.png", "COCO_val2014_000000000007.jpg", "000000000008.jpg", "other.jpg"):
        (tmp_path / name).touch()
    found = {image: file.name for image, file in results_module._files_of(tmp_path, {"7", "8", "9"}).items()}
    assert found == {"7": "7.png", "8": "000000000008.jpg"}, "the name itself comes first"


def refuse(keys: Keys, output: Path, *words: str, **changes: Any) -> None:
    with pytest.raises(UserError) as caught:
        bootstrap(make_config(keys, output, **changes), "cpu")
    for word in words:
        assert word in str(caught.value)
    assert not (output / "blocks").exists(), "told before anything is written"


def test_models_that_do_not_fit_are_refused(keys: Keys, tmp_path: Path) -> None:
    refuse(keys, tmp_path / "out", "not trained for matching", "set score to alignment", filter=keys["captioner"])
    refuse(keys, tmp_path / "out", "cannot caption", captioner=keys["filter"])
    other = replace(make_extractor(), name="another", fingerprint="e" * 64)
    for role in ("captioner", "filter"):
        model = make_trained(all_abilities(other, shared_prefix=True))
        folder = write_run(tmp_path / role, model, description="photographs")
        refuse(keys, tmp_path / "out", f"for {role} {folder}", "another", **{role: folder})
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / ADAPTER).touch()
    refuse(keys, tmp_path / "out", "export of an adapter", "give its run", "--merge", filter=tmp_path / "adapter")


def trained_filter(
    keys: Keys,
    folder: Path,
    own: str,
    start: str | None = None,
    images: tuple[str, ...] = (),
    own_images: tuple[str, ...] = (),
) -> Path:
    """Copy the filter as one that was fine-tuned on a file with a checksum, after another training.

    Both trainings had `images`, of which the fine-tuning had `own_images`; without these, the run has no texts.
    """
    made = replace(load_model(keys["filter"]), trained_on=np.sort(hash_images(images)))
    write_run(folder, made, description="photographs")
    about = {"file": "c.jsonl", "description": "", "synthetic": False}
    run_record = read_json(folder / "run.json")
    run_record["data"] = {"captions": {**about, "sha256": own}}
    run_record["start"] = start and {
        "name": "base",
        "sha256": "0" * 64,
        "data": {"captions": {**about, "sha256": start}},
    }
    write_json(folder / "run.json", run_record)
    if own_images:
        texts = [LabelledText(place, (image,), "a star") for place, image in enumerate(own_images)]
        store = text_store(folder / "texts", made.processor.tokenizer, 12, [keys["captions"]], texts)
        write_sealed(folder / TEXTS, {"store": store.path.name})
    return folder


def test_a_filter_that_was_trained_on_the_captions_is_refused_unless_told(keys: Keys, tmp_path: Path) -> None:
    noisy, clean = sha256(keys["captions"]), "a" * 64
    same = trained_filter(keys, tmp_path / "same", noisy)
    refuse(keys, tmp_path / "out", f"was trained on {keys['captions']} itself", "allow_trained=true", filter=same)
    images = trained_filter(keys, tmp_path / "images", clean, images=("3", "5"))
    refuse(keys, tmp_path / "out", "on 2 of the 11 images", "such as '3'", "allow_trained=true", filter=images)
    assert bootstrap(make_config(keys, tmp_path / "told", filter=same, allow_trained=True), "cpu") is not None


def test_a_filter_may_start_from_a_model_that_knows_the_captions_but_not_be_fine_tuned_on_their_images(
    keys: Keys, tmp_path: Path
) -> None:
    made = partial(trained_filter, keys, own="a" * 64, start=sha256(keys["captions"]), images=("3", "5", "clean"))
    after = made(tmp_path / "after", own_images=("clean",))
    assert bootstrap(make_config(keys, tmp_path / "blip", filter=after), "cpu") is not None, "as BLIP's"
    copied = made(tmp_path / "copied", own_images=("clean", "5"))
    refuse(keys, tmp_path / "out", "on 1 of the 11 images", "such as '5'", "allow_trained=true", filter=copied)
    unknown = made(tmp_path / "unknown")
    refuse(keys, tmp_path / "out", "does not say which images", "give its run", "allow_trained=true", filter=unknown)
    lines = [{"image": image, "caption": "a new caption"} for image in "345"]
    both = [keys["captions"], write_lines(tmp_path / "new.jsonl", lines)]
    refuse(keys, tmp_path / "out", "on 2 of the 11 images", "such as '3'", filter=after, captions=both)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"images": ["1", "2"], "caption": "two"}, ("line 1", "2 images", "one image each")),
        ({"video": "1", "caption": "a video"}, ("no field 'image'",)),
        ({"image": "77", "caption": "elsewhere"}, ("77", "in the region store")),
        ({"image": "1", "caption": " "}, ("line 1", "empty")),
    ],
)
def test_captions_that_cannot_be_filtered_are_one_sentence(
    keys: Keys, tmp_path: Path, line: dict[str, Any], words: tuple[str, ...]
) -> None:
    file = write_lines(tmp_path / "bad.jsonl", [line])
    refuse(keys, tmp_path / "out", *words, captions=file)


def test_missing_images_are_refused_or_counted(keys: Keys, tmp_path: Path) -> None:
    lines = [{"image": name, "caption": "a red star"} for name in ("1", "none", "2", "nowhere")]
    file = write_lines(tmp_path / "some.jsonl", lines)
    refuse(keys, tmp_path / "out", "2 of the 4 captions", "'none'", "missing=skip", captions=file)
    results = bootstrap(make_config(keys, tmp_path / "out", captions=file, missing="skip"), "cpu")
    assert results is not None and results.report["captions_dropped"] == {"image not in the store": 2}


def test_a_folder_belongs_to_its_settings_and_damage_is_found(keys: Keys, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "out")
    for changes, key in (({"seed": 5}, "seed"), ({"captioner": None, "sampling": ...}, "captioner")):
        with pytest.raises(UserError, match=f"another value of {key}"):
            bootstrap(make_config(keys, tmp_path / "out", **changes), "cpu")
    block = sorted((tmp_path / "out" / "blocks").iterdir())[1]
    whole_block = block.read_bytes()
    block.write_bytes(whole_block.replace(b"web", b"wep", 1))
    with pytest.raises(UserError, match=f"{block.name} is damaged.*remove it and run again"):
        bootstrap(make_config(keys, tmp_path / "out"), "cpu")
    block.unlink()
    bootstrap(make_config(keys, tmp_path / "out"), "cpu")
    assert contents(tmp_path / "out") == contents(whole)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    refuse(keys, tmp_path / "full", "not empty", SETTINGS)


def test_the_command_prints_counts_and_an_empty_result_ends_with_1_and_what_to_change(
    keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run = partial(call, monkeypatch, capfd)
    config = make_config(keys, tmp_path / "out").model_dump(mode="json", exclude_unset=True)
    (tmp_path / "bootstrap.yaml").write_text(yaml.safe_dump(config))
    done = run("bootstrap", tmp_path / "bootstrap.yaml")
    assert (
        done.code == 0
        and "web: " in done.out
        and "synthetic: " in done.out
        and str(tmp_path / "out" / KEPT) in done.out
    )
    monkeypatch.setattr(run_module, "_threshold", lambda *_: Threshold(1.1))
    nothing = run("bootstrap", tmp_path / "bootstrap.yaml")
    assert nothing.code == 1 and "no caption is kept" in nothing.err and "keep.precision" in nothing.err
    assert (tmp_path / "out" / KEPT).read_bytes() == b""
    refused(run("bootstrap", tmp_path / "bootstrap.yaml", "captioner=null"), "sampling", "captioner")
    refused(run("bootstrap", tmp_path / "bootstrap.yaml", "filter=nowhere"), "nowhere does not exist (filter)")
    file = tmp_path / "bootstrap.yaml"
    new = tmp_path / "new"
    refused(run("bootstrap", file, f"output={new}", f"images={file}"), "bootstrap.yaml is a file; give a folder")
    assert not new.exists(), "told before anything is written"
