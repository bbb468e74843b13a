"""Adapters through whole runs: trained over a frozen base, saved alone, put onto the base again, merged."""

import json
import shutil
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

from dimvl.adapters.adding import add_adapter
from dimvl.adapters.folder import name_of_base, read_adapter
from dimvl.checkpoints import ADAPTER, WEIGHTS, latest_checkpoint, read_log
from dimvl.config import AdapterConfig
from dimvl.errors import UserError
from dimvl.export import export
from dimvl.files import read_json, write_sealed
from dimvl.files.weights import load_weights
from dimvl.model.convert import saved_tensors
from dimvl.model.model import DimvlModel, read_arguments
from dimvl.predictor import Predictor
from dimvl.push import files_to_push
from dimvl.search.format import model_fingerprint
from dimvl.tasks import load_config
from dimvl.trained_model import load_model
from dimvl.training import run as training_run
from dimvl.training.run import run_training
from tests.factories import make_batch, make_layout, make_model
from tests.tiny_runs import make_config, make_data
from tests.training.runs import ROOT, Killed, at_step, bytes_of, kill, weights_of

MODEL = {"layers": 2, "dropout": 0.1, "split": ["qkv"]}
needs_peft = pytest.mark.skipif(find_spec("peft") is None, reason="peft is not installed (extra adapters)")
LORA = pytest.param({"lora": {"rank": 2, "sublayers": ["qkv", "out", "ffn"]}}, marks=needs_peft, id="lora")
KINDS = [
    LORA,
    pytest.param({"prefix": {"length": 3}}, id="prefix"),
    pytest.param({"prefix": {"length": 3, "hidden": 5}}, id="perceptron"),
    pytest.param({"prompt": 3}, id="prompt"),
    pytest.param({"layers": 1}, id="layers"),
    pytest.param({"head": True}, id="head"),
]
SOME = [KINDS[0], KINDS[2], KINDS[4]]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"), 6, empty=3)


@pytest.fixture(scope="module")
def base(data, tmp_path_factory):
    """A pretraining run to start from."""
    return run_training(make_config(data, tmp_path_factory.mktemp("runs") / "base", model=MODEL, training={"steps": 1}))


def configured(data, base, output, adapter, task="vqa", **training):
    return make_config(
        data, output, task, model=MODEL, initial=base, adapter=adapter, training={"steps": 4, **training}
    )


@pytest.fixture(scope="module")
def trained(data, base, tmp_path_factory):
    """The run of an adapter, which is trained once."""
    runs, folder = {}, tmp_path_factory.mktemp("adapters")

    def run(adapter, task="vqa"):
        key = json.dumps([adapter, task])
        if key not in runs:
            runs[key] = run_training(configured(data, base, folder / str(len(runs)), adapter, task))
        return runs[key]

    return run


def small_batch(seed=0):
    """Rows that the models of these tests take, of which each has 24 positions."""
    batch = make_batch(make_layout(seed), seed, vocabulary=30)
    return replace(batch, positions=batch.positions % 20)


def outputs(trained, seed=0):
    """What a model computes for some batch: all rows, and what its heads make of them."""
    model = trained.model
    batch = small_batch(seed)
    if model.tokens.prompt is not None:
        batch.token_ids[:3] = torch.tensor([-1, -2, -3])  # soft rows
    with torch.inference_mode():
        rows = model(batch)
        heads = [head(rows) for head in (model.answer_head, model.word_head) if head is not None]
    return [rows, *heads]


def same(ones, others):
    return len(ones) == len(others) and all(torch.equal(*pair) for pair in zip(ones, others, strict=True))


@pytest.mark.parametrize("adapter", KINDS)
def test_an_adapter_alone_is_saved_and_on_its_base_it_computes_what_its_run_does(base, trained, tmp_path, adapter):
    run, whole = trained(adapter), weights_of(base)
    saved, described = weights_of(run), read_adapter(run)
    assert not saved.keys() & {*whole} or "layers" in adapter
    assert sum(weight.numel() for weight in saved.values()) == described.trained < 0.5 * described.parameters
    out = export(run, tmp_path / "out")
    assert not (out / WEIGHTS).exists() and not (out / "detector").exists()
    loaded, alone = load_model(run), load_model(base)
    before = outputs(alone)
    exported = alone.with_adapter(out)
    assert same(outputs(exported), outputs(loaded))
    assert read_adapter(out).parameters == exported.num_parameters, "of a perceptron, only what it computes"
    assert same(outputs(exported)[:1], before[:1]) == ("head" in adapter), "it changes rows, or heads alone"
    assert same(outputs(alone), before), "the base stays as it is"
    own = {name: weight.data_ptr() for name, weight in exported.model.named_parameters() if name not in saved}
    shared = {weight.data_ptr() for weight in alone.model.parameters()}
    assert own and {*own.values()} <= shared


@pytest.mark.parametrize("adapter", SOME)
def test_training_moves_the_adapter_alone_and_keeps_optimiser_state_for_nothing_else(
    data, base, tmp_path, monkeypatch, adapter
):
    engines, real = [], training_run._engine
    monkeypatch.setattr(training_run, "_engine", lambda *given: engines.append(real(*given)) or engines[-1])
    run = run_training(configured(data, base, tmp_path, adapter, steps=2))
    live, saved, whole = dict(engines[0].task.model.named_parameters()), weights_of(run), weights_of(base)
    frozen = {name.replace(".base_layer", ""): weight for name, weight in live.items() if name not in saved}
    assert frozen and all(torch.equal(weight, whole[name]) for name, weight in frozen.items())
    assert all(torch.equal(weight, live[name]) for name, weight in saved.items())
    state = load_weights(latest_checkpoint(run) / "optimiser.safetensors", "")
    moments = {name.removesuffix(".exp_avg") for name in state if name.endswith(".exp_avg")}
    assert moments == saved.keys()


@pytest.mark.parametrize("adapter", SOME)
def test_a_killed_run_of_an_adapter_resumes_bit_for_bit(data, base, trained, tmp_path, adapter):
    config = configured(data, base, tmp_path / "killed", adapter, save_every=2)
    with pytest.raises(Killed):
        run_training(config, at_step(3, kill))
    assert bytes_of(run_training(config)) == bytes_of(trained(adapter))


@pytest.mark.parametrize("adapter", SOME)
def test_merged_into_its_base_it_is_a_whole_export_that_computes_the_same(trained, tmp_path, adapter):
    run = trained(adapter)
    if adapter.keys() & {"prefix", "prompt"}:
        with pytest.raises(
            UserError, match="whose rows the matrices of its base cannot replace; export it without --merge"
        ):
            export(run, tmp_path / "out", "none", merge=True)
        return
    merged = load_model(export(run, tmp_path / "out", "none", merge=True))
    assert not (tmp_path / "out" / ADAPTER).exists() and not any("lora" in name for name in saved_tensors(merged.model))
    for one, other in zip(outputs(merged), outputs(load_model(run)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)  # one sum in another order


@pytest.mark.parametrize("first", [LORA, {"prefix": {"length": 3}}])
def test_several_adapters_of_one_packed_base_answer_and_caption_in_any_order(
    base, trained, tmp_path, monkeypatch, first
):
    monkeypatch.setattr("dimvl.cpu.packed.MINIMUM_SIZE", 1)
    exported = export(base, tmp_path / "base", "none")
    runs = [trained(first, "vqa"), trained({"head": True}, "caption")]
    folders = [export(run, tmp_path / run.name) for run in runs]
    predictor = Predictor.from_pretrained(exported)
    one, other = (predictor.with_adapter(folder) for folder in folders)
    models = [each.trained for each in (predictor, one, other)]
    found = [outputs(model) for model in models]
    assert all(same(outputs(model), before) for model, before in zip(models[::-1], found[::-1], strict=True))
    for run, [rows, scores] in zip(runs, found[1:], strict=True):
        for packed, plain in zip((rows, scores), outputs(load_model(run)), strict=True):
            torch.testing.assert_close(packed, plain, rtol=0, atol=0.02)  # the base's weights are rounded to float16
    assert not same(found[0][:1], found[1][:1]) and same(found[0][:1], found[2][:1])
    assert len({model_fingerprint(model) for model in models}) == 3, "an index of one is none of another"
    decoders = [model.model.word_head.decoder for model in (models[0], models[2])]
    assert len({id(getattr(decoder, "packed", decoder.weight)) for decoder in decoders}) == 1, "one, packed once"
    assert not same([decoders[0].bias], [decoders[1].bias])
    assert one._finder is predictor._finder and one.trained.processor.answers and other.trained.processor.captions


def test_a_captioning_adapter_trains_its_head_but_not_the_word_embedding_that_the_head_shares(base, trained):
    run = trained({"head": True}, "caption")
    model = load_model(run).model
    assert "tokens.word.weight" not in weights_of(run) and "word_head.decoder.bias" in weights_of(run)
    assert model.word_head.decoder.weight is model.tokens.word.weight
    assert "word_head.decoder.weight" not in model.trained


@pytest.mark.parametrize("adapter", [LORA, {"prefix": {"length": 3}}, {"prompt": 3}])
def test_in_bf16_an_adapter_follows_the_curve_and_is_saved_in_fp32(data, base, trained, tmp_path, adapter):
    run = run_training(configured(data, base, tmp_path, adapter, precision="bf16"))
    losses = [[line["loss"] for line in read_log(each / "log.jsonl")] for each in (run, trained(adapter))]
    assert losses[0] == pytest.approx(losses[1], rel=0.02) and losses[0] != losses[1]  # a bf16 number has 8 bits
    assert all(weight.dtype == torch.float32 for weight in weights_of(run).values())


def test_with_head_false_the_heads_of_the_base_are_kept(data, base, tmp_path):
    run = run_training(configured(data, base, tmp_path, {"prefix": {"length": 2}, "head": False}, "caption"))
    assert weights_of(run).keys() == {"encoder.prefix.table.weight"}
    assert load_model(run).model.word_head is not None


# --- LoRA


@needs_peft
def test_new_lora_equals_the_base_and_keeps_class_and_names():
    model, other, batch = make_model(word_head=True), make_model(word_head=True), make_batch(make_layout(1))
    names = saved_tensors(model).keys()
    add_adapter(model, AdapterConfig(lora={"sublayers": ["qkv", "out", "ffn"]}, head=False))
    assert torch.equal(model(batch), other(batch)) and type(model) is type(other)
    assert {name.replace(".base_layer", "") for name, _ in model.named_parameters() if "lora" not in name} <= names
    assert model.trained and all("lora_" in name for name in model.trained)
    assert type(model.word_head.decoder) is type(other.word_head.decoder), "the tied decoder is never changed"


@needs_peft
@pytest.mark.parametrize("modality", ["both", "vision", "language"])
def test_lora_adds_a_scaled_product_to_the_matrices_of_its_modality_with_its_gradients(modality):
    model, plain, batch = make_model(), make_model(), make_batch(make_layout(1))
    torch.manual_seed(0)  # for the factors, whatever ran before
    add_adapter(model, AdapterConfig(lora={"rank": 2, "alpha": 6, "modality": modality}))
    own = [weight for _, weight in model.named_parameters() if weight.requires_grad]
    factors = [weight.detach().clone().normal_().requires_grad_() for weight in own]
    with torch.no_grad():
        for weight, factor in zip(own, factors, strict=True):
            weight.copy_(factor)
    kinds = ("language", "vision") if modality == "both" else (modality,)
    changed = [f"encoder.layers.{layer}.qkv.{kind}.weight" for layer in range(2) for kind in kinds]
    products = (3 * b @ a for a, b in zip(factors[::2], factors[1::2], strict=True))
    weights = dict(plain.named_parameters())
    weights |= {name: weights[name].detach() + product for name, product in zip(changed, products, strict=True)}
    rows = torch.func.functional_call(plain, weights, (batch,))
    found = model(batch)
    torch.testing.assert_close(found, rows, rtol=1e-4, atol=1e-4)  # sums of products of up to some hundreds
    wanted = torch.autograd.grad((rows**2).sum(), factors)
    torch.testing.assert_close(torch.autograd.grad((found**2).sum(), own), wanted, rtol=1e-4, atol=1e-4)


@needs_peft
def test_peft_itself_reads_an_exported_lora(base, trained, tmp_path):
    from peft import PeftModel

    run = trained({"lora": {"rank": 2, "sublayers": ["qkv", "out", "ffn"]}})
    out = export(run, tmp_path / "out", base="someone/base")
    assert read_json(out / "adapter_config.json")["base_model_name_or_path"] == "someone/base"
    assert "base_model: someone/base" in (out / "README.md").read_text()
    ours, network = outputs(load_model(run)), DimvlModel(**read_arguments(run / "config.json", ""))
    network.load_state_dict(weights_of(base), strict=False)
    wrapped = PeftModel.from_pretrained(network, str(out)).eval()
    with torch.inference_mode():
        rows = wrapped(small_batch())
        assert torch.equal(rows, ours[0])
        assert torch.equal(wrapped.base_model.model.answer_head(rows), ours[1])


def test_without_peft_lora_names_the_package_to_install(data, base, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(UserError, match=r"adapter.lora needs the package peft; install it with pip install 'dimvl\["):
        run_training(configured(data, base, tmp_path, {"lora": {}}))


# --- mistakes


def test_soft_rows_above_the_row_budget_are_named(data, base, tmp_path):
    with pytest.raises(UserError, match=r"above training\.rows_per_step 200; raise it, or lower adapter\.prompt"):
        run_training(configured(data, base, tmp_path, {"prompt": 300}, rows_per_step=200))


def test_a_base_that_changed_under_an_adapter_is_refused(data, base, trained, tmp_path):
    run = trained({"head": True})
    other = run_training(make_config(data, tmp_path / "other", model=MODEL, seed=9, training={"steps": 1}))
    with pytest.raises(UserError, match=r"was trained on base with weights of SHA-256 .*; give the base as it was"):
        load_model(other).with_adapter(run)
    described = read_adapter(run).model_dump(mode="json", exclude_none=True)
    moved = shutil.copytree(run, tmp_path / "moved")
    write_sealed(moved / ADAPTER, described | {"base_folder": str(tmp_path / "gone")})
    (moved / "checksums.json").unlink()
    with pytest.raises(UserError, match=r"the base of .*moved, .*gone, does not exist; move the base back there"):
        load_model(moved)


def test_a_run_whose_base_changed_does_not_resume(data, base, tmp_path):
    changing = shutil.copytree(base, tmp_path / "base")
    config = configured(data, changing, tmp_path / "run", {"head": True}, save_every=2)
    with pytest.raises(Killed):
        run_training(config, at_step(3, kill))
    shutil.rmtree(changing)
    run_training(make_config(data, changing, model=MODEL, seed=9, training={"steps": 1}))
    with pytest.raises(UserError, match=r"another initial model \(its weights differ\)"):
        run_training(config)


def test_an_adapter_of_another_width_is_refused(data, trained, tmp_path):
    wide = make_config(data, tmp_path / "wide", model={**MODEL, "width": 32}, training={"steps": 1})
    with pytest.raises(
        UserError, match=r"is for a model of 2 layers, 16 wide, and .* has 2, 32 wide; give its base base"
    ):
        load_model(run_training(wide)).with_adapter(trained({"head": True}))


def test_a_flipped_bit_in_the_description_of_an_adapter_is_an_error_in_run_and_export(trained, tmp_path):
    run = shutil.copytree(trained({"head": True}), tmp_path / "run")
    out = export(run, tmp_path / "out")
    for folder in (run, out):
        content = bytearray((folder / ADAPTER).read_bytes())
        content[len(content) // 2] ^= 4
        (folder / ADAPTER).write_bytes(content)
        with pytest.raises(UserError, match=rf"{folder.name}/{ADAPTER} .*; restore it from a copy"):
            read_adapter(folder)


def test_weights_of_another_size_than_described_are_refused(base, trained, tmp_path):
    out = export(trained({"prefix": {"length": 3}}), tmp_path / "out")
    described = read_json(out / ADAPTER)
    described["adapter"]["prefix"]["length"] = 4
    described.pop("checksum")
    write_sealed(out / ADAPTER, described)
    (out / "checksums.json").unlink()
    with pytest.raises(UserError, match=r"table.weight is \(3, 64\) in the file and \(4, 64\) in the model"):
        load_model(base).with_adapter(out)


def test_an_adapter_takes_no_adapter_and_is_no_model_to_start_from(data, base, trained, tmp_path):
    run = trained({"head": True})
    with pytest.raises(UserError, match="has an adapter already"):
        load_model(run).with_adapter(run)
    with pytest.raises(UserError, match=r"is an adapter, not a whole model; give what `dimvl export RUN OUT --merge`"):
        run_training(make_config(data, tmp_path / "next", "vqa", model=MODEL, initial=run))
    out = export(run, tmp_path / "out")
    with pytest.raises(UserError, match="is an adapter of base; open its base, and give this folder as --adapter"):
        Predictor.from_pretrained(out)
    with pytest.raises(UserError, match="is an adapter of base; give its base as the model"):
        load_model(out)
    with pytest.raises(UserError, match=r"has no adapter.json; give the run or the export of an adapter"):
        load_model(base).with_adapter(base)
    with pytest.raises(UserError, match="is not the run of an adapter; omit --merge"):
        export(base, tmp_path / "no", merge=True)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"inputs": {"max_images": 6}}, r"inputs.max_images makes max_images 6 but the base .* has 4"),
        ({"model": {**MODEL, "split": ["qkv", "ffn"]}}, r"model.split makes split \['qkv', 'ffn'\] but the base"),
        ({"adapter": {"layers": 3}}, r"adapter.layers is 3 but the model has 2; lower it"),
        ({"adapter": {"layers": 1, "head": False}}, r"adapter.head is false but .* has no answer_head of this size"),
    ],
)
def test_what_a_frozen_base_cannot_have_is_refused(data, base, tmp_path, changes, says):
    settings = {"adapter": {"head": True}, "initial": base, "model": MODEL, **changes}
    with pytest.raises(UserError, match=says):
        run_training(make_config(data, tmp_path, "vqa", **settings))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"initial": None}, "adapter needs a base; set initial to a run or an export"),
        ({"new_extractor": True}, "adapter keeps it from learning; remove one of them"),
        ({"training": {"freeze": {"layers": 1}}}, "adapter says what is trained"),
        ({"training": {"muon_rate": 1e-3}}, "of which adapter.head trains none; remove muon_rate"),
        ({"training": {"layer_decay": 0.5}}, "layer_decay is for blocks, of which adapter.head trains none; remove it"),
        (
            {"adapter": {"prompt": 2, "head": False}, "training": {"head_multiplier": 0.5}},
            "head_multiplier is for heads, which adapter.head=false keeps",
        ),
        ({"adapter": {"lora": {}, "layers": 1}}, "lora and layers are both set; keep one of them"),
        ({"adapter": {"head": False}}, "nothing is trained; set lora, prefix, prompt or layers"),
        (
            {"adapter": {"lora": {"modality": "vision"}}, "model": {"split": []}},
            r"needs separate weights, and model.split \[\] shares those of 'qkv'; set modality to 'both' .type",
        ),
        (
            {"adapter": {"lora": {"modality": "vision", "sublayers": ["ffn", "qkv"]}}, "model": MODEL},
            r"shares those of 'ffn'; set modality to 'both', or sublayers to \['qkv'\]",
        ),
    ],
)
def test_options_that_an_adapter_would_ignore_are_refused(data, tmp_path, changes, says):
    with pytest.raises(ValueError, match=says):
        make_config(data, tmp_path, "vqa", **{"adapter": {"head": True}, "initial": tmp_path, **changes})


def test_an_adapter_goes_to_the_hub_only_with_the_name_of_its_base_there(trained, tmp_path):
    run = trained({"head": True})
    with pytest.raises(UserError, match="names no base_model on the hub; push the base, and export with --base owner"):
        files_to_push(export(run, tmp_path / "out"), "someone/adapter", "mit")
    files = files_to_push(export(run, tmp_path / "named", base="someone/base"), "someone/adapter", "mit")
    assert {ADAPTER, "adapter_model.safetensors"} <= files.keys() and "model.safetensors" not in files
    assert b'from_pretrained("someone/base").with_adapter("someone/adapter")' in files["README.md"]


def test_a_base_from_the_hub_is_known_by_its_name_there(tmp_path):
    snapshot = tmp_path / "models--some-one--dimvl-base" / "snapshots" / "0123"
    assert name_of_base(snapshot) == "some-one/dimvl-base" and name_of_base(tmp_path / "base") == "base"


@pytest.mark.parametrize("name", ["class-prompt", "lora", "prefix"])
def test_each_configuration_loads_and_starts_with_its_command(name):
    file = ROOT / "configs" / "adapters" / f"{name}.yaml"
    config = load_config(file)
    assert config.adapter is not None and config.initial is not None
    assert f"#   dimvl finetune configs/adapters/{name}.yaml initial=" in file.read_text()
