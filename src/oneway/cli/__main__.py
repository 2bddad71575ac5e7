"""`python -m oneway.cli`: the commands, where their script is not on the path."""

from oneway.cli.main import app

app(prog_name="oneway")
