"""Images on the web, read from a server on the loopback address."""

import io
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

import numpy as np
import pytest

from dimvl.errors import UserError
from dimvl.export import export
from dimvl.predictor import Predictor
from dimvl.regions import remote
from tests.cli.calls import call, refused
from tests.exports import all_abilities, make_detector, make_image, make_trained, write_run


def png():
    file = io.BytesIO()
    make_image().save(file, "PNG")
    return file.getvalue()


class Handler(BaseHTTPRequestHandler):
    stop: Event
    asked: list[str]

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.asked.append(self.path)
        if self.path == "/slow":
            for _ in range(200):
                if self.stop.wait(0.05):
                    return
                self.wfile.write(b"H")  # a header that never ends
            return
        if self.path.startswith("/to/"):
            place = self.path.removeprefix("/to/")
            self.send_response(302)
            self.send_header(
                "Location", f"/to/{int(place) - 1}" if place.isdigit() and int(place) else self.place(place)
            )
            self.end_headers()
            return
        found = {"/image.png": png(), "/page": b"<html>", "/empty": b"", "/large": bytes(3000)}.get(self.path)
        self.send_response(404 if found is None else 200)
        self.end_headers()
        self.wfile.write(found or b"")

    @staticmethod
    def place(name):
        return {"0": "/image.png", "file": "file:///etc/passwd", "ftp": "ftp://127.0.0.1/x"}[name]


@pytest.fixture(scope="module")
def web():
    bound = type("Bound", (Handler,), {"stop": Event(), "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), bound)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", bound.asked
    bound.stop.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    place = tmp_path_factory.mktemp("model")
    detector = make_detector()
    detector.save(place / "detector")
    run = write_run(place / "run", make_trained(all_abilities(detector.extractor, max_images=3)), description="photos")
    return export(run, place / "export", place / "detector")


def test_an_address_a_file_bytes_and_an_array_of_one_image_are_the_same_image(web, model, tmp_path):
    (tmp_path / "image.png").write_bytes(png())
    predictor, address = Predictor.from_pretrained(model), f"{web[0]}/image.png"
    kinds = [address, tmp_path / "image.png", png(), np.asarray(make_image()), f"{web[0]}/to/2"]
    found = predictor.regions(kinds)
    assert all(np.array_equal(one.features, found[0].features) for one in found) and len(found[0])
    web[1].clear()
    assert len(predictor.caption([address, address])) == 2 and web[1] == ["/image.png"], "each address is read once"
    assert predictor.draw(address).size == predictor.draw(png()).size


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("gone", r"gone cannot be read \(HTTP 404\); check the address, or download it yourself"),
        ("page", "image http.*/page is not an image of a known format"),
        ("empty", "has no content; check the address"),
        ("to/3", r"cannot be read \(redirected too often, or not to http\)"),
        ("to/file", r"cannot be read \(redirected too often, or not to http\)"),
        ("to/ftp", r"redirects to ftp://127\.0\.0\.1/x, which is less secure; download it yourself"),
        ("large", "has more than 2,000 bytes; download it yourself"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(path, words, web, model, monkeypatch):
    monkeypatch.setattr(remote, "MAX_BYTES", 2000 if path == "large" else remote.MAX_BYTES)
    with pytest.raises(UserError, match=words):
        Predictor.from_pretrained(model, check=False).caption(f"{web[0]}/{path}")


def test_a_server_that_trickles_is_left_in_time_and_one_that_is_not_there_is_told(web, monkeypatch):
    monkeypatch.setattr(remote, "SECONDS", 0.3)
    before = time.monotonic()
    with pytest.raises(UserError, match=r"/slow was not read in 0.3 seconds; download it yourself"):
        remote.Remote(f"{web[0]}/slow").read()
    assert time.monotonic() - before < 2
    with pytest.raises(UserError, match=r"cannot be read \(.*refused\); check the address"):
        remote.Remote("http://127.0.0.1:9/image.png").read()


def test_a_password_in_an_address_is_neither_sent_nor_shown():
    with pytest.raises(UserError, match=r"has a user name before 127\.0\.0\.1:9/x") as error:
        remote.Remote("http://me:secret@127.0.0.1:9/x").read()
    assert "secret" not in str(error.value)


def test_the_command_line_takes_addresses_and_skips_those_that_fail(web, model, tmp_path, monkeypatch, capfd, caplog):
    address, gone = f"{web[0]}/image.png", f"{web[0]}/gone"
    result = call(monkeypatch, capfd, "caption", address, gone, "--model", model, "--json")
    assert result.code == 2 and f'"image": "{address}"' in result.out and "HTTP 404" in caplog.text
    drawn = tmp_path / "drawn.png"
    words = (address, "is it red", "--model", model, "--explain", "--draw", drawn)
    assert call(monkeypatch, capfd, "answer", *words).code == 0 and drawn.exists()
    refused(call(monkeypatch, capfd, "answer", gone, "is it red", "--model", model), "HTTP 404")


def test_an_address_in_a_file_of_questions_is_a_name_in_its_folder(web, model, tmp_path, monkeypatch, capfd):
    (tmp_path / "asked.jsonl").write_text(f'{{"image": "{web[0]}/image.png", "question": "is it red"}}\n')
    web[1].clear()
    monkeypatch.chdir(tmp_path)
    for file in ("asked.jsonl", tmp_path / "asked.jsonl"):
        assert call(monkeypatch, capfd, "answer", file, "--model", model).code == 1
    assert not web[1]
