"""The command `kargah`."""

from typing import Annotated

import typer

from kargah import __version__
from kargah.app.commands import catalog, demo, doctor, download, runs, serve, train

app = typer.Typer(
    name="kargah",
    help="کارگاه · the workshop: approved models, real training, checkpoints that stay.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("serve")(serve.serve)
app.command("demo")(demo.demo)
app.command("catalog")(catalog.catalog)
app.command("download")(download.download)
app.command("train")(train.train)
app.command("doctor")(doctor.doctor)
app.add_typer(runs.app, name="runs")


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="the version, and nothing else")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit()


def main() -> None:
    """Run the command."""
    app()


if __name__ == "__main__":
    main()
