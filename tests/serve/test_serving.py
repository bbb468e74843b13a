"""Requests over HTTP get what the predictor gives, whatever else is computed or fails beside them."""

import asyncio
import logging
import re
import time
import zlib
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

import dimvl.serve.app
from dimvl.errors import UserError
from dimvl.predictor import Predictor
from dimvl.regions.detectors.scenes import Detector
from dimvl.serve.models import Served, open_models
from dimvl.serve.requests import REQUESTS
from tests.exports import make_image
from tests.serve.calls import client, get, png, send, served, text

IMAGES = [png(make_image(seed)) for seed in (1, 2, 3)]
TEXTS = ["is the star red", "a small star", "two blue stars above a large circle"]
PNG = text(IMAGES[0])
Models = dict[str, Served]


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


def alone(able: Predictor, labels: Predictor) -> list[tuple[str, dict[str, Any], Any]]:
    """Of each kind a request with its image and the result of the predictor alone."""
    one, two, three = IMAGES
    answer, several = able.answer(one, TEXTS[0], top=2), able.answer(two, TEXTS, top=5)
    ground, align = able.ground(three, TEXTS[1], top=2), able.align(two, TEXTS[2])
    chosen = able.choose(one, "what", ["a star", "red"])
    named = able.classify(two, ["star", "circle"], templates=["a {}"])
    return [
        ("answer", {"image": one, "question": TEXTS[0], "top": 2}, {"answer": answer.text, "top": answer.top}),
        ("answer", {"image": two, "question": TEXTS}, {"results": [{"answer": found.text} for found in several]}),
        ("caption", {"image": three}, {"caption": able.caption(three)}),
        ("caption", {"image": one, "beams": 1, "max_tokens": 4}, {"caption": able.caption(one, 1, max_tokens=4)}),
        ("caption", {"images": [one, two], "times": [0, 2.5]}, {"caption": able.caption((one, two), times=[0, 2.5])}),
        ("match", {"image": one, "text": TEXTS[1]}, {"probability": able.match(one, TEXTS[1])}),
        ("match", {"images": [one, three], "text": TEXTS[2]}, {"probability": able.match((one, three), TEXTS[2])}),
        (
            "ground",
            {"image": three, "phrase": TEXTS[1], "top": 2},
            {"regions": [{"probability": own} for own in ground.probabilities], "no_region": ground.nowhere},
        ),
        ("classify", {"image": two, "labels": ["star", "circle"], "templates": ["a {}"]}, {"top": named}),
        ("classify", {"image": two, "text": TEXTS[1], "model": "second"}, {"top": labels.classify(two, text=TEXTS[1])}),
        ("choose", {"image": one, "question": "what", "candidates": ["a star", "red"]}, chosen._asdict()),
        ("embed", {"image": two}, {"embedding": able.embed_image(two).tolist()}),
        ("embed", {"text": TEXTS[0]}, {"embedding": able.embed_text(TEXTS[0]).tolist()}),
        (
            "align",
            {"image": two, "text": TEXTS[2]},
            {"words": align.words, "similarities": align.similarities.tolist()},
        ),
        ("regions", {"image": one}, {"images": [{"boxes": able.regions(one).boxes.tolist()}]}),
    ]


def as_json(fields: dict[str, Any]) -> dict[str, Any]:
    encoded = dict(fields)
    if "image" in fields:
        encoded["image"] = text(fields["image"])
    if "images" in fields:
        encoded["images"] = list(map(text, fields["images"]))
    return {"json": encoded}


def as_form(fields: dict[str, Any]) -> dict[str, Any]:
    images = fields.get("images") or ([fields["image"]] if "image" in fields else [])
    name = "images" if "images" in fields else "image"
    rest = {key: value for key, value in fields.items() if key not in ("image", "images")}
    return {"data": rest, "files": [(name, ("a.png", image)) for image in images] or {"model": (None, "able")}}


def assert_holds(found: Any, expected: Any) -> None:
    """Compare what is expected; sums of floats in another order differ in the last digits."""
    if isinstance(expected, dict):
        for name in expected:
            assert_holds(found[name], expected[name])
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_holds(one, other)
    else:
        assert found == (pytest.approx(expected, abs=1e-5) if isinstance(expected, float) else expected)


@pytest.mark.parametrize("form", [as_json, as_form])
def test_requests_of_every_kind_share_a_batch_and_get_what_the_predictor_gives_alone(
    form: Any, models: Models, seen: list[int]
) -> None:
    cases = alone(models["able"].predictor, models["second"].predictor)
    assert {kind for kind, _, _ in cases} == {*REQUESTS}
    seen.clear()
    with served(models, start=False, batch=100) as (server, app):
        found = send(app, *[(f"/{kind}", form(fields)) for kind, fields, _ in cases], server=server)
    for (kind, fields, expected), response in zip(cases, found, strict=True):
        assert response.status_code == 200, (kind, response.text)
        assert response.json()["model"] == fields.get("model", "able")
        assert_holds(response.json(), expected)
    images = sum(len(fields.get("images", [])) + ("image" in fields) for _, fields, _ in cases)
    assert seen == [images], "both models share one detector, which is called once"


def test_a_batch_is_not_larger_than_its_budget_and_a_larger_request_is_a_batch_of_its_own(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(models, start=False, batch=3) as (server, app):
        batches: list[list[int]] = []
        compute = server.batcher._compute
        monkeypatch.setattr(
            server.batcher, "_compute", lambda jobs: batches.append([job.request.size for job in jobs]) or compute(jobs)
        )
        calls = [("/match", {"json": {"image": PNG, "text": ["a star"] * size}}) for size in (1, 2, 2, 5, 1, 1)]
        assert {one.status_code for one in send(app, *calls, server=server)} == {200}
    assert batches == [[1, 2], [2], [5], [1, 1]]


def test_a_batch_waits_for_as_many_requests_as_there_were_and_for_no_more(models: Models, seen: list[int]) -> None:
    call = ("/regions", {"json": {"image": PNG}})

    async def one_after_the_other(app: FastAPI) -> list[httpx.Response]:
        async def later(place: int) -> httpx.Response:
            await asyncio.sleep(0.1 * place)
            return await one.post(call[0], **call[1])

        async with client(app) as one:
            return await asyncio.gather(*map(later, range(3)))

    def counted(before: float) -> float:  # the thread counts a batch after it has given the answers
        while server.batcher.seconds == before:
            time.sleep(0.001)
        return server.batcher.seconds

    with served(models, start=False, batch=10, delay=60, seconds=20) as (server, app):
        server.batcher._expected = 1
        assert [answer.status_code for answer in send(app, *3 * [call], server=server)] == [200] * 3
        first = counted(0.0)
        assert [answer.status_code for answer in asyncio.run(one_after_the_other(app))] == [200] * 3
        counted(first)
        server.batcher._expected = 1
        assert send(app, call)[0].status_code == 200
    assert seen == [3, 3, 1]


def test_a_request_that_fails_spoils_no_other_of_its_batch(models: Models, caplog: pytest.LogCaptureFixture) -> None:
    good = ("/answer", {"json": {"image": PNG, "question": TEXTS[0]}})
    torn = ("/answer", {"json": {"image": text(IMAGES[1][:-30]), "question": TEXTS[0]}})
    no_image = ("/caption", {"json": {"images": [PNG, text(b"GIF")]}})
    odd = ("/match", {"json": {"image": PNG, "times": [2.5], "text": TEXTS[0], "model": "able"}})
    too_long = ("/caption", {"json": {"image": PNG, "max_tokens": 99}})
    twice = ("/choose", {"json": {"image": PNG, "candidates": ["a star", "a star"]}})
    once = ("/choose", {"json": {"image": PNG, "candidates": ["a star", "red"]}})
    with served(models, start=False) as (server, app):
        found = send(app, good, torn, no_image, odd, too_long, twice, once, good, server=server)
    assert [one.status_code for one in found] == [200, 422, 422, 200, 422, 422, 200, 200]
    assert found[0].json() == found[-1].json()
    assert "image 1 of 1 cannot be read" in found[1].json()["error"]
    assert "image 2 of 2 is not an image of a known format" in found[2].json()["error"]
    assert "max_tokens is 99 but able was trained" in found[4].json()["error"]
    assert "/" not in found[4].json()["error"], "no folder of the server"
    assert not [record for record in caplog.records if record.exc_info]


def test_an_error_of_the_server_is_a_500_without_its_cause_which_is_logged(
    models: Models, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Predictor, "predict", lambda *_, **__: 1 / 0)
    with served(models) as (_, app):
        [found] = send(app, ("/answer", {"json": {"image": PNG, "question": TEXTS[0]}}))
    assert (found.status_code, found.json()) == (500, {"error": "the server failed; see its log"})
    assert "ZeroDivisionError" in caplog.text


def test_regions_that_were_returned_stand_for_their_image(models: Models, seen: list[int]) -> None:
    ask = {"question": TEXTS, "top": 3}
    with served(models) as (_, app):
        [found, expected] = send(
            app, ("/regions", {"json": {"image": PNG}}), ("/answer", {"json": {"image": PNG, **ask}})
        )
        [regions] = found.json()["images"]
        seen.clear()
        [again] = send(app, ("/answer", {"json": {"image": regions, **ask}}))
        assert again.json() == expected.json() and not seen
        changes = {
            "another extractor": {"extractor": "0" * 64},
            "unequal lengths": {"features": [[1.0], [1.0, 2.0]]},
            "features of width 1": {"features": [[1.0]] * len(regions["boxes"])},
            "outside the image": {"boxes": [[0, 0, 90, 70]] * len(regions["boxes"])},
            "class id 99": {"class_ids": [[99]] * len(regions["boxes"])},
            "field 'colour'": {"colour": 1},
            "no field 'height'": {},
        }
        for words, change in changes.items():
            changed = regions | change if change else {"width": 1}
            [refused] = send(app, ("/answer", {"json": {"image": changed, **ask}}))
            assert 400 <= refused.status_code < 500, (words, refused.text)
            assert words in refused.json()["error"]


def test_a_model_is_chosen_by_its_name_or_else_by_what_it_can_do(models: Models) -> None:
    with served(models) as (_, app):
        asked = {"image": PNG, "labels": ["star", "circle"]}
        found = send(
            app,
            ("/classify", {"json": {"image": PNG}}),
            ("/classify", {"json": asked}),
            ("/classify", {"json": {**asked, "model": "second"}}),
            ("/answer", {"json": {"image": PNG, "question": "what", "model": "third"}}),
        )
        listed = get(app, "/models").json()
    assert [one.json().get("model") for one in found] == ["second", "able", None, None]
    assert [one.status_code for one in found[2:]] == [404, 404]
    assert "'second' cannot classify by labels, but it can classify" in found[2].json()["error"]
    assert "no model 'third'; give one of able, second" in found[3].json()["error"]
    assert listed["second"]["abilities"] == ["classify", "regions"] and listed["second"]["synthetic"]
    with served({"second": models["second"]}) as (_, app):
        assert send(app, ("/answer", {"json": {"image": PNG, "question": "what"}}))[0].status_code == 404
    with pytest.raises(UserError, match="served as 'able', a name that is empty or already taken; give NAME="):
        open_models([str(models["able"].predictor.trained.weights.parent)] * 2, [], "cpu")


BIG = "x" * 3000
MALFORMED: list[tuple[str, dict[str, Any], int, str]] = [
    ("not JSON", {"content": b"{", "headers": {"content-type": "application/json"}}, 400, "is not JSON"),
    ("a list", {"json": [1]}, 400, "the request is"),
    ("bytes", {"content": b"\xff\xfe", "headers": {"content-type": "application/json"}}, 400, "not JSON"),
    ("deep", {"content": b"[" * 5000, "headers": {"content-type": "application/json"}}, 400, "not JSON"),
    ("no type", {"content": b"{}"}, 415, "content type is ''"),
    ("another type", {"content": b"{}", "headers": {"content-type": "text/html"}}, 415, "text/html"),
    ("no question", {"json": {"image": PNG}}, 400, "no field 'question'"),
    ("no image", {"json": {"question": "what"}}, 400, "neither image and images"),
    ("two kinds", {"json": {"image": PNG, "images": [PNG], "question": "what"}}, 400, "both image and images"),
    ("a number", {"json": {"image": PNG, "question": 3}}, 400, "question is 3"),
    ("blank", {"json": {"image": PNG, "question": " \u200b"}}, 400, "question is empty"),
    ("one of several blank", {"json": {"image": PNG, "question": ["a", ""]}}, 400, "question is empty"),
    ("no texts", {"json": {"image": PNG, "question": []}}, 400, "question is []"),
    ("endless", {"json": {"image": PNG, "question": "a" * 200_000}}, 413, "send a smaller image"),
    ("many texts", {"json": {"image": PNG, "question": ["a"] * 65}}, 400, "question is"),
    ("top", {"json": {"image": PNG, "question": "a", "top": 0}}, 400, "top is 0"),
    ("unknown", {"json": {"image": PNG, "question": "a", BIG: 1}}, 400, "which is not known"),
    ("not base64", {"json": {"image": "?!", "question": "a"}}, 400, "image is not base64"),
    ("nothing", {"json": {"image": "", "question": "a"}}, 400, "image is empty"),
    ("a path", {"json": {"image": "/etc/passwd", "question": "a"}}, 400, "image is not base64"),
    ("an address", {"json": {"image": "http://localhost/a.png", "question": "a"}}, 400, "image is not base64"),
    ("a bomb", {"json": {"image": "BOMB", "question": "a"}}, 422, "more than"),
    ("many images", {"json": {"images": [PNG] * 4, "question": "a"}}, 422, "the model takes 1 to 3"),
    ("times", {"json": {"image": PNG, "times": [1, 2], "question": "a"}}, 422, "numbers of times and images"),
    ("half a form", {"content": b"--x", "headers": {"content-type": "multipart/form-data; boundary=x"}}, 400, ""),
    ("no boundary", {"content": b"--x", "headers": {"content-type": "multipart/form-data"}}, 400, "boundary"),
    ("a torn form", {"content": b"--x\r\nA", "headers": {"content-type": "multipart/form-data; boundary=x"}}, 400, ""),
]


def bomb() -> bytes:
    """A PNG whose header says 10^10 pixels."""
    header = b"IHDR" + (10**5).to_bytes(4, "big") * 2 + IMAGES[0][24:29]
    return IMAGES[0][:12] + header + zlib.crc32(header).to_bytes(4, "big") + IMAGES[0][33:]


def test_each_malformed_request_is_one_sentence_and_nothing_stays(
    models: Models, caplog: pytest.LogCaptureFixture
) -> None:
    with served(models, bytes=150_000) as (_, app):
        calls = []
        for _, given, _, _ in MALFORMED:
            if isinstance(given.get("json"), dict) and given["json"].get("image") == "BOMB":
                given = {"json": given["json"] | {"image": text(bomb())}}
            calls.append(("/answer", given))
        for (name, _, status, words), found in zip(MALFORMED, send(app, *calls), strict=True):
            sentence = found.json()["error"]
            assert found.status_code == status and words in sentence, (name, found.status_code, sentence)
            assert re.search(r"; \S", sentence) and "\n" not in sentence and len(sentence) < 2000, sentence
        assert get(app, "/answer").status_code == 405 and get(app, "/nothing").status_code == 404
        assert "see /docs" in get(app, "/../../etc/passwd").json()["error"]
        counted = get(app, "/metrics").text
    refused = sum(float(value) for value in re.findall(r'dimvl_requests_total\{.*status="4\d\d"\} (\S+)', counted))
    assert refused == len(MALFORMED) and "dimvl_accepted 0.0" in counted
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_body_without_a_length_is_kept_up_to_the_limit_only(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dimvl.serve.app, "DISCARD_BYTES", 20_000)
    whole = {"content": b"x" * 10_001, "headers": {"content-type": "application/json"}}
    taken = []

    async def endless() -> Any:
        for _ in range(1000):
            taken.append(1)
            yield b"x" * 1000

    with served(models, bytes=10_000) as (_, app):
        given = {"content": endless(), "headers": {"content-type": "application/json"}}
        assert send(app, ("/answer", given))[0].status_code == 413
        started = time.monotonic()
        assert send(app, ("/answer", whole))[0].status_code == 413
        assert time.monotonic() - started < dimvl.serve.app.DISCARD_SECONDS, "nothing is left to be read"
        assert 30 <= len(taken) < 40
        # If the body stayed unread, the connection would be reset, and the answer lost.
        assert send(app, ("/nowhere", {"content": endless()}))[0].status_code == 404
        assert 50 <= len(taken) < 70


def test_more_requests_than_the_limit_are_refused_with_the_time_to_wait(models: Models) -> None:
    call = ("/caption", {"json": {"image": PNG}})
    with served(models, start=False, requests=3) as (server, app):

        async def fill() -> list[httpx.Response]:
            async with client(app) as one:
                first = [asyncio.ensure_future(one.post(call[0], **call[1])) for _ in range(3)]
                for _ in range(500):
                    if server.batcher.waiting == 3:
                        break
                    await asyncio.sleep(0.01)
                refused = await one.post(call[0], **call[1])
                server.batcher.start()
                return [refused, *await asyncio.gather(*first), await one.post(call[0], **call[1])]

        refused, *others = asyncio.run(fill())
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
    assert "3 requests are waiting" in refused.json()["error"]
    assert [one.status_code for one in others] == [200] * 4


def test_a_request_that_takes_too_long_is_given_up_and_not_computed(models: Models, seen: list[int]) -> None:
    with served(models, start=False, seconds=0.1) as (server, app):
        [found] = send(app, ("/caption", {"json": {"image": PNG}}))
        assert found.status_code == 504 and "no result within 0.1 seconds" in found.json()["error"]
        server.batcher.start()

    async def slow() -> Any:
        yield b"{"
        await asyncio.sleep(1)

    with served(models, seconds=0.1) as (_, app):
        given = {"content": slow(), "headers": {"content-type": "application/json"}}
        assert send(app, ("/caption", given))[0].status_code == 408
    assert not seen


@pytest.mark.parametrize("sent", [False, True], ids=["while it sends", "while it waits"])
def test_a_client_that_leaves_leaves_nothing(models: Models, seen: list[int], sent: bool) -> None:
    body = f'{{"image": "{PNG}"}}'.encode()
    messages = [{"type": "http.request", "body": body, "more_body": not sent}, {"type": "http.disconnect"}]
    scope = {"type": "http", "method": "POST", "path": "/caption", "query_string": b"", "raw_path": b"/caption"}
    scope |= {"headers": [(b"content-type", b"application/json")], "server": ("test", 80), "scheme": "http"}

    async def receive() -> Any:
        return messages.pop(0)

    async def ignore(message: Any) -> None:
        pass

    with served(models, start=False) as (server, app):
        asyncio.run(app(scope, receive, ignore))
        assert server.accepted == 0
        assert 'status="499"} 1.0' in get(app, "/metrics").text
        server.batcher.start()
    assert not seen


def test_the_pages_about_the_server_need_no_other_server(models: Models) -> None:
    with served(models) as (_, app):
        page, schema = get(app, "/docs").text, get(app, "/openapi.json").json()
        assert get(app, "/health").json() == {"status": "ok"}
        assert "process_resident_memory_bytes" in get(app, "/metrics").text
    assert not re.search(r"""(src|href)=["']?(https?:)?//|url\(|@import""", page)
    for kind in REQUESTS:
        assert f"POST /{kind}" in page
        assert {"application/json", "multipart/form-data"} == {
            *schema["paths"][f"/{kind}"]["post"]["requestBody"]["content"]
        }
    fields = schema["paths"]["/answer"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert fields["required"] == ["question"] and {"image", "images", "top", "model"} < {*fields["properties"]}


def test_a_server_whose_thread_has_ended_says_so(models: Models) -> None:
    with served(models, start=False) as (_, app):
        assert get(app, "/health").status_code == 503
