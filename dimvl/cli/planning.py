"""The `plan` command: a run's memory, compute and I/O, estimated."""

import json
import logging
from typing import Annotated

import typer

from dimvl.cli.app import AsJson, Config, Overrides, app, print_text

logger = logging.getLogger(__name__)


@app.command()
def plan(
    config: Config,
    overrides: Overrides = None,
    gpus: Annotated[int, typer.Option(min=1, help="Number of GPUs, one rank each.")] = 1,
    gpu_memory: Annotated[float, typer.Option(help="Memory of one GPU, in GB (10^9 bytes).")] = 80.0,
    peak: Annotated[
        float | None, typer.Option(help="Peak TFLOP/s of one GPU at the run's precision; by default an H100's.")
    ] = None,
    utilisation: Annotated[float, typer.Option(help="Fraction of the peak that training reaches (MFU).")] = 0.33,
    images: Annotated[int | None, typer.Option(min=1, help="Number of images; by default the store's.")] = None,
    words: Annotated[float | None, typer.Option(min=1, help="Mean word pieces per text, if not yet tokenised.")] = None,
    texts: Annotated[float | None, typer.Option(min=1, help="Mean texts per image, if not yet tokenised.")] = None,
    as_json: AsJson = False,
) -> None:
    """Estimate a run's memory, compute and I/O.

    Prints parameters, memory by ZeRO stage, operations and time of a step, and the rate at which the region store must
    be read; for one GPU on a machine without any, also the time on its CPU, measured for a second. Needs only the
    configuration: data that does not exist yet is assumed, and each assumption is printed.

    Example: dimvl plan pretrain.yaml --gpus 8 --gpu-memory 80 --images 3000000 training.rows_per_step=65536
    """
    from dimvl.tasks import load_config

    loaded = load_config(config, overrides or [])
    import torch

    from dimvl.planning import Cluster, DataOverrides, estimate_cpu, make_plan
    from dimvl.planning.table import as_values, describe

    cluster = Cluster(gpus=gpus, gpu_memory=gpu_memory, peak=peak, utilisation=utilisation)
    made = make_plan(loaded, cluster, DataOverrides(images=images, words=words, texts=texts))
    for remark in made.remarks:
        logger.warning("%s", remark)
    only_cpu = gpus == 1 and (loaded.training.device == "cpu" or not torch.cuda.is_available())
    cpu = estimate_cpu(loaded, made) if only_cpu else None
    if as_json:
        print(json.dumps(as_values(made, cpu)))
        return
    for line in describe(made, cpu):
        print_text(line)
