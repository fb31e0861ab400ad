"""The command `kargah`. A verb's module is loaded when the verb is called."""

import sys
from typing import Annotated

try:
    import typer

    from kargah import __version__
    from kargah.app.commands import later, terminal
    from kargah.text.languages import from_environment
    from kargah.text.messages import translate
except KeyboardInterrupt:
    # Ctrl-C before the command began is Ctrl-C all the same.
    sys.exit(130)


def _say(key: str) -> str:
    return translate(key, from_environment())


app = typer.Typer(
    name="kargah",
    help=_say("cli.help.kargah"),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
later.add(app, "serve", _say("cli.help.serve"), "serve.serve")
later.add(app, "demo", _say("cli.help.demo"), "demo.demo")
later.add(app, "doctor", _say("cli.help.doctor"), "doctor.doctor")
later.add(app, "status", _say("cli.help.status"), "status.status")
later.add(app, "download", _say("cli.help.download"), "download.download")
later.add(app, "import", _say("cli.help.import"), "import_.import_")
later.add(app, "train", _say("cli.help.train"), "train.train")
later.add(app, "logs", _say("cli.help.logs"), "logs.logs")
later.add(app, "explain", _say("cli.help.explain"), "explain.explain")
later.add(app, "catalog", _say("cli.help.catalog"), "catalog.app")
later.add(app, "hub", _say("mirrors.help.hub"), "hub.app")
later.add(app, "downloads", _say("cli.help.downloads"), "downloads.app")
later.add(app, "assets", _say("cli.help.assets"), "assets.app")
later.add(app, "data", _say("cli.help.data"), "data.app")
later.add(app, "runs", _say("cli.help.runs"), "runs.app")
later.add(app, "checkpoints", _say("cli.help.checkpoints"), "checkpoints.app")
later.add(app, "config", _say("cli.help.config"), "config.app")
later.add(app, "setup", _say("setup.help.setup"), "setup.app")


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help=_say("cli.help.version"))] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit()


def main() -> None:
    """Run the command."""
    terminal.run(app)


if __name__ == "__main__":
    main()
