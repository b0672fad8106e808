"""Templates are filled with escaped values, and pictures become addresses."""

import jinja2
import numpy as np
import pytest
from caureid_plugin.common.pages import image_uri, render
from markupsafe import Markup
from PIL import Image

from helpers.page import picture


@pytest.fixture
def template(tmp_path):
    (tmp_path / "row.html.j2").write_text("<i>{{ name }}</i>")
    path = tmp_path / "page.html.j2"
    path.write_text('{% for name in names %}\n  {% include "row.html.j2" %}\n{% endfor %}\nend\n')
    return path


def test_values_are_escaped_unless_they_are_markup(template):
    page = render(template, {"names": ["<b>&", Markup("<b>")]})
    assert page == "<i>&lt;b&gt;&amp;</i><i><b></i>end"


def test_a_name_that_is_not_there_is_an_error(template):
    with pytest.raises(jinja2.UndefinedError, match="'names' is undefined"):
        render(template, {"name": "x"})


@pytest.mark.parametrize("kind, error", [("png", 0), ("jpeg", 12)])
def test_an_image_comes_back(kind, error):
    ramp = np.arange(0, 240, 10, dtype=np.uint8)
    pixels = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], np.uint8(100)), axis=2)
    found = np.asarray(picture(image_uri(Image.fromarray(pixels), kind))).astype(int)
    assert np.abs(found - pixels).max() <= error
