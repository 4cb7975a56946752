"""Pieces of HTML. Every text goes through `escape` here, and every picture into the page itself."""

import base64
import io
from html import escape
from pathlib import Path
from typing import Sequence

import numpy as np
from PIL import Image

from ocl_msf.results.report.comparison import Cell, Table

SHARPNESS = 1.4  # pixels of a figure for each pixel of the page
STYLE = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")


def document(title: str, parts: Sequence[str]) -> str:
    """A whole page."""
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>{escape(title)}</title>\n<style>\n{STYLE}</style>"
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en">\n<head>{head}</head>\n<body>\n{body}\n</body>\n</html>\n'


def heading(level: int, text: str, name: str = "") -> str:
    """A heading, with a name that links of the page can go to."""
    return f"<h{level}{_attribute('id', name)}>{escape(text)}</h{level}>"


def paragraph(text: str, kind: str = "", words: Sequence[str] = ()) -> str:
    """A paragraph of plain text, and some words of code at its end."""
    ends = "".join(f" <code>{escape(word)}</code>" for word in words)
    return f"<p{_attribute('class', kind)}>{escape(text)}{ends}</p>"


def table(content: Table, wrap: bool = False) -> str:
    """A table that scrolls in a box of its own where the page is too narrow for it; `wrap` breaks long texts."""
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in content.headings)
    rows = "\n".join("<tr>" + "".join(map(_cell, range(len(row)), row)) + "</tr>" for row in content.rows)
    label = _attribute("aria-label", f"Table: {content.title}")
    box = f'<div class="scroll" role="region" tabindex="0"{label}>'
    kind = _attribute("class", "wrap" if wrap else "")
    return f"{box}<table{kind}><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>"


def _cell(column: int, cell: Cell) -> str:
    note = f"<small>{escape(cell.note)}</small>" if cell.note else ""
    return f"<td>{escape(cell.text)}{note}</td>" if column else f'<th scope="row">{escape(cell.text)}{note}</th>'


def code(lines: Sequence[str], wrap: bool = False) -> str:
    """Lines of code or of commands."""
    text = escape("\n".join(lines))
    return f'<pre tabindex="0"{_attribute("class", "wrap" if wrap else "")}>{text}</pre>'


def folded(title: str, parts: Sequence[str], is_open: bool = False) -> str:
    """Parts behind a line that opens them."""
    inside = "\n".join(parts)
    return f"<details{' open' if is_open else ''}><summary>{escape(title)}</summary>\n{inside}</details>"


def plot(png: bytes, alternative: str, caption: str) -> str:
    """A figure, as wide as it was drawn, which scrolls in a box of its own where the page is much too narrow."""
    with Image.open(io.BytesIO(png)) as picture:
        width = round(picture.width / SHARPNESS)
    kind = "plot" if width > 560 else "plot small"
    box = f'<div class="{kind}" role="region" tabindex="0" aria-label="Figure">{_image(png, alternative, width)}</div>'
    return f"<figure>{box}{_caption(escape(caption))}</figure>"


def scene(picture: np.ndarray, alternative: str, score: str, rest: str) -> str:
    """One scene (h, w, 3), uint8, of a gallery."""
    with io.BytesIO() as file:
        Image.fromarray(picture).save(file, "png", optimize=True)
        image = _image(file.getvalue(), alternative)
    return f"<figure>{image}{_caption(f'<b>{escape(score)}</b> {escape(rest)}')}</figure>"


def _image(png: bytes, alternative: str, width: int = 0) -> str:
    data = base64.b64encode(png).decode("ascii")
    size = _attribute("width", str(width) if width else "")
    return f'<img src="data:image/png;base64,{data}" alt="{escape(alternative)}"{size}>'


def _caption(text: str) -> str:
    return f"<figcaption>{text}</figcaption>"


def _attribute(name: str, value: str) -> str:
    return f' {name}="{escape(value)}"' if value else ""
