import itertools
import json
import sys
import time
import types
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import decode, end_to_end, harness, inference, pixels, train
from benchmarks.data import run_config, write_photographs, write_run_data
from benchmarks.peers import CORES, PaddedStream, Uniter
from benchmarks.samples import draw_lengths, make_batch, pad, token_buckets
from dimvl.tasks.captioning.config import CaptionConfig

TINY = train.Size(layers=1, width=32, heads=2, budget=240, batches=2)
SAMPLES = np.array([3, 5, 8])
LENGTHS = draw_lengths("mixed", 10)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # warnings of other libraries, which a benchmark shows
@pytest.mark.parametrize("name", command.SUITES)
def test_every_suite_works_at_its_small_size_and_returns_what_json_can_hold(name, tmp_path):
    facts = __import__(f"benchmarks.{name}", fromlist=["run"]).run("cpu", 2, True, tmp_path)
    assert facts and json.loads(json.dumps(facts))


def test_a_result_is_written_with_the_command_and_hardware_that_made_it(tmp_path, monkeypatch):
    suite = types.SimpleNamespace(run=lambda device, rounds, small, folder: {"found": [device, rounds, small]})
    monkeypatch.setitem(sys.modules, "benchmarks.store", suite)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "store", "--rounds", "7", "--out", str(tmp_path / "a" / "b.json")])
    command.main()
    result = json.loads((tmp_path / "a" / "b.json").read_text())
    assert result["found"] == ["cpu", 7, False]
    assert result["command"] == "python -m benchmarks store --rounds 7", "without the file it was written to"
    assert {"hardware", "date", "versions", "threads", "device", "rounds"} <= result.keys()


def test_a_result_names_the_folder_of_data_without_its_place(tmp_path, monkeypatch):
    monkeypatch.setitem(
        sys.modules, "benchmarks.looks", types.SimpleNamespace(run=lambda *given, data: {"of": str(data)})
    )
    folder, out = tmp_path / "photos", tmp_path / "x.json"
    monkeypatch.setattr(sys, "argv", ["benchmarks", "looks", "--data", str(folder), "--out", str(out)])
    command.main()
    result = json.loads(out.read_text())
    assert (result["command"], result["of"]) == ("python -m benchmarks looks --data photos", str(folder))


@pytest.mark.parametrize(("arguments", "written"), [([], ["store.json"]), (["--small"], [])])
def test_a_small_result_never_replaces_a_measured_one(tmp_path, monkeypatch, arguments, written):
    monkeypatch.setitem(sys.modules, "benchmarks.store", types.SimpleNamespace(run=lambda *given: {}))
    monkeypatch.setattr(sys, "argv", ["benchmarks", "store", *arguments])
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    command.main()
    assert [path.name for path in tmp_path.iterdir()] == written


@pytest.mark.parametrize("path", sorted(harness.RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_every_committed_result_names_the_command_that_made_it(path):
    result = json.loads(path.read_text(encoding="utf-8"))
    name = path.stem.removesuffix("-cuda")
    device = " --device cuda" if path.stem.endswith("-cuda") else ""
    data = f" --data {result['data']}" if name in command.WITH_DATA else ""
    assert name in command.SUITES and result["command"] == f"python -m benchmarks {name}{device}{data}"
    assert result["hardware"] and result["date"] and not result["small"]


@pytest.mark.parametrize(
    "arguments", [["store", "--rounds", "0"], ["all", "--out", "x"], ["nothing"], ["store", "--device", "cuda"]]
)
def test_options_that_cannot_be_measured_are_refused(monkeypatch, capsys, arguments):
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stop:
        command.main()
    assert stop.value.code == 2 and arguments[-1] in capsys.readouterr().err


@pytest.mark.slow
def test_a_fresh_process_shares_no_memory_with_its_parent():
    held = np.ones(2**26)
    assert harness.in_fresh_process(harness.memory)["resident"] < harness.memory()["resident"] - held.nbytes / 2


def test_variants_run_in_a_new_order_each_round_and_the_first_round_does_not_count(monkeypatch):
    order, calls = [], {name: itertools.count() for name in "abcd"}

    def run(name):
        order.append(name)
        return next(calls[name])

    monkeypatch.setattr(harness, "_cpu_seconds", lambda run: run())
    seconds = harness.interleaved({name: lambda name=name: run(name) for name in calls}, 6)
    assert all(spent.tolist() == [1, 2, 3, 4, 5, 6] for spent in seconds.values())
    rounds = [tuple(order[start : start + 4]) for start in range(0, 28, 4)]
    assert all(sorted(turn) == [*"abcd"] for turn in rounds) and len(set(rounds)) > 3


def test_cpu_time_does_not_include_waiting():
    assert harness._cpu_seconds(lambda: time.sleep(0.1)) < 0.05


def test_a_ratio_is_taken_within_rounds_with_its_spread_and_its_bound():
    seconds, to = np.array([2.0, 8.0, 18.0]), np.array([1.0, 2.0, 3.0])
    assert harness.ratio(seconds, to) == [4.0, 2.4, 5.6]
    assert harness.upper_bound(np.full(30, 1.5), np.ones(30)) == 1.5
    assert 16.5 < harness.upper_bound(np.arange(1.0, 31), np.ones(30)) < 25, "the median alone is 15.5"


def test_token_buckets_hold_every_sample_once_within_the_budget_of_padded_rows():
    lengths = draw_lengths("mixed", 500).sum(axis=1)
    batches = token_buckets(lengths, 400, np.random.default_rng(0))
    assert sorted(np.concatenate(batches)) == list(range(500))
    padded = [len(batch) * lengths[batch].max() for batch in batches]
    assert max(padded) <= 400 and sum(padded) < 1.03 * lengths.sum()


def test_a_padded_batch_holds_the_rows_of_the_ragged_one():
    batch = make_batch(LENGTHS, SAMPLES)
    padded, (regions, tokens) = pad(batch), LENGTHS[SAMPLES].T
    assert padded.rows == LENGTHS[SAMPLES].sum()
    for place, (own, length) in enumerate(zip(regions, regions + tokens, strict=True)):
        start = regions[:place].sum()
        assert torch.equal(padded.features[place, :own], batch.region_features[start : start + own])
        assert padded.order[place, :own].tolist() == list(range(start, start + own))
        assert padded.gather[place, :length].tolist() == [
            *range(own),
            *range(regions.max(), regions.max() + length - own),
        ]
        assert padded.bias[place, 0, 0].lt(0).sum() == (regions + tokens).max() - length
    chosen = padded.order.flatten()[padded.places]
    assert sorted(zip(chosen.tolist(), padded.words.tolist(), strict=True)) == sorted(
        zip(batch.targets["words"].rows.tolist(), batch.targets["words"].labels.tolist(), strict=True)
    )


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("split", [(), ("qkv",)])
def test_padded_peers_have_the_gradients_of_dimvl(core, split):
    model, batch = TINY.model(split), pad(make_batch(LENGTHS, SAMPLES))
    train.ours(model, "cpu", "fp32").loss(batch).backward()
    wanted = {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    for peer in [PaddedStream(model, CORES[core])] + ([] if split else [Uniter(model, CORES[core])]):
        model.zero_grad()
        peer(batch).backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:  # UNITER has copies of the projections
                torch.testing.assert_close(parameter.grad, wanted[name], atol=2e-5, rtol=1e-4)


def made_variants():
    return train.variants_of(train.ALL, TINY, "sdpa", "cpu", "fp32")


@pytest.mark.filterwarnings("ignore")  # warnings of transformers
def test_a_peer_that_computes_another_loss_is_not_timed():
    made, batch = made_variants(), pad(make_batch(draw_lengths("36+20", 4), np.arange(4)))
    assert max(train.check(made, batch, "cpu").values()) < 1e-5
    made[train.UNITER].model.layers[0].query.weight.data *= 1.1
    with pytest.raises(ValueError, match="UNITER computes"):
        train.check(made, batch, "cpu")


@pytest.mark.filterwarnings("ignore")
def test_a_published_model_whose_loss_does_not_match_its_logits_is_not_timed():
    made, batch = made_variants(), pad(make_batch(draw_lengths("36+20", 4), np.arange(4)))
    plain = made[train.VISUALBERT].model.output
    made[train.VISUALBERT].model.output = lambda batch: (plain(batch)[0] * 1.01, plain(batch)[1])
    with pytest.raises(ValueError, match="VisualBert computes"):
        train.check(made, batch, "cpu")


@pytest.mark.filterwarnings("ignore")
@torch.inference_mode()
def test_a_decoder_with_other_captions_or_another_number_of_steps_is_not_timed(monkeypatch):
    variants = decode.Variants(replace(decode.SMALL, checked=12), "cpu")
    assert {found["captions"] for found in decode.check(variants).values()} == {12}
    plain, cache = variants.vlp, decode.HiddenStateCache

    class Forgetful(cache):
        """Treats every hypothesis as a child of the first."""

        def advance(self, parents, tokens):
            return super().advance(0 * parents, tokens)

    monkeypatch.setattr(decode, "HiddenStateCache", Forgetful)
    with pytest.raises(SystemExit, match="VLP's policy: a"):
        decode.check(variants)
    monkeypatch.setattr(decode, "HiddenStateCache", cache)

    def one_other_word(*arguments):
        found = plain(*arguments)
        found[-1][0] = replace(found[-1][0], token_ids=(*found[-1][0].token_ids[:-1], 5))
        return found

    monkeypatch.setattr(variants, "vlp", one_other_word)
    with pytest.raises(SystemExit, match="VLP's policy: a caption differs"):
        decode.check(variants)
    monkeypatch.setattr(variants, "vlp", plain)
    generate = variants.generate
    monkeypatch.setattr(
        variants, "generate", lambda images, lengths, *rest, **named: generate(images, lengths - 1, *rest, **named)
    )
    with pytest.raises(SystemExit, match="lengths differ"):
        decode.check(variants)


def test_pairs_with_another_loss_than_shared_prefixes_are_not_timed(tmp_path):
    write_run_data(tmp_path, 4, 6, end_to_end.CAPTIONS, 13)
    sections = {"task": "caption", "model": end_to_end.TINY, "training": {"steps": 2, "device": "cpu"}}
    sections |= {"inputs": {"max_regions": 6, "concepts": "none"}}
    config = CaptionConfig.model_validate(run_config(tmp_path, "run", **sections))
    store = end_to_end.RegionStore(config.regions)
    task, source = end_to_end.build_task(config, store, end_to_end.task_of(config).read(config, store))
    engine, pairs = end_to_end.TorchEngine(task, config.training), end_to_end.Pairs(source)
    data = {"shared": end_to_end.steps_of(source, 2, engine, 2), "pairs": end_to_end.steps_of(pairs, 2, engine, 2)}
    facts = end_to_end.compare_first(data, engine)
    assert facts["rows"] == {"shared": 2 * (8 + 5 * 14), "pairs": 2 * 5 * (8 + 14)} and facts["flop_ratio"] > 1
    plain = pairs.build_all
    pairs.build_all = lambda epoch, indexes: plain(epoch, indexes)[:-1]
    with pytest.raises(ValueError, match="pairs have the loss"):
        end_to_end.compare_first(data, engine)


@pytest.mark.parametrize("change", [{"text": "another"}, {"probability": 0.2}])
def test_questions_with_other_answers_at_once_than_one_by_one_are_not_timed(monkeypatch, change):
    plain = inference.Predictor.answer

    def answer(self, regions, asked):
        found = plain(self, regions, asked)
        return [*found[:-1], replace(found[-1], **change)] if isinstance(asked, list) and len(asked) > 1 else found

    monkeypatch.setattr(inference.Predictor, "answer", answer)
    with pytest.raises(SystemExit, match="3 questions at once have other answers"):
        inference.questions(inference.SMALL, "cpu", 1)


@pytest.mark.parametrize("found", [["w1 w2", "w3 " * pixels.WORDS], torch.zeros(2, pixels.WORDS + 1)])
def test_captions_of_another_number_of_words_are_not_timed(found):
    pixels.checked(lambda files: ["w3 " * pixels.WORDS], "ours", [])
    pixels.checked(lambda files: torch.zeros(2, pixels.WORDS), "peer", [])
    with pytest.raises(SystemExit, match="ours: captions have"):
        pixels.checked(lambda files: found, "ours", [])


def test_photographs_are_the_same_each_time_and_differ_from_each_other(tmp_path):
    first, again = (write_photographs(tmp_path / name, 2) for name in "ab")
    contents = [file.read_bytes() for file in first]
    assert contents == [file.read_bytes() for file in again] and contents[0] != contents[1]
    assert all(20_000 < len(content) < 100_000 for content in contents), "as photographs of this size"
