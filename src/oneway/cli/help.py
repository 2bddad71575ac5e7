"""Help texts: examples that can be copied, and the attackers of an audit."""

from typing import Any

import typer
from typer.core import TyperCommand

from oneway.cli.completion import attackers

EXAMPLES = "For example:"


class ShowsExamples(TyperCommand):
    """A command whose help ends with its examples as they stand in the code.

    Rich would break long lines and fill them with spaces, so that a copied backslash is followed by
    a space, and not by the end of its line.
    """

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help, then the examples."""
        written = self.help or ""
        self.help, _, examples = written.partition(EXAMPLES)
        try:
            super().format_help(ctx, formatter)
        finally:
            self.help = written
        if examples:
            typer.echo(f" {EXAMPLES}\n\n{examples.strip(chr(10))}\n")


class NamesAttackers(ShowsExamples):
    """A command whose help lists every attacker of its audits, and what each knows."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help, with the attackers of the registry."""
        known = "; ".join(f"{name}: {knows}" for name, knows in attackers().items())
        self.epilog = f"Attackers, and what each knows: {known}."
        super().format_help(ctx, formatter)
