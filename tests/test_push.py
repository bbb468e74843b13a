"""Pushing an export to a stand-in for the hub, and opening it from there."""

import json
import re
import shutil

import pytest
import yaml

from dimvl.checkpoints import CARD
from dimvl.errors import UserError
from dimvl.export import export
from dimvl.hub import hub_errors
from dimvl.predictor import Predictor
from tests.cli.calls import call, refused
from tests.exports import all_abilities, make_detector, make_image, make_trained, write_run
from tests.hub import TOKEN, Hub, serving, write_token

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the hub's client
NAME = "someone/scenes"
LICENSED = ("--licence", "apache-2.0")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    place = tmp_path_factory.mktemp("made")
    detector = make_detector()
    detector.save(place / "detector")
    run = write_run(place / "run", make_trained(all_abilities(detector.extractor)))
    return export(run, place / "export", place / "detector")


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "export")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that huggingface_hub's client takes for the real one, with a token as `hf auth login` leaves it."""
    from huggingface_hub import _snapshot_download, constants, file_download, hf_api
    from huggingface_hub.utils import _http

    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(write_token(tmp_path / "home")))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)
    hub = Hub()
    with serving(hub) as address:
        for module in (constants, hf_api, file_download, _snapshot_download):
            for name, value in (
                ("ENDPOINT", address),
                ("HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"),
            ):
                if hasattr(module, name):
                    monkeypatch.setattr(module, name, value)
        yield hub


@pytest.fixture
def push(monkeypatch, capfd, folder):
    def pushed(*arguments, name=NAME):
        result = call(monkeypatch, capfd, "push", folder, name, *arguments)
        assert TOKEN not in result.out + result.err
        return result

    return pushed


def metadata(card):
    return yaml.safe_load(card.decode().split("---\n")[1])


def test_a_pushed_export_gives_the_same_predictions_from_the_hub(hub, push, folder):
    result = push(*LICENSED)
    assert (result.code, hub.models[NAME]["private"]) == (0, True), result.err
    assert re.fullmatch(rf"pushed: \d+ files to {NAME} \(private\), commit [0-9a-f]{{40}}\n", result.out)
    own = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    there = hub.files(NAME)
    assert {name for name, data in there.items() if own.get(name) != data} == {".gitattributes", CARD}
    assert own.keys() < there.keys() and hub.objects, "the weights went by LFS"
    before, after = Predictor.from_pretrained(folder), Predictor.from_pretrained(NAME)
    image = make_image()
    assert after.answer(image, "is the star red") == before.answer(image, "is the star red")
    assert after.caption(image) == before.caption(image)


def test_the_card_on_the_hub_has_the_licence_and_the_models_name_and_the_local_one_stays(hub, push, folder):
    before = (folder / CARD).read_bytes()
    assert push(*LICENSED).code == 0
    sent = hub.files(NAME)[CARD]
    found = metadata(sent)
    assert (found["library_name"], found["license"]) == ("dimvl", "apache-2.0")
    assert found["pipeline_tag"] == metadata(before)["pipeline_tag"] == "visual-question-answering"
    assert f'Predictor.from_pretrained("{NAME}")'.encode() in sent and b"this folder" not in sent
    assert (folder / CARD).read_bytes() == before and "license" not in metadata(before)
    (folder / CARD).write_bytes(sent)  # an edited card has its licence
    assert push().code == 0


def test_a_revision_opens_what_was_pushed_then(hub, push, folder, made, tmp_path):
    assert push(*LICENSED).code == 0
    first = hub.find(NAME)[0]
    shutil.rmtree(folder)
    detector = make_detector()
    detector.save(tmp_path / "detector")
    other = make_trained(all_abilities(detector.extractor), seed=5)
    export(write_run(tmp_path / "run", other), folder, tmp_path / "detector")
    assert push(*LICENSED, "--branch", "next", "--message", "other weights").code == 0
    opened = {name: Predictor.from_pretrained(NAME, revision=name) for name in ("main", first, "next")}
    sums = {name: one.trained.weights_sha256 for name, one in opened.items()}
    assert sums["main"] == sums[first] != sums["next"]
    with pytest.raises(UserError, match=f"{NAME} at revision gone: the hub has no such model or revision"):
        Predictor.from_pretrained(NAME, revision="gone")
    with pytest.raises(UserError, match="is a folder, which has no revision 'main'; omit it"):
        Predictor.from_pretrained(folder, revision="main")


def test_a_dry_run_lists_what_would_go_with_sizes_and_asks_nobody(hub, push, folder):
    result = push(*LICENSED, "--dry-run", "--public")
    assert result.code == 0 and not hub.requests and result.err == ""
    *lines, total = result.out.splitlines()
    sizes = {name: int(size.replace(",", "")) for size, name in map(str.split, lines)}
    names = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert sizes.keys() == names and sizes["model.safetensors"] == (folder / "model.safetensors").stat().st_size
    assert total.split() == [
        f"{sum(sizes.values()):,}",
        *f"bytes in {len(names)} files would go to {NAME} (public)".split(),
    ]


def damage(folder):
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")


def edit(folder, old, new):
    card = folder / CARD
    assert old in card.read_text()
    card.write_text(card.read_text().replace(old, new))


REFUSED = {
    "a flipped bit": (damage, LICENSED, "model.safetensors is damaged: it does not match its checksum"),
    "a file gone": (lambda folder: (folder / "processor.json").unlink(), LICENSED, "lacks processor.json"),
    "another file": (
        lambda folder: (folder / "detector" / "notes.txt").write_text("x"),
        LICENSED,
        "has files that do not belong to the export: detector/notes.txt; move them elsewhere",
    ),
    "no checksums": (lambda folder: (folder / "checksums.json").unlink(), LICENSED, "has no checksums.json; export"),
    "no licence": (lambda folder: None, (), "has no licence; give it, such as --licence apache-2.0"),
    "a licence in words": (lambda folder: None, ("--licence", "do what you like"), "is not an identifier of the hub"),
    "another library": (
        lambda folder: edit(folder, "library_name: dimvl", "library_name: peft"),
        LICENSED,
        "library_name in {card} is 'peft'; write dimvl",
    ),
    "another tag": (
        lambda folder: edit(folder, "pipeline_tag: visual", "pipeline_tag: audio"),
        LICENSED,
        "pipeline_tag in {card} is 'audio-question-answering'; write visual-question-answering",
    ),
    "no metadata": (lambda folder: edit(folder, "---\n", ""), LICENSED, "does not begin with metadata"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_must_not_go_is_refused_before_the_hub_is_asked(case, hub, push, folder):
    change, options, words = REFUSED[case]
    change(folder)
    refused(push(*options), words.format(card=folder / CARD))
    assert not hub.requests


def test_a_run_and_a_bad_name_are_refused(hub, push, folder, made, monkeypatch, capfd):
    refused(call(monkeypatch, capfd, "push", made.parent / "run", NAME), "is a run; write an export")
    refused(push(*LICENSED, name="scenes"), "scenes is not a name on the hub; give owner/name")


def test_hidden_files_stay_at_home(hub, push, folder):
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("password = x")
    assert push(*LICENSED).code == 0
    assert not [name for name in hub.files(NAME) if name.startswith(".git/")]


def test_a_model_of_another_visibility_or_library_is_left_as_it_is(hub, push):
    hub.add(NAME, private=False)
    refused(push(*LICENSED), f"{NAME} on the hub is public already; add --public")
    assert push(*LICENSED, "--public").code == 0 and not hub.models[NAME]["private"]
    hub.add("someone/private")
    refused(push(*LICENSED, "--public", name="someone/private"), "is private already; omit --public")
    hub.add("someone/bert", files={"pytorch_model.bin": b"x"})
    refused(push(*LICENSED, name="someone/bert"), "is not an export of dimvl, with files such as pytorch_model.bin")
    assert len(hub.models["someone/bert"]["branches"]["main"]) == 1


def test_files_of_an_earlier_push_go_and_those_of_others_stay(hub, push, folder):
    assert push(*LICENSED).code == 0
    sealed = json.loads(hub.files(NAME)["checksums.json"])
    hub.commit(NAME, "main", {"LICENSE": b"free", "figure.png": b"x"}, ())
    (folder / "tokenizer_config.json").unlink()  # as if a later version did without
    files = {name: folder / name for name in sealed["files"] if name != "tokenizer_config.json"}
    from dimvl.push import push as push_files

    push_files(files, NAME)
    there = hub.files(NAME)
    assert "tokenizer_config.json" not in there and {"LICENSE", "figure.png", "model.safetensors"} <= there.keys()


@pytest.mark.parametrize(
    ("part", "status", "words"),
    [
        ("whoami", 401, f"{NAME}: the hub does not accept the token (HTTP 401); log in with `hf auth login`"),
        ("repos/create", 403, "the hub refuses this to the token (HTTP 403); use a token with write access"),
        ("/commit/", 404, "the hub has no such model or revision, or hides it from you (HTTP 404); check the name"),
        ("/commit/", 412, "the hub has a newer commit than the one seen before (HTTP 412); look at it, and push again"),
        ("preupload", 429, "the hub has had too many requests from you (HTTP 429); wait some minutes"),
        ("/lfs/", 500, "the hub failed (HTTP 500); try again later"),
        ("objects/batch", 418, "the hub's client failed (Client error '418"),
    ],
)
def test_each_error_of_the_hub_is_one_sentence_without_the_token(part, status, words, hub, push):
    hub.fail[part] = status
    refused(push(*LICENSED), words)


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500])
def test_each_error_of_a_download_is_one_sentence_without_the_token(status, hub):
    hub.add(NAME)
    hub.fail["/api/models"] = status
    with pytest.raises(UserError, match=rf"^{NAME}: the hub .* \(HTTP (404|{status})\); ") as error:
        Predictor.from_pretrained(NAME)
    assert TOKEN not in str(error.value)


def test_a_hub_out_of_reach_no_token_and_offline_mode_are_told(hub, push, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere/token")
    refused(push(*LICENSED), "pushing needs a token of the hub; log in with `hf auth login`, or set HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        refused(push(*LICENSED), "HF_HUB_OFFLINE forbids")
    hub.fail["/"] = 401
    refused(push(*LICENSED), "HTTP 401")
    from huggingface_hub import hf_api

    for module in (constants, hf_api):
        if hasattr(module, "ENDPOINT"):
            monkeypatch.setattr(module, "ENDPOINT", "http://127.0.0.1:9")
    refused(push(*LICENSED), "the hub at http://127.0.0.1:9 cannot be reached (", "check the network")


def test_no_message_of_the_client_shows_a_token_or_a_signed_address(monkeypatch, caplog):
    from huggingface_hub import hf_api

    monkeypatch.setenv("HF_TOKEN", "made-by-hand")
    said = f"401 for url 'http://x/y?signature=abc' with Bearer {TOKEN}, made-by-hand\nand more"
    with caplog.at_level("DEBUG"), pytest.raises(UserError) as error, hub_errors(NAME):
        hf_api.logger.warning("the hub says %s", said)
        raise RuntimeError(said)
    shown = f"{error.value} {caplog.text}"
    assert not [word for word in (TOKEN, "made-by-hand", "abc") if word in shown] and "401 for url" in shown
