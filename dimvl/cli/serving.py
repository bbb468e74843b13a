"""The command serve."""

from importlib.util import find_spec
from typing import Annotated

import typer

from dimvl.cli.app import Device, Threads, app, print_text, set_threads
from dimvl.errors import UserError

NEEDED = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")
"""Modules of the extra `serve`."""


@app.command()
def serve(
    exports: Annotated[
        list[str],
        typer.Argument(metavar="EXPORT", help="Folders of exports, or names on the hub; NAME=EXPORT names one."),
    ],
    adapter: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=ADAPTER", help="An adapter of an export, served as a model; repeatable."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is all interfaces.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one.")] = 8000,
    batch: Annotated[int, typer.Option(min=1, max=1024, help="Maximum number of images or texts in a batch.")] = 32,
    delay: Annotated[
        float, typer.Option(min=0, max=1000, help="Milliseconds that a batch waits for more requests, at most.")
    ] = 5,
    requests: Annotated[int, typer.Option(min=1, help="Requests accepted at once; more are refused with 429.")] = 128,
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds until a request is abandoned with 504.")] = 30,
    megabytes: Annotated[
        float, typer.Option(min=0.001, help="Maximum size of a request; larger ones are refused with 413.")
    ] = 16,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Serve predictions over HTTP: JSON or forms with images, computed in batches.

    /docs and /openapi.json describe the requests; /health and /metrics are for monitoring. There is no password and no
    encryption: put a proxy in front to serve others. SIGTERM or Ctrl-C finishes accepted requests and ends the server
    with exit code 0.

    Example: dimvl serve exports/vqa exports/caption

    Example: dimvl serve base=exports/base --adapter caption=adapters/caption --adapter vqa=adapters/vqa --port 8080
    """
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise UserError(f"serving needs {missing[0].replace('_', '-')}; pip install 'dimvl[serve]'")
    set_threads(threads)
    from dimvl.serve.address import bound
    from dimvl.serve.app import Limits, Server, application
    from dimvl.serve.models import open_models
    from dimvl.serve.running import serve as serve_until_stopped

    with bound(host, port) as address:
        models = open_models(exports, adapter or [], device)
        limits = Limits(
            requests=requests, seconds=seconds, bytes=int(megabytes * 2**20), batch=batch, delay=delay / 1000
        )
        if synthetic := [name for name, one in models.items() if one.predictor.trained.synthetic]:
            print_text(
                f"{', '.join(synthetic)}: trained on synthetic scenes only; its results on other images mean nothing",
                error=True,
            )
        served = application(Server(models, limits))
        shown = f"[{host}]" if ":" in host else host
        print_text(f"serving {', '.join(models)} at http://{shown}:{address.getsockname()[1]}")
        serve_until_stopped(served, address, seconds)
