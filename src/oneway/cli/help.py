"""Help texts: examples that can be copied, and the attackers of an audit."""

from typing import Any

import typer
from typer.core import TyperCommand

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
        """Write the help, with the attackers that are registered now."""
        # These import torch, for this help alone.
        from oneway.attacks import identification_attacks, inversion_attacks

        attacks = [attack for attack in inversion_attacks().values() if attack.reads_query]
        named = (*attacks, *identification_attacks().values())
        lines = [f"{attack.name}: {attack.knows}" for attack in named]
        self.epilog = "Attackers, and what each knows: " + "; ".join(lines) + "."
        super().format_help(ctx, formatter)
