"""The command `kargah`."""

import sys
from typing import Annotated

try:
    import typer

    from kargah import __version__
    from kargah.app.commands import (
        assets,
        catalog,
        checkpoints,
        config,
        data,
        demo,
        doctor,
        download,
        downloads,
        explain,
        hub,
        import_,
        logs,
        runs,
        serve,
        setup,
        status,
        terminal,
        train,
    )
    from kargah.app.commands.console import say
except KeyboardInterrupt:
    # Ctrl-C before the command began is Ctrl-C all the same.
    sys.exit(130)

app = typer.Typer(
    name="kargah",
    help=say("help.kargah"),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("serve", help=say("help.serve"))(serve.serve)
app.command("demo", help=say("help.demo"))(demo.demo)
app.command("doctor", help=say("help.doctor"))(doctor.doctor)
app.command("status", help=say("help.status"))(status.status)
app.add_typer(catalog.app, name="catalog")
app.add_typer(hub.app, name="hub")
app.command("download", help=say("help.download"))(download.download)
app.add_typer(downloads.app, name="downloads")
app.command("import", help=say("help.import"))(import_.import_)
app.add_typer(assets.app, name="assets")
app.add_typer(data.app, name="data")
app.command("train", help=say("help.train"))(train.train)
app.add_typer(runs.app, name="runs")
app.command("logs", help=say("help.logs"))(logs.logs)
app.add_typer(checkpoints.app, name="checkpoints")
app.add_typer(config.app, name="config")
app.add_typer(setup.app, name="setup")
app.command("explain", help=say("help.explain"))(explain.explain)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help=say("help.version"))] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit()


def main() -> None:
    """Run the command."""
    terminal.run(app)


if __name__ == "__main__":
    main()
