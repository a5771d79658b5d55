"""The jinja2 templates of libvirt XML."""

from __future__ import annotations

import functools
from typing import Any

import jinja2


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("lab"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )


def render(template: str, /, **values: Any) -> str:
    """The template of that name with these values, escaped for XML. A value that the template misses
    raises.
    """
    return _environment().get_template(f"{template}.xml.j2").render(**values)
