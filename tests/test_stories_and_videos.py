"""Stories about five photographs and captions of videos, from official files to text, through the command line."""

import json
from functools import partial

import pytest
import yaml

from dimvl.checkpoints import latest_checkpoint
from dimvl.data.annotations import read_captions
from dimvl.data.matching import in_store, match_file
from dimvl.errors import UserError
from dimvl.export import export
from dimvl.metrics.measures import units_of
from dimvl.predictor import Predictor
from dimvl.regions.store import RegionStore
from dimvl.regions.store.writer import RegionStoreWriter
from tests.cli.calls import call, refused
from tests.data.annotations.stories import STORIES, VIST
from tests.exports import all_abilities, make_detector, make_image, make_trained, write_run
from tests.factories import make_extractor, make_processor, make_regions
from tests.regions.videos import write_frames
from tests.tiny_runs import TinyData, make_config

PHOTOS = sorted({str(photo) for _, photos, _ in STORIES.values() for photo in photos})
LONG = 64
"""Frames of a long video."""


@pytest.fixture
def run(monkeypatch, capfd):
    monkeypatch.setenv("PATH", "")  # no Java
    return partial(call, monkeypatch, capfd)


def write_store(folder, ids):
    with RegionStoreWriter(folder, make_extractor()) as writer:
        for number, image_id in enumerate(ids):
            writer.add(make_regions(number, image_id, 2))
    return folder


def frames_of(video, number):
    return [f"{video}@{2 * place:09.3f}" for place in range(number)]


def write_config(folder, task, regions, captions, **changes):
    inputs = {"max_images": LONG, "times": True, "text_tokens": 40, **changes.pop("inputs", {})}
    data = TinyData(regions, captions, captions, captions)
    training = {"steps": 2, "rows_per_step": 4000, "rows_per_micro_batch": 4000}
    config = make_config(data, folder / task, task, inputs=inputs, training=training, **changes)
    path = folder / f"{task}.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return path


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- stories


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stories")
    write_store(folder / "regions", PHOTOS)
    (folder / "sis.json").write_text(json.dumps(VIST))
    return folder


def test_all_stories_are_trained_on_and_one_of_each_album_is_compared_with_all_of_its(run, stories, tmp_path):
    validation = {"captions": stories / "sis.json", "every": 2}
    config = write_config(tmp_path, "caption", stories / "regions", stories / "sis.json", validation=validation)
    assert run("finetune", config).code == 0
    assert json.loads((tmp_path / "caption/match.json").read_text())["texts_used"] == 3
    files = ("--regions", stories / "regions", "--captions", stories / "sis.json", "--allow-trained-images")
    result = run("evaluate", tmp_path / "caption", *files, "--beams", 1, "--device", "cpu")
    assert result.code == 0 and json.loads(result.out)["count"] == 2
    items = read_lines(tmp_path / "caption/evaluation/items.jsonl")
    assert [(item["album_id"], item["images"]) for item in items] == [
        ("5", [*map(str, STORIES[30][1])]),
        ("6", [*map(str, STORIES[40][1])]),
    ]
    assert items[0]["references"] == [" ".join(STORIES[30][2]), " ".join(STORIES[31][2])]
    assert len(set(units_of(items))) == 2
    predictions = tmp_path / "caption/evaluation/predictions.json"
    submitted = json.loads(predictions.read_text())
    assert [[*record] for record in submitted] == [["album_id", "photo_sequence", "story_text_normalized"]] * 2
    assert submitted[0]["photo_sequence"] == items[0]["images"]
    pytest.importorskip("pycocoevalcap.bleu")
    scored = ("score", "caption", "--annotations", stories / "sis.json", "--tokenised", "--json", "--predictions")
    found = json.loads(run(*scored, predictions).out)
    assert (found["count"], found["references"]) == (2, 3)
    whole = tmp_path / "challenge.json"
    whole.write_text(json.dumps({"team_name": "ours", "output_stories": submitted[::-1]}))
    assert json.loads(run(*scored, whole).out)["official"] == found["official"]
    whole.write_text(json.dumps({"output_stories": submitted[:1]}))
    refused(run(*scored, whole), "lacks 1 album (6) of 2")


def test_a_story_with_a_missing_photograph_is_left_out_but_its_album_keeps_its_text(run, stories, tmp_path):
    write_store(tmp_path / "regions", [photo for photo in PHOTOS if photo not in ("11", "25")])
    export_folder = write_run(tmp_path / "run", make_trained(all_abilities(make_extractor(), max_images=5)))
    files = ("--regions", tmp_path / "regions", "--captions", stories / "sis.json", "--out", tmp_path / "out")
    refused(run("evaluate", export_folder, *files), "lacks image '11' and 1 others of the 11", "--skip-missing")
    result = run("evaluate", export_folder, *files, "--skip-missing", "--beams", 1, "--device", "cpu")
    assert result.code == 0 and "1 left out: image not in the store" in result.err
    [item] = read_lines(tmp_path / "out/items.jsonl")
    assert item["images"] == [*map(str, STORIES[31][1])] and len(item["references"]) == 2


# --- videos


def write_captions(path, *videos):
    texts = [(place, video, f"a star {video[-1]}") for place, video in enumerate(videos)]
    sentences = [dict(zip(("sen_id", "video_id", "caption"), text, strict=True)) for text in texts]
    path.write_text(json.dumps({"sentences": sentences}))
    return path


def test_the_frames_of_a_video_and_their_times_are_found_by_its_name(tmp_path):
    store = RegionStore(write_store(tmp_path / "regions", [*frames_of("v1", 2)[::-1], "1", *frames_of("v2", 3)]))
    path = write_captions(tmp_path / "c.json", "v2", "v1", "v2", "v3")
    records = read_captions(path)
    match = match_file(path, records, store, make_processor(max_images=3))
    found = list(in_store(records, match))
    assert [(record.image_ids, record.times) for record in found] == [
        (tuple(frames_of(video, count)), tuple(2.0 * place for place in range(count)))
        for video, count in (("v2", 3), ("v1", 2), ("v2", 3))
    ]
    assert match.missing == ["v3"] and match.texts_missing == 1 and match.times_ignored == 4
    assert match_file(path, records, store, make_processor(max_images=3, concept_tokens=4)).untagged == 2
    with pytest.raises(UserError, match=r"lacks the frames of video 'v3' of the 3 of .*; cut these videos with"):
        match.check(store, "error", "--skip-missing")
    with pytest.raises(UserError, match=r"caption 0 has 3 images, more than inputs\.max_images 2"):
        match_file(path, records, store, make_processor(max_images=2))
    others = read_captions(write_captions(tmp_path / "c.json", "v8", "v9"))
    with pytest.raises(UserError, match=r"has frames such as 'v1', but none of the 2 videos of .*, such as 'v8'; cut"):
        match_file(path, others, store, make_processor())


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Folders of the frames of two videos, and a model with times that takes 64 images, with its detector."""
    place = tmp_path_factory.mktemp("videos")
    write_frames(place / "videos" / "v1", [f"{number}.png" for number in range(LONG)])
    write_frames(place / "videos" / "v2", [f"{number}.png" for number in range(3)])
    for number, file in enumerate(sorted((place / "videos").rglob("*.png"))):
        make_image(number, 48, 48).save(file)
    detector = make_detector()
    detector.save(place / "detector")
    trained = make_trained(all_abilities(detector.extractor, max_images=LONG, times=True))
    export(write_run(place / "run", trained, description="videos"), place / "export", place / "detector")
    return place


def test_a_video_of_64_frames_is_cut_extracted_trained_planned_and_captioned(run, videos, tmp_path):
    frames, store = tmp_path / "frames", tmp_path / "store"
    cut = run("frames", videos / "videos", frames, "--count", LONG, "--frame-rate", 0.5)
    assert cut.code == 0 and f"2 videos cut into {LONG + 3} frames, 0 already there, 0 skipped" in cut.out
    assert run("extract", frames, store, "--where", videos / "detector", "--device", "cpu").code == 0
    captions = write_captions(tmp_path / "MSRVTT_data.json", "v1", "v2", "v1")
    config = write_config(tmp_path, "caption", store, captions)
    before = json.loads(run("plan", config, "--json").out)["facts"]
    assert before["images_per_prefix"] == LONG and "64 images in each record" in str(before["assumed"])
    assert run("finetune", config).code == 0 and latest_checkpoint(tmp_path / "caption") is not None
    facts = json.loads(run("plan", config, "--json").out)["facts"]
    assert facts["images_per_prefix"] == pytest.approx((LONG + 3) / 2)
    small = ("training.rows_per_step=100", f"output={tmp_path}/small")
    refused(run("finetune", config, *small), "one example has up to", "above training.rows_per_step 100; raise it")

    evaluated = ("--regions", store, "--captions", captions, "--allow-trained-images", "--beams", 1, "--device", "cpu")
    assert run("evaluate", tmp_path / "caption", *evaluated).code == 0
    written = json.loads((tmp_path / "caption/evaluation/predictions.json").read_text())
    assert [record["image_id"] for record in written] == ["v1", "v2"] and "times" not in written[0]

    options = ("--videos", "--model", videos / "export", "--device", "cpu", "--beams", 1)
    found = [json.loads(line) for line in run("caption", frames, *options, "--json").out.splitlines()]
    assert {record["video"]: len(record["images"]) for record in found} == {"v1": LONG, "v2": 3}
    predictor = Predictor.from_pretrained(videos / "export", "cpu")
    for record in found:
        assert record["times"] == [2.0 * place for place in range(len(record["images"]))]
        assert record["caption"] == predictor.caption(tuple(record["images"]), beams=1, times=record["times"])
    lines = run("caption", "--regions", store, *options).out.splitlines()
    assert lines == [f"{record['video']}: {record['caption']}" for record in found]
    refused(run("caption", frames, videos / "videos/v1/0.png", *options), "1 image of 68 are not frames of a video")
    refused(run("caption", frames, "--together", *options), "--together and --videos both group images")


def test_questions_and_paragraphs_about_videos_are_trained_and_answered(run, videos, tmp_path):
    store = write_store(tmp_path / "regions", [*frames_of("v1", 3), *frames_of("v2", 2)])
    questions = tmp_path / "questions.jsonl"
    asked = [{"video": f"v{number}", "question": "what is it?", "answer": f"a{number}"} for number in (1, 2)]
    questions.write_text("".join(json.dumps(record) + "\n" for record in asked))
    assert run("finetune", write_config(tmp_path, "vqa", store, questions, annotations=[], answers=2)).code == 0
    paragraphs = tmp_path / "val_1.json"
    content = {f"v{number}": {"timestamps": [[0, 1]], "sentences": [f"a star {number}."]} for number in (1, 2)}
    paragraphs.write_text(json.dumps(content))
    changes = {"contrastive": {"group": 2}, "matching_share": 0.0}
    assert run("finetune", write_config(tmp_path, "retrieve", store, paragraphs, **changes)).code == 0
    files = ("--regions", store, "--captions", paragraphs, "--allow-trained-images", "--device", "cpu", "candidates=0")
    assert json.loads(run("evaluate", tmp_path / "retrieve", *files).out)["images"] == 2

    files = ("--regions", store, "--questions", questions, "--allow-trained-images", "--device", "cpu")
    assert run("evaluate", tmp_path / "vqa", *files).code == 0
    assert [item["image_id"] for item in read_lines(tmp_path / "vqa/evaluation/items.jsonl")] == ["v1", "v2"]

    write_frames(tmp_path / "frames", [f"{frame}.png" for frame in frames_of("v1", 3)])
    questions.write_text(json.dumps(asked[0]))
    options = ("answer", questions, "--folder", tmp_path / "frames", "--model", videos / "export", "--device", "cpu")
    [answer] = map(json.loads, run(*options).out.splitlines())
    predictor = Predictor.from_pretrained(videos / "export", "cpu")
    images = tuple(sorted((tmp_path / "frames").iterdir()))
    wanted = predictor.answer(images, "what is it?", times=[0, 2, 4])
    assert answer["video"] == "v1" and answer["probability"] == pytest.approx(wanted.probability, abs=1e-5)
    questions.write_text(json.dumps({**asked[0], "video": "v7"}))
    refused(run(*options), "there are no frames of video 'v7'; cut it with `dimvl frames`")


def test_times_that_fall_are_one_sentence_in_python_too(videos):
    predictor = Predictor.from_pretrained(videos / "export", "cpu", check=False)
    image = make_image()
    for times in ([2, 1], [-1, 0], [0, float("nan")]):
        with pytest.raises(UserError, match=r"times are \[.*\]; give seconds from 0, in the order of the images"):
            predictor.caption((image, image), times=times)
