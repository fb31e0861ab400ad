"""What every verb shares: the language of the terminal, plain or JSON output, errors as sentences, exit codes.

Exit codes: 0 done, 1 failed, 2 used wrongly, 3 the server refused, 4 no server answers, 130 interrupted (Ctrl-C),
141 nobody read the output to its end, 143 terminated.
"""

import json
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.progress import Progress, ProgressColumn
from rich.table import Table
from rich.text import Text

from kargah.app.commands.terminal import EXIT_INTERRUPTED as EXIT_INTERRUPTED
from kargah.app.commands.terminal import reader_left, takes_unicode
from kargah.ground.errors import KargahError
from kargah.text.digits import decimal_to_persian
from kargah.text.languages import Language, from_environment
from kargah.text.messages import FSI, PDI, translate

if TYPE_CHECKING:
    from kargah.client import Client

EXIT_FAILED, EXIT_USED_WRONGLY, EXIT_REFUSED, EXIT_UNREACHABLE = 1, 2, 3, 4
NARROW_CELLS = 120
RLI = "\u2067"


class Output(Console):
    """A console that ends the command quietly when nobody reads any more."""

    def on_broken_pipe(self) -> NoReturn:
        """Called by rich when the reader of a pipe went away."""
        reader_left()


out = Output(highlight=False, emoji=False)
err = Output(stderr=True, highlight=False, emoji=False)

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]")
_OUR_ID = re.compile("[0-9a-f]{32}")


def language() -> Language:
    """The language of this terminal."""
    return from_environment()


def say(key: str, /, **params: Any) -> str:
    """A sentence of the command line, in the terminal's language."""
    return translate(f"cli.{key}", language(), **params)


AsJson = Annotated[bool, typer.Option("--json", help=say("help.json"))]


def figure(value: float | str | None) -> str:
    """A number that was made ready to be read, in the digits of the terminal's language, for use in a sentence."""
    text = "—" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
    return decimal_to_persian(text) if language() == "fa" else text


def number(value: float | None, odd: str | None = None) -> str:
    """A measured value in a table, in Latin digits: a dash when not measured, `odd` (NaN) when not finite."""
    return (odd or "—") if value is None else f"{value:.4f}"


def tell(text: str, *, to_errors: bool = False, style: str | None = None) -> None:
    """A sentence, whole on its line however narrow the terminal: ids and addresses in it stay copyable."""
    (err if to_errors else out).print(clean(text), markup=False, soft_wrap=True, style=style)


def tell_at_length(text: str) -> None:
    """A paragraph, indented; broken between words in a terminal, one line in a pipe."""
    if out.is_terminal:
        # A line of a Persian paragraph reads from the right also where a Latin word begins it.
        start = RLI if language() == "fa" else FSI
        out.print(Padding(_Cell(clean(text), start), (0, 0, 0, 2)))
    else:
        tell(f"  {text}")


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """A value as one JSON document on standard output, for programs; without `indent` on one line."""
    text = json.dumps(value, ensure_ascii=not takes_unicode(sys.stdout), indent=indent) + "\n"
    try:
        if sys.stdout is not None:
            sys.stdout.write(text)
            sys.stdout.flush()
    except BrokenPipeError:
        reader_left()


def show_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, fold: Collection[str] = ()) -> None:
    """Rows under the headings `cli.column.<column>`. See `show_rows`."""
    show_rows([say(f"column.{column}") for column in columns], rows, fold=[columns.index(name) for name in fold])


def show_rows(headings: Sequence[str] | None, rows: Iterable[Sequence[str]], *, fold: Collection[int] = ()) -> None:
    """A table. In a terminal that is too narrow the columns in `fold` are broken; a pipe gets whole lines."""
    lines = [[clean(cell).replace("\n", " ").replace("\t", " ") for cell in row] for row in rows]
    if not out.is_terminal:
        _plain([list(headings), *lines] if headings else lines)
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=headings is not None)
    for index in range(len(headings or (lines[0] if lines else ()))):
        table.add_column(_Cell(headings[index]) if headings else "", no_wrap=index not in fold)
    for line in lines:
        table.add_row(*map(_Cell, line))
    out.print(table)


def show_fields(fields: Iterable[tuple[str, str | None]]) -> None:
    """Names (`cli.field.<name>`) with values, one a line; what has no value is left out."""
    show_rows(None, [(say(f"field.{name}"), value) for name, value in fields if value], fold=[1])


def short_id(any_id: str) -> str:
    """An id as a table shows it: in a narrow terminal the first digits of ours, which every verb takes as well."""
    narrow = out.is_terminal and out.width < NARROW_CELLS
    return any_id[:8] if narrow and _OUR_ID.fullmatch(any_id) else any_id


def clean(text: str) -> str:
    """Text from anywhere, with control characters written out: a name or a log line cannot steer the terminal."""
    return _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def isolated(text: str, start: str = FSI) -> str:
    """A cell of a table or a bar, set apart if it holds right-to-left letters: columns keep their order on screen."""
    return f"{start}{text}{PDI}" if _RIGHT_TO_LEFT.search(text) else text


def progress_bar(*columns: ProgressColumn) -> Progress:
    """A live bar on standard error; nothing at all where that is no terminal."""
    return Progress(*columns, console=err, disable=not err.is_terminal)


def fail(message: str, code: int) -> NoReturn:
    """Say what is wrong, on standard error, and end."""
    tell(message, to_errors=True, style="red")
    raise typer.Exit(code)


@contextmanager
def connected(interrupted: str = "interrupted") -> Iterator["Client"]:
    """A client of the server; what goes wrong with it becomes a sentence and an exit code.

    `interrupted` is the key of the sentence that Ctrl-C ends with: what it ended, and what it did not.
    """
    # Only here: help, and what needs no server, comes without HTTP and settings.
    from kargah.client import AnswerLost, ApiError, Client, ServerUnreachable
    from kargah.ground.settings import load_settings

    try:
        settings = load_settings()
        client = Client(settings.url, settings.token.get_secret_value() if settings.token else None, language())
        try:
            yield client
        finally:
            client.close()
    except ApiError as error:
        details = f"\n{json.dumps(error.details, ensure_ascii=False)}" if error.details else ""
        fail(f"{error.message} [{error.code}]{details}", EXIT_REFUSED)
    except AnswerLost as error:
        fail(error.message, EXIT_UNREACHABLE)
    except ServerUnreachable as error:
        fail(say("unreachable", url=error.url), EXIT_UNREACHABLE)
    except KargahError as error:
        fail(f"{error.message(language())} [{error.code}]", EXIT_FAILED)
    except UnicodeEncodeError:
        fail(say("notText"), EXIT_USED_WRONGLY)
    except KeyboardInterrupt:
        fail(say(interrupted), EXIT_INTERRUPTED)


class _Cell:
    """A cell of a table in a terminal; each of the lines it is broken into is isolated by itself."""

    def __init__(self, text: str, start: str = FSI) -> None:
        self._text = Text(text)
        self._start = start

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement.get(console, options, self._text)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        broken = self._text.wrap(console, options.max_width, overflow="fold", no_wrap=options.no_wrap)
        yield from (Text(isolated(line.plain.rstrip(), self._start)) for line in broken)


def _plain(lines: list[list[str]]) -> None:
    widths = [max(cell_len(cell) for cell in column) for column in zip(*lines, strict=True)]
    for line in lines:
        padded = (cell + " " * (width - cell_len(cell)) for cell, width in zip(line, widths, strict=True))
        out.print("  ".join(padded).rstrip(), markup=False, soft_wrap=True)
