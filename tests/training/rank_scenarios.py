"""What the ranks do in the tests of DeepSpeed; run as `python -m tests.training.rank_scenarios FOLDER NAME...`.

All scenarios run in one start of the ranks, since a start costs many seconds. Each rank writes what it saw to
FOLDER/NAME.RANK.json; the tests read it. A scenario that fails writes its traceback there, and the others continue.
"""

import errno
import json
import os
import shutil
import signal
import sys
import time
import traceback
from contextlib import contextmanager
from functools import partialmethod
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch._dynamo.testing import CompileCounterWithBackend

from dimvl.checkpoints import check_checkpoint, checkpoint_folders
from dimvl.errors import Interrupted, UserError
from dimvl.model.encoder import Encoder
from dimvl.regions.detectors.torchvision_ops import import_torchvision
from dimvl.training import checkpoint, run
from dimvl.training.ranks import open_ranks
from dimvl.training.run import train_on
from dimvl.training.state import saved_tensors
from tests.factories import make_store
from tests.tiny_runs import TinyData, make_config

SPLIT_ALL = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
TRAINING = {"steps": 6, "learning_rate": 1e-3, "warmup_steps": 2, "rows_per_micro_batch": 60, "keep": 1}
ADAPTERS = {"prefix": {"length": 3}, "lora": {"rank": 2}, "prompt": 3, "layers": 1}
EVERY_OBJECTIVE = {"shares": {"contrastive": 1.0}, "contrastive": {"group": 3, "width": 8}}


def drawing(folder):
    """Settings of self-critical training, whose judge is the run of `curve_0`."""
    return {"samples": 2, "retrieval": {"judge": folder / "stage0-on-2", "weight": 0.5, "among": 3}}


class Scenarios:
    """One method per scenario; its result is written to a file."""

    def __init__(self, folder, ranks):
        self.folder, self.ranks = folder, ranks
        self.data = TinyData(*(folder / "data" / name for name in ("regions", "c.json", "q.json", "a.json")))
        self.engine = None

    def config(self, output, stage, task="pretrain", training=None, deepspeed=None, **changes):
        settings = {"stage": stage, "timeout": 60, "options": SPLIT_ALL if stage == 3 else {}, **(deepspeed or {})}
        changes = {"model": {"dropout": 0, "layers": 2}, "inputs": {"concepts": "both"}, **changes}
        changes |= {"objectives": EVERY_OBJECTIVE} if task == "pretrain" else {}
        return make_config(
            self.data, self.folder / output, task, training=TRAINING | (training or {}), deepspeed=settings, **changes
        )

    def train(self, output, stage, progress=None, **changes):
        """Train; returns the loss of each step."""
        losses = []

        def show(report):
            losses.append(report.loss)
            if progress is not None:
                progress(report)

        train_on(self.ranks, self.config(output, stage, **changes), show)
        return losses

    def failure(self, output, stage, **changes):
        """Train; returns how it failed."""
        try:
            self.train(output, stage, **changes)
        except Exception as error:
            return {"kind": type(error).__name__, "text": str(error), "code": getattr(error, "code", None)}
        return None

    # --- one curve

    def curve_0(self):
        return self._curve(0)

    def curve_1(self):
        return self._curve(1)

    def curve_2(self):
        return self._curve(2)

    def curve_3(self):
        return self._curve(3)

    def _curve(self, stage):
        losses = self.train(f"stage{stage}-on-{self.ranks.size}", stage)
        whole, kept, tied = 0, 0, True
        live = {}
        import deepspeed

        for name, weight in self.engine.task.model.named_parameters():
            whole += getattr(weight, "ds_numel", weight.numel())
            kept += weight.ds_tensor.numel() if hasattr(weight, "ds_tensor") else weight.numel()
            assert stage < 3 or weight.numel() == 0, "between two calls a rank holds only its part"
            with deepspeed.zero.GatheredParameters([weight], enabled=stage == 3):
                live[name] = weight.detach().float().cpu().clone()
        model = self.engine.task.model
        live |= {name: buffer.float().cpu().clone() for name, buffer in model.named_buffers()}
        tied = model.word_head.decoder.weight is model.tokens.word.weight
        if self.ranks.rank == 0:
            save_file(live, self.folder / f"live{stage}-on-{self.ranks.size}.safetensors")
        return {"losses": losses, "share": kept / whole, "tied": tied}

    def bf16_0(self):
        return self.train("bf16-0", 0, training={"precision": "bf16"})

    def bf16_1(self):
        return self.train("bf16-1", 1, training={"precision": "bf16"})

    def bf16_2(self):
        return self.train("bf16-2", 2, training={"precision": "bf16"})

    def bf16_3(self):
        return self.train("bf16-3", 3, training={"precision": "bf16"})

    def offload_2(self):
        losses = self.train("offload2", 2, deepspeed={"offload_optimizer": True})
        assert self.engine.engine.zero_offload_optimizer().device == "cpu"
        return losses

    def offload_3(self):
        settings = {"offload_optimizer": True, "offload_parameters": True}
        losses = self.train("offload3", 3, deepspeed=settings)
        assert self.engine.engine.zero_offload_optimizer().device == "cpu"
        assert self.engine.engine.zero_offload_param().device == "cpu"
        return losses

    def activations_again(self):
        curves = []
        for stage in (1, 3):
            curves.append(self.train(f"again{stage}", stage, training={"checkpoint_activations": True}))
            assert self.engine.task.model.encoder.checkpoint_activations
        return curves

    def compiled(self):
        """Losses of stages 0 to 2, from the graphs that inductor gets, without its compiler."""
        counter, plain = CompileCounterWithBackend("aot_eager"), Encoder.compile_blocks
        Encoder.compile_blocks = partialmethod(plain, counter)
        try:
            curves = [self.train(f"compiled{stage}", stage, training={"compile": True}) for stage in (0, 1, 2)]
        finally:
            Encoder.compile_blocks = plain
        assert counter.frame_count > 0
        return curves

    def unprepared(self):
        """How a run ends if rank 1 cannot prepare, and the number of steps of a corrected run in its folder."""

        def fail(*arguments):
            raise UserError("this node lacks a file")

        real = run._prepare
        if self.ranks.rank == 1:
            run._prepare = fail
        try:
            failed = self.failure("unprepared", 1)
        finally:
            run._prepare = real
        return failed["kind"], len(self.train("unprepared", 1, training={"learning_rate": 2e-3}))

    def accumulation(self):
        """Losses and targets of each micro-batch, with small micro-batches and with one large one."""
        found = []
        for rows in (20, 4000):
            seen = []
            with self.spying(seen):
                losses = self.train(f"accumulation{rows}", 2, training={"rows_per_micro_batch": rows})
            found.append({"losses": losses, "targets": seen})
        return found

    @contextmanager
    def spying(self, seen):
        """Record the number of targets in each micro-batch of this rank."""
        from dimvl.training.deepspeed_engine import DeepSpeedEngine

        real = DeepSpeedEngine.losses

        def losses(engine, batch):
            seen.append(sum(batch.counts().values()))
            return real(engine, batch)

        DeepSpeedEngine.losses = losses
        try:
            yield
        finally:
            DeepSpeedEngine.losses = real

    # --- stopping and resuming

    def resume_exactly(self):
        """With dropout at stage 2: 8 steps without a stop, and 8 steps with a stop signal to the last rank only."""
        settings = {"model": {"dropout": 0.1, "layers": 2}, "training": {"steps": 8}}
        whole = self.train("undisturbed", 2, **settings)
        first = self.stop_at(4, "stopped", 2, **settings)
        return {"whole": whole, "first": first, "rest": self.train("stopped", 2, **settings)}

    def stop_at(self, step, output, stage, **changes):
        losses = []

        def stop(report):
            losses.append(report.loss)
            if report.step == step and self.ranks.rank == self.ranks.size - 1:
                os.kill(os.getpid(), signal.SIGTERM)

        try:
            self.train(output, stage, stop, **changes)
        except Interrupted as error:
            return {"losses": losses, "message": str(error)}
        return None

    def written_late(self):
        """Checksums of the checkpoints of each stage, written at once or after the next step."""
        write, save, found = checkpoint.write_state, checkpoint.Saver.save, []

        def late(folder, state):
            end = time.monotonic() + 60
            while self.engine.schedule.last_epoch == state.steps < 3 and time.monotonic() < end:
                time.sleep(0.01)
            write(folder, state)

        def at_once(saver, step, best=None):
            save(saver, step, best)
            saver.wait()

        for stage in range(4):
            checkpoint.Saver.save = at_once
            self.train(f"at-once-{stage}", stage, training={"steps": 3, "save_every": 1, "keep": 3})
            checkpoint.Saver.save, checkpoint.write_state = save, late
            self.train(f"late-{stage}", stage, training={"steps": 3, "save_every": 1, "keep": 3})
            checkpoint.write_state = write
            runs = [self.folder / f"{name}-{stage}" for name in ("at-once", "late")]
            found.append([[check_checkpoint(each)["checksums"] for each in checkpoint_folders(run)] for run in runs])
        return found

    def save_for_others(self):
        """Stop at step 3 of 6 at stage 2; other stages and numbers of ranks resume from there."""
        return self.stop_at(3, "half", 2)

    def resume_at_1(self):
        return self._resume(1)

    def resume_at_3(self):
        return self._resume(3)

    def from_torch(self):
        """Resume at stage 2 a run of the torch engine that stopped after step 3."""
        return self._resume(2, "torch-half")

    def _resume(self, stage, half="half"):
        output = f"{half}-on-{self.ranks.size}-at-{stage}"
        if self.ranks.rank == 0:
            shutil.copytree(self.folder / half, self.folder / output)
        self.ranks.gather(None)
        return self.train(output, stage)

    def frozen(self):
        """Freeze the words at stage 3 in bf16: their weights must keep their fp32 values."""
        freeze = {"words": True, "layers": 1}
        first = {}
        real = run.build_task

        def build(*arguments):
            task, source = real(*arguments)
            first.update({name: tensor.detach().clone() for name, tensor in saved_tensors(task.model).items()})
            return task, source

        run.build_task = build
        try:
            self.train("frozen", 3, training={"precision": "bf16", "freeze": freeze, "steps": 2})
        finally:
            run.build_task = real
        if self.ranks.rank == 0:
            save_file(first, self.folder / "frozen-before.safetensors")

    def adapters(self):
        """Losses of adapters of the torch run.

        A prefix and LoRA at every stage, and stopped at stage 3 and resumed at stage 1; the others at one stage.
        """
        stages, found = {"prefix": range(4), "lora": range(4), "prompt": [3], "layers": [2]}, {}
        if find_spec("peft"):
            import_torchvision()
            import_module("peft")  # by both ranks at once, since it takes seconds
        else:
            del stages["lora"]
        for kind in stages:
            settings = {"task": "caption", "initial": self.folder / "torch-half", "adapter": {kind: ADAPTERS[kind]}}
            settings["training"] = {"steps": 4}
            for stage in stages[kind]:
                found[f"{kind}-{stage}"] = self.train(f"{kind}-{stage}", stage, **settings)
            if len(stages[kind]) > 1:
                first = self.stop_at(2, f"{kind}-stopped", 3, **settings)["losses"]
                found[f"{kind}-stopped"] = first + self.train(f"{kind}-stopped", 1, **settings)
            if kind == "prefix":
                settings["training"] = {"steps": 4, "precision": "bf16"}
                found["bf16-prefix"] = self.train("bf16-prefix", 2, **settings)
        return found

    # --- validation and sampling

    def validation(self):
        section = {"every": 3, "questions": self.data.questions, "annotations": self.data.annotations}
        self.train("validated-vqa", 3, task="vqa", validation=section)
        section = {"every": 3, "captions": self.data.captions}
        self.train("validated-caption", 3, task="caption", validation=section)
        self.train("validated-loss", 2, task="caption", validation=section | {"metric": "loss"})

    def self_critical(self):
        """Sample captions of different lengths on ranks with different load, at stage 3, and judge them."""
        changes = {"initial": self.folder / "validated-caption", "self_critical": drawing(self.folder)}
        return self.train("drawn", 3, task="caption", training={"rows_per_micro_batch": 1000}, **changes)

    # --- failures

    def loss_not_finite(self):
        return self._broken(lambda engine, batch, losses: {name: loss * float("nan") for name, loss in losses.items()})

    def _broken(self, change):
        from dimvl.training.deepspeed_engine import DeepSpeedEngine

        real = DeepSpeedEngine.losses

        def losses(engine, batch):
            found = real(engine, batch)
            late = engine.schedule.last_epoch == 3 and self.ranks.rank == 1 and batch.sources
            return change(engine, batch, found) if late else found

        DeepSpeedEngine.losses = losses
        try:
            return self.failure("no-loss", 2, training={"save_every": 1})
        finally:
            DeepSpeedEngine.losses = real

    def gradient_not_finite(self):
        """How it failed with each of DeepSpeed's optimisers."""
        from dimvl.training.deepspeed_engine import DeepSpeedEngine

        real, found = DeepSpeedEngine.backward, {}

        def backward(engine, loss, is_last):
            late = engine.schedule.last_epoch == 2 and self.ranks.rank == 1
            real(engine, loss * float("inf") if late else loss, is_last)

        DeepSpeedEngine.backward = backward
        try:
            for stage, precision in [(stage, precision) for precision in ("fp32", "bf16") for stage in range(4)]:
                output, training = f"no-gradient-{stage}-{precision}", {"save_every": 1, "precision": precision}
                found[output] = self.failure(output, stage, training=training)
                weights = [getattr(weight, "ds_tensor", weight) for weight in self.engine.task.model.parameters()]
                found[output]["finite"] = all(bool(weight.isfinite().all()) for weight in weights)
        finally:
            DeepSpeedEngine.backward = real
        return found

    def full_disk(self):
        real = checkpoint.write_state

        def full(folder, state):
            if state.steps == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(folder, state)

        checkpoint.write_state = full
        try:
            return self.failure("full", 1, training={"save_every": 1})
        finally:
            checkpoint.write_state = real

    def another_seed(self):
        return self.failure("differs", 1, seed=self.ranks.rank)

    def another_store(self):
        """A store per rank with the same images, but another image without regions."""
        own = make_store(self.folder / f"store{self.ranks.rank}", 12, empty=3 if self.ranks.rank == 0 else 4)
        return self.failure("differs", 1, regions=own)

    def one_lacks_a_file(self):
        gone = {"captions": self.folder / "gone.json"} if self.ranks.rank == 1 else {}
        return self.failure("differs", 1, **gone)

    def unknown_options(self):
        return self._options({"zero_optimization": {"overlap_com": True}})

    def no_number(self):
        return self._options({"zero_optimization": {"reduce_bucket_size": "many"}})

    def no_type(self):
        return self._options({"communication_data_type": "fp99"})

    def _options(self, options):
        return self.failure("unknown", 1, deepspeed={"options": options})


def main():
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    anything = make_config(TinyData(*[folder] * 4), folder, deepspeed={"timeout": 60})
    with open_ranks(anything) as ranks:
        scenarios = Scenarios(folder, ranks)
        real = run._engine

        def engine(*arguments):
            scenarios.engine = real(*arguments)
            return scenarios.engine

        run._engine = engine
        for name in names:
            torch.manual_seed(0)
            try:
                found = {"found": getattr(scenarios, name)()}
            except BaseException:
                found = {"error": traceback.format_exc()}
            (folder / f"{name}.{ranks.size}.{ranks.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # like dimvl's command line: threads of torch's process group may abort a Python that is ending
