"""HTML pages that load nothing from elsewhere, from templates that escape every value."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np
from markupsafe import Markup

HERE = Path(__file__).parent
JPEG_QUALITY = 82
_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(HERE),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    keep_trailing_newline=True,
)


def render(template: str, **values: Any) -> str:
    """Return the page of a template, a path below `jobs/`, with these values."""
    return _TEMPLATES.get_template(template).render(**values)


def render_with_script(template: str, script: str, data: Any, **values: Any) -> str:
    """Return a page that runs one script of this project, and no other.

    The page must not insert text as markup. Its Content-Security-Policy allows the script by its
    hash, so that a name in the data that is markup could not run either.

    Args:
        template: The path of the template below `jobs/`; it receives `script`, `script_hash`, and
            `data` besides the values.
        script: The path of the script below `jobs/`.
        data: What the script shows, as JSON.
        values: The other values of the template.
    """
    code = (HERE / script).read_text()
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return render(
        template, script=Markup(code), script_hash=f"sha256-{digest}", data=Markup(text), **values
    )


def jpeg(picture: np.ndarray, side: int | None = None) -> bytes:
    """Return a JPEG.

    Args:
        picture: RGB `uint8 [H, W, 3]`.
        side: The longer side in pixels to which a larger picture is shrunk; None keeps its size.
    """
    factor = min(1, side / max(picture.shape)) if side else 1
    if factor < 1:
        size = [max(1, round(length * factor)) for length in (picture.shape[1], picture.shape[0])]
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    quality = (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY)
    return cv2.imencode(".jpg", picture[..., ::-1], quality)[1].tobytes()


def data_uri(picture: np.ndarray, side: int | None = None) -> str:
    """Return a picture as a JPEG in a data URI; see `jpeg`."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg(picture, side)).decode()}"
