"""Pages in Markdown that are filled in from figures: the READMEs of ladders, checkpoints and exports."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def markdown(folder: Path) -> Environment:
    """The templates in `folder`; a name that is not given is an error, and nothing is escaped."""
    return Environment(
        loader=FileSystemLoader(folder),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
