"""Tables, laid out for a terminal, as Markdown, or (by a page) as HTML."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table


@dataclass(frozen=True)
class Column:
    """How a table shows one value of each row; calling it returns the text of a row's cell.

    Attributes:
        value: Returns a row's value; None is shown as a dash.
        format: A format specification, such as ``".4f"``, or a function from value to text.
        help: Meaning of the column, in a sentence without the heading.
    """

    value: Callable[[Any], Any]
    format: str | Callable[[Any], str] = ""
    help: str = ""

    def __call__(self, row: Any) -> str:
        """Return the text of a row's cell."""
        value = self.value(row)
        if value is None:
            return "-"
        return format(value, self.format) if isinstance(self.format, str) else self.format(value)


@dataclass(frozen=True)
class Listing:
    """A table for any output; rich prints it in a terminal.

    Attributes:
        title: The caption.
        columns: By heading, a :class:`Column` or a function that returns the text of a row's cell.
        rows: An object for each line.
        footnotes: Sentences about marks in the cells.
        spare: Headings that a narrow terminal leaves out, the least needed first.
    """

    title: str
    columns: Mapping[str, Callable[[Any], str]]
    rows: Sequence[Any]
    footnotes: Sequence[str] = ()
    spare: Sequence[str] = ()

    def cells(self) -> list[list[str]]:
        """Return the text of every cell, row by row."""
        return [[show(row) for show in self.columns.values()] for row in self.rows]

    def notes(self) -> list[str]:
        """Return the meanings of the columns that have a help text, then the footnotes."""
        meanings = [
            f"{heading}: {column.help}"
            for heading, column in self.columns.items()
            if isinstance(column, Column) and column.help
        ]
        return [*meanings, *self.footnotes]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lay the table out; print it with ``crop=False``, since it may be wider than a file's 80.

        Headings wrap between words, never within a word. Numbers are never cut. The first column,
        of names, never wraps. A terminal that is too narrow leaves out spare columns, and says
        which. If that is not enough, each row becomes a block of lines.
        """
        for count in range(len(self.spare) + 1):
            left_out = self.spare[:count]
            kept = {name: show for name, show in self.columns.items() if name not in left_out}
            table = replace(self, columns=kept)._table()
            needed = Measurement.get(console, options.update(width=1000), table).minimum
            if needed <= options.max_width or not console.is_terminal:
                table.width = needed if needed > options.max_width else None
                yield table
                if left_out:
                    yield f"A wider terminal also shows: {escape('; '.join(left_out))}.\n"
                return
        yield from self._blocks(self.cells())

    def _table(self) -> Table:
        """Return all columns side by side."""
        cells = self.cells()
        table = Table(
            title=escape(self.title), title_justify="left", header_style="bold", box=SIMPLE_HEAD
        )
        for position, heading in enumerate(self.columns):
            texts = (*heading.split(), *(row[position] for row in cells))
            first = position == 0
            table.add_column(
                heading,
                justify="left" if first else "right",
                min_width=max(map(len, texts)),
                no_wrap=first,
            )
        for row in cells:
            table.add_row(*map(escape, row))
        return table

    def _blocks(self, cells: list[list[str]]) -> Iterator[str | Padding]:
        """Yield the rows one below the other, each cell on a line after its heading."""
        yield f"[italic]{escape(self.title)}[/italic]"
        for name, *others in cells:
            yield f"[bold]{escape(name)}[/bold]"
            block = Table.grid(padding=(0, 2))
            for heading, text in zip(list(self.columns)[1:], others, strict=True):
                block.add_row(heading, escape(text))
            yield Padding(block, (0, 0, 0, 2))

    def markdown(self) -> str:
        """Return the table as Markdown, without its title."""
        lines = [list(self.columns), ["---"] * len(self.columns), *self.cells()]
        escaped = [[text.replace("|", r"\|") for text in line] for line in lines]
        return "".join(f"| {' | '.join(line)} |\n" for line in escaped)
