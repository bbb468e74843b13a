"""The files that training writes at its start: sealed, checked when a run is opened or resumed, told in its records."""

import json
import shutil

import pytest
import torch

from dimvl.checkpoints import ADAPTER, SEALED, latest_checkpoint, origin_of
from dimvl.data.processor import Processor
from dimvl.errors import UserError
from dimvl.export import export
from dimvl.files import sha256
from dimvl.files.weights import save_weights
from dimvl.planning import Cluster, make_plan
from dimvl.trained_model import load_model
from dimvl.training.run import run_training
from tests.tiny_runs import make_config


def flip(path, place=None):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("name", [*(name for name in SEALED if name != ADAPTER), "checksums.json"])
def test_a_flipped_bit_in_a_file_of_a_run_is_an_error_when_it_is_opened_or_resumed(data, tmp_path, undisturbed, name):
    run = shutil.copytree(undisturbed, tmp_path / "run")
    before = (run / name).read_bytes()
    flip(run / name)
    with pytest.raises(UserError, match=rf"run/{name} is damaged.*; restore it from a copy of the folder"):
        load_model(run)
    config = make_config(data, run, training={"steps": 8})
    if name == "trained_on.npy":  # prepared again from the annotations
        run_training(config)
        assert (run / name).read_bytes() == before
        return
    with pytest.raises(UserError, match=rf"run/{name} is damaged.*; restore it from a copy of the folder"):
        run_training(config)


def test_a_run_without_checksums_opens_with_a_warning_and_gets_them_when_it_resumes(
    data, tmp_path, undisturbed, caplog
):
    run = shutil.copytree(undisturbed, tmp_path / "run")
    before = (run / "checksums.json").read_bytes()
    (run / "checksums.json").unlink()
    load_model(run)
    assert "run has no checksums.json, as before version 0.2: damage to its files cannot be noticed" in caplog.text
    run_training(make_config(data, run, training={"steps": 8}))
    assert (run / "checksums.json").read_bytes() == before


@pytest.mark.parametrize("place", [0.3, 0.5, 0.9])
def test_a_flipped_bit_in_the_state_of_a_checkpoint_is_an_error(tmp_path, undisturbed, place):
    run = shutil.copytree(undisturbed, tmp_path / "run")
    state = latest_checkpoint(run) / "state.json"
    flip(state, int(place * state.stat().st_size))
    with pytest.raises(UserError, match=r"state\.json .*; (remove this checkpoint|check that it is the right file)"):
        load_model(run)


def test_a_fresh_head_is_named_when_fine_tuning_starts_and_the_record_says_from_what(data, tmp_path, caplog):
    caplog.set_level("INFO", "dimvl")
    first = run_training(make_config(data, tmp_path / "first", training={"steps": 1}))
    assert "newly initialised" not in caplog.text
    second = run_training(make_config(data, tmp_path / "second", "vqa", initial=first, training={"steps": 1}))
    assert "newly initialised, since" in caplog.text and "has none of this kind: answer_head" in caplog.text
    start = origin_of(second).start
    assert (start.name, start.sha256) == ("first", sha256(latest_checkpoint(first) / "model.safetensors"))
    assert start.data == origin_of(first).data and not start.encoder
    card = (export(second, tmp_path / "out", "none") / "README.md").read_text()
    assert f"- started from: the model `first`, SHA-256 `{start.sha256}`\n  - captions: `c.json`, SHA-256" in card
    assert "\n  - started from: random weights\n" in card
    assert origin_of(tmp_path / "out") == origin_of(second)


def write_bert(folder, vocabulary, width=16, inner=32, positions=64):
    """Write a BERT of one layer as transformers does."""
    sizes = {"vocab_size": vocabulary, "hidden_size": width, "intermediate_size": inner}
    sizes |= {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": positions}
    config = {"model_type": "bert", "hidden_act": "gelu", "layer_norm_eps": 1e-12, **sizes}
    (folder / "config.json").write_text(json.dumps(config))
    layer, attention = "encoder.layer.0", "encoder.layer.0.attention"
    shapes = {f"{attention}.self.{name}": (width, width) for name in ("query", "key", "value")}
    shapes |= {f"{attention}.output.dense": (width, width), f"{layer}.intermediate.dense": (inner, width)}
    shapes |= {f"{layer}.output.dense": (width, inner)}
    weights = {f"{name}.weight": torch.ones(shape) for name, shape in shapes.items()}
    weights |= {f"{name}.bias": torch.zeros(shape[0]) for name, shape in shapes.items()}
    for norm in ("embeddings", f"{attention}.output", f"{layer}.output"):
        weights |= {f"{norm}.LayerNorm.{part}": torch.ones(width) for part in ("weight", "bias")}
    for name, rows in (("word", vocabulary), ("position", positions), ("token_type", 2)):
        weights[f"embeddings.{name}_embeddings.weight"] = torch.ones(rows, width)
    save_weights(folder / "model.safetensors", weights)
    return config


def test_a_run_that_starts_from_bert_names_the_encoder_by_its_hash_in_record_and_card(data, tmp_path):
    tokenizer = Processor.load(run_training(make_config(data, tmp_path / "plain", training={"steps": 1}))).tokenizer
    encoder = tmp_path / "encoder"
    tokenizer.save(encoder)
    config = write_bert(encoder, len(tokenizer))
    model = {"bert": encoder, "layers": 1, "width": 16, "heads": 2, "inner_width": 32}
    run = run_training(make_config(data, tmp_path / "run", model=model, training={"steps": 1}))
    found = sha256(encoder / "model.safetensors")
    card = (export(run, tmp_path / "out", "none") / "README.md").read_text()
    assert f"- started from: the encoder `encoder`, SHA-256 `{found}`\n" in card
    for change in ({"hidden_size": 24_000}, {"num_hidden_layers": 9}, {"vocab_size": 10**6}):
        (encoder / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(UserError, match=r"config\.json.*; copy both from the same checkpoint"):
            run_training(make_config(data, tmp_path / "other", model=model))


def test_a_model_section_of_other_sizes_than_its_bert_is_refused_in_training_and_in_plans(data, tmp_path):
    tokenizer = Processor.load(run_training(make_config(data, tmp_path / "plain", training={"steps": 1}))).tokenizer
    encoder = tmp_path / "encoder"
    tokenizer.save(encoder)
    write_bert(encoder, len(tokenizer))
    for change, says in (
        (
            {"width": 24, "inner_width": 48},
            r"model.width is 24 but .*encoder \(model.bert\) has 16; set "
            "model.width=16 model.inner_width=32",
        ),
        ({"layers": 2}, r"model.layers is 2 but .* has 1; set model.layers=1"),
        ({"activation": "relu"}, r"model.activation is relu but .* has gelu; set model.activation=gelu"),
    ):
        model = {"bert": encoder, "layers": 1, "width": 16, "heads": 2, "inner_width": 32, **change}
        config = make_config(data, tmp_path / "other", model=model)
        for act in (run_training, lambda config: make_plan(config, Cluster(gpus=1))):
            with pytest.raises(UserError, match=says):
                act(config)
