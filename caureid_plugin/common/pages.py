"""Pages of HTML that need no other file: templates are filled, and pictures stand in the page."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image


def render(template: Path, content: dict[str, Any]) -> str:
    """A page.

    Args:
        template: file of a Jinja template, which may include others of its folder. Values are
            escaped, unless they are ``markupsafe.Markup``.
        content: all names that the template uses.

    Raises:
        jinja2.UndefinedError: the template uses another name.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent), autoescape=True,
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(template.name).render(content)


def data_uri(content: bytes, kind: str) -> str:
    """A picture's file as an address of a page; ``kind``: of the picture, png or jpeg."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def image_uri(image: Image.Image, kind: str = "jpeg") -> str:
    """An image as an address of a page; JPEG loses a little."""
    file = io.BytesIO()
    image.save(file, kind.upper(), **({"quality": 80} if kind == "jpeg" else {}))
    return data_uri(file.getvalue(), kind)
