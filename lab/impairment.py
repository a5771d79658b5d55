"""What is done to the frames of a link: delay, jitter, loss, rate. How it is written, read and kept.

A link is a guest's place on a network. Each direction has an impairment of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from lab.errors import UserError
from lab.topology_values import did_you_mean

TO_GUEST = "to-guest"
FROM_GUEST = "from-guest"
DIRECTIONS = (TO_GUEST, FROM_GUEST)

_TIME_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_RATE_UNITS = {"bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z%]*)")
_VALID = {
    "delay": "a time up to 60s, such as 20ms",
    "jitter": "a time up to 60s, such as 5ms",
    "loss": "a percentage, such as 1%",
    "rate": "bits per second from 8kbit to 100gbit, such as 10mbit",
}
_MAX_SECONDS = 60.0
_RATES = (8_000, 100 * 10**9)


@dataclass(frozen=True)
class Impairment:
    """Seconds, a share between 0 and 1, and bits per second. 0: none of it."""

    delay: float = 0.0
    jitter: float = 0.0
    """The delay of each frame is drawn between delay - jitter and delay + jitter."""
    loss: float = 0.0
    rate: int = 0

    def is_none(self) -> bool:
        """Whether nothing is done to frames."""
        return self == Impairment()

    def words(self) -> str:
        """As the user writes it: `delay=20ms loss=1%`; `none` for nothing."""
        texts = {
            "delay": _format_time(self.delay),
            "jitter": _format_time(self.jitter),
            "loss": f"{self.loss * 100:g}%",
            "rate": _format_rate(self.rate),
        }
        return " ".join(f"{key}={text}" for key, text in texts.items() if getattr(self, key)) or "none"

    def qdisc(self) -> list[str]:
        """What tc is to put on an interface (tc-netem(8))."""
        words = ["netem", "limit", "1000"]
        if self.delay or self.jitter:
            words += ["delay", f"{round(self.delay * 1e6)}us"]
        if self.jitter:
            words += [f"{round(self.jitter * 1e6)}us"]
        if self.loss:
            words += ["loss", "random", f"{self.loss * 100:.6f}%"]
        if self.rate:
            words += ["rate", f"{self.rate}bit"]
        return words


@dataclass(frozen=True)
class LinkImpairment:
    """Both directions of a link."""

    to_guest: Impairment = field(default_factory=Impairment)
    from_guest: Impairment = field(default_factory=Impairment)

    def is_none(self) -> bool:
        """Whether nothing is done in either direction."""
        return self.to_guest.is_none() and self.from_guest.is_none()

    def changed(self, values: dict[str, Any], directions: Iterable[str]) -> LinkImpairment:
        """The impairment with these values instead of its own, in these directions."""
        wanted = set(directions)
        result = self
        if TO_GUEST in wanted:
            result = replace(result, to_guest=_checked(replace(self.to_guest, **values)))
        if FROM_GUEST in wanted:
            result = replace(result, from_guest=_checked(replace(self.from_guest, **values)))
        return result

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> LinkImpairment:
        """The reverse of `dataclasses.asdict`."""
        return cls(Impairment(**data["to_guest"]), Impairment(**data["from_guest"]))


def _checked(impairment: Impairment) -> Impairment:
    if impairment.jitter > impairment.delay:
        raise UserError(
            f"jitter {_format_time(impairment.jitter)} is more than the delay of "
            f"{_format_time(impairment.delay)}; no frame arrives before it was sent"
        )
    return impairment


def parse(words: Iterable[str]) -> dict[str, float | int]:
    """The values of `delay=20ms loss=1% rate=10mbit`. 0 takes one away. Raises `UserError`."""
    values: dict[str, float | int] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if key not in _VALID:
            raise UserError(
                f"{word!r}: unknown impairment{did_you_mean(key, _VALID)}; there are {', '.join(_VALID)}, "
                "such as delay=20ms"
            )
        if not equals:
            raise UserError(f"{word!r} has no value; {key} is {_VALID[key]}")
        values[key] = _parse_value(key, text.strip().lower())
    return values


def _parse_value(key: str, text: str) -> float | int:
    match = _NUMBER.fullmatch(text)
    if match is not None:
        number, unit = float(match[1]), match[2]
        if number == 0 and not unit:
            return 0
        if key in ("delay", "jitter") and unit in _TIME_UNITS and number * _TIME_UNITS[unit] <= _MAX_SECONDS:
            return number * _TIME_UNITS[unit]
        if key == "loss" and unit == "%" and number <= 100:
            return number / 100
        if key == "rate" and unit in _RATE_UNITS:
            rate = round(number * _RATE_UNITS[unit])
            if rate == 0 or _RATES[0] <= rate <= _RATES[1]:
                return rate
    raise UserError(f"{key}={text}: {text!r} is not valid; {key} is {_VALID[key]}")


def _format_time(seconds: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= factor:
            return f"{seconds / factor:g}{unit}"
    return f"{seconds * 1e6:g}us"


def _format_rate(rate: int) -> str:
    for unit in ("gbit", "mbit", "kbit"):
        if rate >= _RATE_UNITS[unit]:
            return f"{rate / _RATE_UNITS[unit]:g}{unit}"
    return f"{rate}bit"
