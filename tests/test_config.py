import json
from pathlib import Path

import pytest
import yaml

from dimvl.bootstrap.config import BootstrapConfig
from dimvl.checkpoints import RUN
from dimvl.concepts.config import ConceptConfig
from dimvl.config import ModelConfig, Section, read_keys, read_yaml, validate
from dimvl.demo.config import DemoConfig, load_demo_config
from dimvl.errors import UserError
from dimvl.study.config import StudyConfig
from dimvl.study.stages import make_grid
from dimvl.tasks import load_config
from dimvl.tasks.answering.config import VqaConfig, VqaEvaluation
from dimvl.tasks.answering.statements import read_statements
from dimvl.tasks.captioning.config import CaptionConfig
from dimvl.tasks.pretraining.config import PretrainConfig

CONFIGS = Path(__file__).parents[1] / "configs"
PRETRAIN = {"output": "runs/a", "regions": "regions", "captions": "c.json", "training": {"steps": 10}}


def write(path, content):
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


@pytest.fixture
def pretrain(tmp_path):
    return write(tmp_path / "run.yaml", PRETRAIN)


def test_the_task_selects_the_configuration_class(tmp_path, pretrain):
    assert isinstance(load_config(pretrain), PretrainConfig)
    caption = write(tmp_path / "caption.yaml", {**PRETRAIN, "task": "caption"})
    assert isinstance(load_config(caption), CaptionConfig)
    files = {"questions": "q.json", "annotations": "a.json", "task": "vqa"}
    vqa = write(tmp_path / "vqa.yaml", {**{k: v for k, v in PRETRAIN.items() if k != "captions"}, **files})
    config = load_config(vqa)
    assert isinstance(config, VqaConfig) and config.questions == [Path("q.json")]
    for task in ("dance", ["vqa"], None):
        with pytest.raises(UserError, match="it must be one of pretrain, vqa, caption"):
            load_config(write(tmp_path / "other.yaml", {**PRETRAIN, "task": task}))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("trainig.steps=3", r"unknown key 'trainig'; did you mean 'training'\?"),
        ("training.learning_rat=3", r"unknown key 'training\.learning_rat'; did you mean 'training\.learning_rate'\?"),
        ("objectives.shares.maskedlm=1", r"did you mean 'objectives\.shares\.masked_lm'\?"),
        ("model.xyzzy=1", "unknown key 'model.xyzzy'; valid keys: layers, width, heads"),
        ("self_critical={}", "unknown key 'self_critical'; it belongs to task 'caption', not to the task of this run"),
        ("epochs=1", "unknown key 'epochs'; valid keys: task, output"),
        ("training.dropout=0", r"unknown key 'training\.dropout'; did you mean 'model\.dropout'\?"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_valid_name(pretrain, override, says):
    with pytest.raises(UserError, match=says):
        load_config(pretrain, [override])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("training.steps=0", r"training\.steps is 0; it must be at least 1"),
        ("training.steps=many", r"training\.steps is 'many'"),
        ("training.learning_rate=-1e-4", r"training\.learning_rate is -0\.0001"),
        ("training.schedule=step", r"training\.schedule is 'step'; it must be 'linear', 'cosine' or 'constant'"),
        ("model.split=[qkv,foo]", r"model\.split\.1 is 'foo'"),
        ("model.split=[qkv,out,qkv]", r"model\.split is .*: qkv is named twice; name each one once"),
        ("training.steps=true", r"training\.steps is true: give a number"),
        ("training.muon_rate=false", r"training\.muon_rate is false: give a number"),
        ("deepspeed.stage=true", r"deepspeed\.stage is true: give a number"),
        ("model.heads=7", "width 768 is not a multiple of heads 7"),
        ("model=5", "model is 5"),
        ("model.dropout=1", r"model\.dropout is 1"),
        ("objectives.text_share=0", r"objectives\.text_share is 0"),
        ("objectives.word_change_share=0.5", "word_change_share and word_changes belong together"),
        ("objectives.word_changes=pairs.json", "word_change_share and word_changes belong together"),
        ("inputs.vocabulary=2.5", r"inputs\.vocabulary is 2\.5"),
        ("seed=-1", "seed is -1"),
        ("seed=9223372036854775808", "seed is 9223372036854775808; it must be below 9223372036854775808"),
        ("training.learning_rate=.inf", "learning_rate is inf; it must be a finite number"),
        ("objectives.weights.matching=.nan", "matching is nan; it must be a finite number"),
    ],
)
def test_a_bad_value_is_one_sentence_with_file_key_and_value(pretrain, override, says):
    with pytest.raises(UserError, match=says) as caught:
        load_config(pretrain, [override])
    assert str(caught.value).startswith(f"{pretrain}: ") and "\n" not in str(caught.value)


def test_all_shares_zero_are_refused(pretrain):
    zero = [f"objectives.shares.{name}=0" for name in ("masked_lm", "seq2seq_lm", "masked_object", "matching")]
    assert load_config(pretrain, zero[:3]).objectives.shares.matching == 0.25
    with pytest.raises(UserError, match="all shares are 0"):
        load_config(pretrain, zero)


def test_a_misspelt_required_key_is_reported_as_misspelt_and_an_absent_one_as_missing(tmp_path):
    with pytest.raises(UserError, match=r"unknown key 'training\.stepz'; did you mean 'training\.steps'\?"):
        load_config(write(tmp_path / "run.yaml", {**PRETRAIN, "training": {"stepz": 10}}))
    with pytest.raises(UserError, match=r"unknown key 'region'; did you mean 'regions'\?"):
        content = {key: value for key, value in PRETRAIN.items() if key != "regions"}
        load_config(write(tmp_path / "run.yaml", {**content, "region": "r"}))
    with pytest.raises(UserError, match="'questions' is missing"):  # `captions` is of another task, not a misspelling
        load_config(write(tmp_path / "run.yaml", {**PRETRAIN, "task": "vqa"}))


def test_annotation_files_and_splits_may_be_one_or_several(pretrain):
    assert load_config(pretrain).captions == [Path("c.json")]
    several = load_config(pretrain, ["captions=[a.json,b.tsv]", "split=[train,restval]"])
    assert several.captions == [Path("a.json"), Path("b.tsv")] and several.split == ["train", "restval"]
    assert load_config(pretrain, ["split=val"]).split == ["val"]
    with pytest.raises(UserError, match="captions is"):
        load_config(pretrain, ["captions=[]"])
    with pytest.raises(UserError, match=r"a\.json is named twice"):
        load_config(pretrain, ["captions=[a.json,b.json,a.json]"])


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["answers=1"], "answers is 1: keep at least 2"),
        (["answers=true"], "answers is true: give a number"),
        (["answers=[yes,no]"], "give a number of answers or a JSON file"),
        (["questions=[a.json,b.json]"], "annotations names 1 files and questions 2"),
        (["missing=drop"], "missing is 'drop'; it must be 'error' or 'skip'"),
    ],
)
def test_bad_answers_and_annotations_are_one_sentence(tmp_path, overrides, says):
    content = {**{k: v for k, v in PRETRAIN.items() if k != "captions"}, "task": "vqa", "questions": "q.json"}
    path = write(tmp_path / "vqa.yaml", {**content, "annotations": "a.json"})
    assert load_config(path, ["answers=list.json"]).answers == Path("list.json")
    assert load_config(path, ["answers=7"]).answers == 7
    with pytest.raises(UserError, match=says):
        load_config(path, overrides)


def test_all_missing_keys_are_named_at_once_with_a_remedy_of_that_command(tmp_path):
    with pytest.raises(
        UserError, match=r"'training\.steps' is missing; give it in the file or as training\.steps=VALUE"
    ):
        load_config(write(tmp_path / "run.yaml", {**PRETRAIN, "training": {}}))
    with pytest.raises(UserError) as caught:
        load_config(write(tmp_path / "run.yaml", "seed: 1"))
    keys = ("output", "regions", "training.steps", "captions")
    assert all(f"{key!r}" in str(caught.value) and f"{key}=VALUE" in str(caught.value) for key in keys)
    with pytest.raises(UserError, match=r"'scenes\.train', .*'inputs', .*are missing; give them in the file$"):
        load_demo_config(write(tmp_path / "demo.yaml", "seed: 1"))  # `demo` takes no overrides
    with pytest.raises(UserError, match="include works in files only"):
        load_config(write(tmp_path / "run.yaml", PRETRAIN), ["include=[other.yaml]"])


AS_WRITTEN = [
    "2026-11-28",
    "2026-99-99",
    "1:30",
    "1_000",
    "yes",
    "on",
    "a#1",
    "a%b",
    "C:\\runs",
    "=",
    "0b11",
    "x~",
    "1.2.3",
]
CHANGED = [
    ("runs/a #1", "'#1' begins a comment; put it in quotes"),
    ("0123", "may be an octal number; put it in quotes"),
    ("0o17", "may be an octal number; put it in quotes"),
    ("!x y", "'!' begins a tag; put it in quotes"),
    ("!!timestamp 2026-99-99", "'!' begins a tag"),
    ("!!int many", "'!' begins a tag"),
    ("&a b", "nothing refers to '&a'; put it in quotes"),
    ("*a", "undefined alias 'a'.; put it in quotes"),
    ("@x", "put it in quotes"),
    ("9" * 5000, "has 5,000 digits; put it in quotes"),
    ("[" * 5000, "sections or lists are nested more than 20 deep"),
    ("{steps: 1, steps: 2}", "'steps' appears twice"),
    ("a\n  b", "'a b' covers several lines; put it in quotes"),
    ("{[a]: b}", "a key is a list or a section"),
]


@pytest.mark.parametrize("text", AS_WRITTEN)
def test_text_that_yaml_1_1_takes_otherwise_stays_as_written(tmp_path, pretrain, text):
    assert load_config(pretrain, [f"output={text}", f"split=[{text}]"]).output == Path(text)
    config = load_config(write(tmp_path / "other.yaml", yaml.safe_dump(PRETRAIN) + f"split: [{text}]\ncache: {text}"))
    assert config.split == [text] and config.cache == Path(text)


@pytest.mark.parametrize(("text", "says"), CHANGED, ids=[text[:12] for text, _ in CHANGED])
def test_what_yaml_would_drop_or_change_is_refused_in_files_and_overrides(tmp_path, pretrain, text, says):
    for path, overrides in (
        (pretrain, [f"output={text}"]),
        (write(tmp_path / "other.yaml", yaml.safe_dump(PRETRAIN) + f"cache: {text}"), []),
    ):
        with pytest.raises(UserError, match=says) as caught:
            load_config(path, overrides)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("text", ["", "#1", "a # note", "a: b", "- a", "---"])
def test_an_override_without_a_value_or_with_more_than_one_is_refused(pretrain, text):
    with pytest.raises(UserError, match=r"override 'output=.*(it has no value|put it in quotes)"):
        load_config(pretrain, [f"output={text}"])
    assert load_config(pretrain, [f"output={json.dumps(text or 'a')}"]).output == Path(text or "a"), "the remedy works"


def test_a_comment_in_a_file_is_no_mistake(tmp_path):
    commented = "#!shebang\n#steps\n" + yaml.safe_dump(PRETRAIN) + "seed: 3 # not 4\ncache: a#b ## why"
    config = load_config(write(tmp_path / "run.yaml", commented))
    assert (config.seed, config.cache) == (3, Path("a#b"))


def test_references_work_within_bounds(tmp_path):
    shared = "model: &one {layers: 3, width: 24, heads: 2}\n"
    with pytest.raises(UserError, match="nothing refers to '&one'"):
        load_config(write(tmp_path / "run.yaml", yaml.safe_dump(PRETRAIN) + shared))
    used = "first: &a {x: 1, y: 2}\nsecond: {y: 3, <<: *a}\nthird: {<<: [*a, {y: 5, z: 4}], x: 0}\n"
    assert read_yaml(write(tmp_path / "used.yaml", used)) == {
        "first": {"x": 1, "y": 2},
        "second": {"x": 1, "y": 3},
        "third": {"x": 0, "y": 2, "z": 4},
    }


NINE = ", ".join(["*aJ"] * 9)
BOMBS = {
    "aliases": ["a0: &a0 [x]", *[f"aI: &aI [{NINE}]"] * 8, "z: *aJ"],
    "merges": ["a0: &a0 {x: 1}", *["aI: &aI {<<: [" + NINE + "]}"] * 8, "z: *aJ"],
    "itself": ["a: &a [*a]"],
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_few_bytes_that_expand_to_gigabytes_are_refused(tmp_path, name):
    lines = [line.replace("I", str(place)).replace("J", str(place - 1)) for place, line in enumerate(BOMBS[name])]
    with pytest.raises(UserError, match=r"more than 20,000 values|nested more than 20 deep"):
        read_yaml(write(tmp_path / "bomb.yaml", "\n".join(lines)))


def test_the_number_of_files_and_their_size_are_bounded(tmp_path):
    for number in range(1100):
        write(tmp_path / f"{number}.yaml", f"include: [{number + 1}.yaml]\n")
    twice = tmp_path / "twice"
    twice.mkdir()
    for number in range(20):
        write(twice / f"{number}.yaml", f"include: [{number + 1}.yaml, {number + 1}.yaml]\n")
    write(twice / "20.yaml", "seed: 1")
    for path in (tmp_path / "0.yaml", twice / "0.yaml"):
        with pytest.raises(UserError, match=r"is included after 32 other files; include fewer"):
            read_yaml(path)
    with pytest.raises(UserError, match="characters; give a configuration"):
        read_yaml(write(tmp_path / "large.yaml", "#" * 70_000))


def test_a_home_folder_is_replaced_in_paths_of_files_overrides_and_options_and_variables_are_refused(
    tmp_path, pretrain, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    values = {**PRETRAIN, "output": "~/runs", "captions": ["~/c.json", "d.json"]}
    config = load_config(write(tmp_path / "home.yaml", values), ["cache=~"])
    assert config.output == tmp_path / "runs" and config.captions == [tmp_path / "c.json", Path("d.json")]
    assert config.cache is None, "null, as YAML has it"
    assert VqaEvaluation(questions="~/q.json").questions == tmp_path / "q.json"
    for text in ("$HOME/runs", "${HOME}/runs", "a/$USER", '""', '"\\0"', '"a\\n"'):
        with pytest.raises(UserError, match=r"is not replaced here; write out|give a path, or \.|control character"):
            load_config(pretrain, [f"output={text}"])
    (tmp_path / "$odd").mkdir()
    assert load_config(pretrain, [f"output={tmp_path}/$odd"]).output.name == "$odd", "a folder of that name exists"


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.0e-4", "0.0001"])
def test_numbers_in_scientific_notation_are_numbers_in_files_and_overrides(tmp_path, pretrain, text):
    assert load_config(pretrain, [f"training.learning_rate={text}"]).training.learning_rate == 1e-4
    plain = yaml.safe_dump(PRETRAIN).replace("steps: 10", f"steps: 10\n  learning_rate: {text}")
    assert load_config(write(tmp_path / "other.yaml", plain)).training.learning_rate == 1e-4


def test_overrides_replace_values_of_the_file_in_order_and_keep_the_rest(tmp_path):
    path = write(tmp_path / "run.yaml", {**PRETRAIN, "model": {"layers": 3, "width": 24, "heads": 2}})
    config = load_config(path, ["model.width=32", "model.split=[]", "output=runs/b", "model.width=48"])
    assert (config.model.layers, config.model.width, config.model.heads) == (3, 48, 2)
    assert config.model.split == [] and config.output == Path("runs/b") and config.training.steps == 10


@pytest.mark.parametrize("override", ["training.steps", "=3", "steps: 3"])
def test_an_override_of_another_form_is_refused(pretrain, override):
    with pytest.raises(UserError, match=r"is not of the form section\.key=value"):
        load_config(pretrain, [override])


def test_an_unreadable_override_value_is_named(pretrain):
    with pytest.raises(UserError, match="put it in quotes"):
        load_config(pretrain, ["output=[a"])


def test_included_files_are_relative_to_the_file_whose_values_take_precedence(tmp_path):
    (tmp_path / "models").mkdir()
    write(tmp_path / "models" / "tiny.yaml", {"model": {"layers": 1, "width": 16, "heads": 2}})
    write(tmp_path / "base.yaml", {"include": ["models/tiny.yaml"], "seed": 5, "model": {"layers": 2}})
    path = write(tmp_path / "run.yaml", {**PRETRAIN, "include": ["base.yaml"], "model": {"heads": 4}})
    config = load_config(path)
    assert (config.model.layers, config.model.width, config.model.heads, config.seed) == (2, 16, 4, 5)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"include": "base.yaml"}, r"include is 'base\.yaml'; it must be a list"),
        ({"include": [3]}, "it must be a list of files"),
        ({"include": ["none.yaml"]}, r"none\.yaml does not exist"),
        ({"include": ["run.yaml"]}, r"run\.yaml includes itself"),
        ("", "must contain sections and keys"),
        ("- a", "must contain sections and keys, not one value or a list"),
        ("a: [", "line 1: not readable as YAML"),
        ("a: !!python/object/apply:os.getcwd []", "'!' begins a tag"),
        ("training: {steps: 1}\ntraining: {workers: 2}", "'training' appears twice; keep one of them"),
        ("training: {steps: 1, steps: 2}", "'steps' appears twice"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path, content, says):
    with pytest.raises(UserError, match=says) as caught:
        load_config(write(tmp_path / "run.yaml", content))
    assert "\n" not in str(caught.value)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(UserError, match=r"run\.yaml does not exist"):
        load_config(tmp_path / "run.yaml")
    with pytest.raises(UserError, match="is a folder; give a file"):
        load_config(tmp_path)


def test_a_mistake_inside_a_list_of_sections_is_named():
    class Inner(Section):
        steps: int = 1

    class Outer(Section):
        phases: list[Inner]

    with pytest.raises(UserError, match=r"unknown key 'phases\.1\.step'; did you mean 'phases\.1\.steps'"):
        validate(Outer, {"phases": [{}, {"step": 2}]}, "file")
    with pytest.raises(UserError, match=r"phases\.0\.steps is 'x'"):
        validate(Outer, {"phases": [{"steps": "x"}]}, "file")


def test_a_mistake_across_several_keys_names_the_file():
    path = CONFIGS / "coco-karpathy-scst.yaml"
    with pytest.raises(UserError) as caught:
        load_config(path, ["smoothing=0.1"])
    assert str(caught.value).startswith(f"{path}: self_critical has no target words")


def test_files_that_do_not_exist_are_named_unless_the_run_resumes(tmp_path, pretrain):
    config = load_config(pretrain, [f"output={tmp_path / 'run'}", "model.bert=none", "inputs.tokenizer=no.json"])
    with pytest.raises(UserError) as caught:
        config.check_inputs()
    for part in (
        "regions does not exist (regions)",
        "c.json",
        "none does not exist (model.bert)",
        "(inputs.tokenizer)",
    ):
        assert part in str(caught.value)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / RUN).touch()
    config.check_inputs()


def test_a_configuration_is_immutable(pretrain):
    config = load_config(pretrain)
    with pytest.raises(ValueError, match="frozen"):
        config.training.steps = 5


def test_a_configuration_survives_its_own_json(pretrain):
    config = load_config(pretrain, ["training.learning_rate=3e-5", "model.split=[qkv,ffn]"])
    assert PretrainConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_configuration_that_comes_with_dimvl_loads(path):
    kind = path.relative_to(CONFIGS).parts[0]
    if kind == "models":
        content = read_yaml(path)
        assert content.keys() == {"model"}, "a model section, to be included"
        assert isinstance(validate(ModelConfig, content["model"], str(path)), ModelConfig)
    elif path.stem == "statements":
        assert read_statements(path).score == "match"
    elif kind == "scenes":
        assert isinstance(load_demo_config(path), DemoConfig)
    elif path.parent == CONFIGS / "studies":
        grid = make_grid(read_keys(StudyConfig, path), path.parent)
        assert any(stage.steps for stage in grid.stages.values())
    elif path.parent == CONFIGS / "bootstrap":
        assert isinstance(read_keys(BootstrapConfig, path), BootstrapConfig)
    elif path.stem == "concepts":
        assert isinstance(read_keys(ConceptConfig, path), ConceptConfig)
    else:
        assert load_config(path).training.steps > 0
