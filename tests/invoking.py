"""Commands of oneway in this process, as a user types them."""

import functools
from typing import Any

from click.testing import CliRunner, Result
from typer.main import get_command

from oneway.cli.main import app


@functools.cache
def all_commands() -> Any:
    """Return all commands: to make them of their functions takes longer than most of them."""
    return get_command(app)


def invoke(*words: object, env: dict[str, str] | None = None) -> Result:
    """Run ``oneway`` with these words, in a wide terminal so that no message is wrapped."""
    return CliRunner().invoke(all_commands(), [str(word) for word in words], env=env)
