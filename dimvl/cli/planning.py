"""Planning: what a run will take."""

import json
from typing import Annotated

import typer

from dimvl.cli.app import AsJson, Config, Overrides, app


@app.command()
def plan(
    config: Config,
    overrides: Overrides = None,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs, one rank each.")] = 1,
    gpu_memory: Annotated[float, typer.Option(help="GB (10^9 bytes) of one GPU.")] = 80.0,
    peak: Annotated[
        float | None, typer.Option(help="TFLOP/s of one GPU at the run's precision; by default those of an H100.")
    ] = None,
    utilisation: Annotated[float, typer.Option(help="Share of the peak that is reached, as measured on one.")] = 0.33,
    network: Annotated[
        float | None,
        typer.Option(help="GB/s of rings, as nccl-tests' bus bandwidth; by default 450 up to 8 GPUs, else 400."),
    ] = None,
    images: Annotated[int | None, typer.Option(min=1, help="Images, where the store is not there.")] = None,
    words: Annotated[float | None, typer.Option(min=1, help="Mean word pieces of a text, where there is none.")] = None,
    texts: Annotated[float | None, typer.Option(min=1, help="Mean texts of an image, where there is none.")] = None,
    as_json: AsJson = False,
) -> None:
    """Tell what a run will take, before it runs.

    Parameters, memory by ZeRO stage, arithmetic and time of a step, and what the region store must deliver, from the
    configuration alone; what is not there is assumed and told.

    Example: dimvl plan pretrain.yaml --gpus 8 --gpu-memory 80 --images 3000000 training.rows_per_step=65536
    """
    from dimvl.planning import Cluster, DataOverrides, make_plan
    from dimvl.planning.table import as_values, describe
    from dimvl.tasks import load_config

    cluster = Cluster(gpus=gpus, gpu_memory=gpu_memory, peak=peak, utilisation=utilisation, network=network)
    made = make_plan(
        load_config(config, overrides or []), cluster, DataOverrides(images=images, words=words, texts=texts)
    )
    print(json.dumps(as_values(made)) if as_json else "\n".join(describe(made)))
