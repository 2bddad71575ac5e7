"""`oneway playground`: a page that shows what scores reveal, before and after a defense."""

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from oneway.cli.common import CACHE, Cache, command
from oneway.extras import load_extra

if TYPE_CHECKING:
    from oneway.playground import Session


@command
def playground(
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port on this machine; 0: any free port.")
    ] = 8321,
    open_browser: Annotated[
        bool, typer.Option("--open/--no-open", help="Open the page in a browser.")
    ] = True,
    cache: Cache = CACHE,
) -> None:
    """Draw a digit, move a defense's sliders, and see what an attacker sees of your digit.

    Opens a page that this machine alone can reach. Its networks come with oneway; attackers of
    your settings train in the background, and are kept. Press Ctrl-C to stop.

    For example:

        oneway playground

        oneway playground --no-open --port 0
    """
    for module in ("mlxtend", "starlette", "uvicorn"):
        load_extra(module, extra="playground", purpose="the playground")
    import webbrowser

    import torch

    from oneway.benchmark import bundled_spec
    from oneway.data import load_dataset
    from oneway.evaluation import Store
    from oneway.playground import (
        Server,
        Session,
        Worker,
        listen,
        load_networks,
        networks_file,
    )

    # One thread for answers; the other cores stay free for training and the browser.
    torch.set_num_threads(1)
    spec = bundled_spec("playground")
    listener = listen(port)
    address = f"http://127.0.0.1:{listener.getsockname()[1]}/"

    def prepare() -> "Session":
        digits = load_dataset("digits")
        return Session(spec, digits, Store(cache), partial(load_networks, networks_file()))

    def started() -> None:
        typer.echo(f"playground at {address}")
        if open_browser:
            webbrowser.open(address)

    worker = Worker(prepare)
    server = Server(worker, started)
    # Ctrl-C is the usual way to stop.
    with suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    if server.failed:
        worker.prepared.result()
