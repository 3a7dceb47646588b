"""Elements of self-contained HTML pages: no script, no external file, no network."""

import base64
import datetime
import html
import importlib.resources
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from crossdim_jax.text import shown, without_folders

logger = logging.getLogger(__name__)

CSS = importlib.resources.files(__package__).joinpath("page.css").read_text(encoding="utf-8")


def document(title: str, sections: Sequence[str]) -> str:
    """HTML page with a heading, the time and sections."""
    title = html.escape(title)
    now = datetime.datetime.now().astimezone()
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{CSS}</style>\n</head>\n<body>\n"
        f'<header>\n<h1>{title}</h1>\n<p class="sub">{now:%d %B %Y, %H:%M %Z}</p>\n</header>\n'
        f"<main>\n{''.join(sections)}</main>\n"
        "<footer>Written by crossdim_jax. Not for clinical use.</footer>\n</body>\n</html>\n"
    )


def section(title: str, make: Callable[[], str]) -> str:
    """Part of a page under a heading; one that cannot be made says so in its place."""
    try:
        body = make()
    except Exception as error:  # a page without one part is worth more than no page
        logger.error("report: %s failed", title, exc_info=error)
        body = warning(f"This part could not be made: {reason(error)}")
    name = title.lower()
    return f'<section aria-labelledby="{name}">\n<h2 id="{name}">{title}</h2>\n{body}</section>\n'


def figure(path: Path, alt: str, caption: str) -> str:
    """PNG file as part of the page, with the text that stands for it and a caption."""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return (
        f'<figure><div class="scroll"><img alt="{escape(alt)}" '
        f'src="data:image/png;base64,{data}"></div>\n'
        f"<figcaption>{escape(caption)}</figcaption></figure>\n"
    )


def warning(text: str, items: Sequence[str] = ()) -> str:
    """Box with a sentence and a list."""
    bullets = "".join(f"<li>{escape(item)}</li>" for item in items)
    bullets = f"<ul>{bullets}</ul>" if bullets else ""
    return f'<div class="warn"><p>{escape(text)}</p>{bullets}</div>\n'


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """List of (name, text)."""
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>\n" for name, text in pairs)
    return f"<dl>\n{items}</dl>\n"


def listed(items: Sequence[str]) -> str:
    """List of sentences."""
    return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>\n"


def scrolled(table: str) -> str:
    """Box for a table that may be wider than the page."""
    return f'<div class="scroll">{table}</div>\n'


def reason(error: Exception, paths: Sequence[Path] = ()) -> str:
    """Text of an error, in which files are named without their folders, see `without_folders`."""
    return f"{type(error).__name__}: {without_folders(str(error), paths)}"


def escape(text: Any) -> str:
    """Text as HTML, in which every character can be seen."""
    return html.escape(shown(str(text), keep="\n\t"))
