"""What the page's server lets through: the routes that the page needs, and no file by a path."""

import http.client
import json
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from dimvl.app.exports import Exports
from dimvl.app.server import REQUEST_BYTES
from dimvl.errors import UserError
from dimvl.serve.address import bound

SECRET = "secret-of-the-server"


@pytest.fixture(scope="module")
def address(url: str) -> str:
    return urlsplit(url).netloc


def asked(address: str, method: str, path: str, body: object = None, **headers: str) -> tuple[int, bytes]:
    """Status and body of a request whose path is sent as it is."""
    connection = http.client.HTTPConnection(address, timeout=20)
    content = None if body is None else json.dumps(body).encode()
    connection.request(method, path, content, {"content-type": "application/json", **headers})
    with connection.getresponse() as answer:
        found = answer.status, answer.read()
    connection.close()
    return found


def told(address: str, body: dict[str, object]) -> str:
    """What the queue answers to an event."""
    status, _ = asked(address, "POST", "/gradio_api/queue/join", body)
    assert status == 200
    connection = http.client.HTTPConnection(address, timeout=20)
    connection.request("GET", f"/gradio_api/queue/data?session_hash={body['session_hash']}")
    lines, answer = [], connection.getresponse()
    while line := answer.readline().decode():
        lines.append(line)
        if "process_completed" in line or "close_stream" in line:
            break
    connection.close()
    return "".join(lines)


def test_the_page_is_served_and_browsers_are_told_to_ask_no_other_host(address: str) -> None:
    connection = http.client.HTTPConnection(address, timeout=20)
    connection.request("GET", "/?deep_link=../x")
    answer = connection.getresponse()
    assert answer.status == 200 and b"dimvl" in answer.read()
    assert answer.headers["content-security-policy"].startswith("default-src 'self'; ")
    connection.close()


@pytest.mark.parametrize("prefix", ["/gradio_api/file=", "/file=", "/gradio_api/file/", "/static/", "/assets/", "/"])
def test_no_route_leads_to_a_file_of_the_server(address: str, exports: Exports, prefix: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text(SECRET)
    shutil.copy(secret, exports.files["1"].with_name("beside.txt"))
    up = "../" * 12
    paths = (str(secret), str(exports.files["1"]), f"{up}{secret}", f"{up}{secret}".replace("../", "%2e%2e%2f"))
    for path in (*paths, f"file://{secret}", str(secret).replace("/", "%2F"), "/etc/passwd", "..%5c..%5cetc%5cpasswd"):
        status, body = asked(address, "GET", prefix + path)
        assert status == 404 or (status == 403 and prefix in ("/static/", "/assets/")), path
        assert SECRET.encode() not in body and b"root:" not in body, path


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("POST", f"/gradio_api/{name}") for name in ("upload", "run/predict", "api/predict", "call/show")),
        *(("POST", f"/gradio_api/{name}") for name in ("component_server", "process_recording", "vibe-edit")),
        *(("GET", f"/gradio_api/{name}") for name in ("deep_link?session_hash=s", "runs", "vibe-code", "openapi.json")),
        *(("GET", f"/gradio_api/{name}") for name in ("proxy=http://127.0.0.1:1/", "stream/s/0/0/playlist-file")),
        *(
            ("GET", path)
            for path in ("/docs", "/redoc", "/openapi.json", "/monitoring", "/login_check", "/svelte/x.js")
        ),
    ],
)
def test_what_the_page_does_not_need_is_not_there(address: str, method: str, path: str) -> None:
    assert asked(address, method, path, {} if method == "POST" else None) == (404, b"")


def test_a_file_or_an_address_in_an_event_is_neither_opened_nor_fetched(
    address: str, contacted: set[str], tmp_path: Path
) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text(SECRET)
    config = json.loads(asked(address, "GET", "/config")[1])
    assert config["dependencies"] and not config["analytics_enabled"]
    for event in config["dependencies"]:
        begin = {"session_hash": f"s{event['id']}", "fn_index": event["id"]}
        body = {"data": [str(secret)] * len(event["inputs"]), "event_data": {"open": str(secret)}}
        found = told(address, {**begin, **body})
        assert SECRET not in found and "Traceback" not in found
        for path in (str(secret), "http://192.0.2.1/x"):
            file = {"path": path, "url": path, "meta": {"_type": "gradio.FileData"}}
            for hidden in ({"data": [file]}, {"data": [[file]]}, {"data": [], "event_data": {"open": file}}):
                assert asked(address, "POST", "/gradio_api/queue/join", {**begin, **hidden}) == (400, b"")
    assert contacted <= {"127.0.0.1", "localhost"}


def test_a_request_that_is_too_large_is_refused_before_it_is_read(address: str) -> None:
    headers = (("content-length", str(REQUEST_BYTES + 1), 413), ("transfer-encoding", "chunked", 411))
    for name, value, status in headers:
        connection = http.client.HTTPConnection(address, timeout=20)
        connection.putrequest("POST", "/gradio_api/queue/join")
        connection.putheader(name, value)
        connection.endheaders()
        assert connection.getresponse().status == status
        connection.close()


@pytest.mark.parametrize(("host", "status"), [("evil.example", 403), ("localhost:1", 200), ("[::1]:1", 200)])
def test_a_name_of_another_site_that_leads_here_is_refused(address: str, host: str, status: int) -> None:
    assert asked(address, "GET", "/config", host=host)[0] == status


def test_a_port_that_is_taken_and_an_address_of_another_machine_are_told_in_one_sentence(address: str) -> None:
    for host, port in (("127.0.0.1", int(address.rpartition(":")[2])), ("192.0.2.1", 0), ("no such host", 0)):
        with pytest.raises(UserError, match=rf"{host} port {port} cannot be opened .*; give another"):
            bound(host, port)
