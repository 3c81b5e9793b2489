"""Saved layouts, which are JSON: numbers, names and nesting that no layout has."""

from __future__ import annotations

import copy
import json
from typing import Any, Final

from .draw import Draw
from .states import CPUS, standard

_VALUES: Final[tuple[Any, ...]] = (
    *(
        None,
        True,
        "x",
        "0x",
        "",
        -1,
        0,
        1,
        62,
        63,
        64,
        576,
        2440,
        1 << 20,
        1 << 40,
        10**40,
        1e308,
        1.5,
        [],
        {},
    ),
    *(
        "0xe7",
        "0b1",
        "7",
        "-0x7",
        "1_0",
        "\x1b[31m",
        float("inf"),
        float("-inf"),
        float("nan"),
        [[]],
        {"a": 1},
    ),
)
_TEXTS: Final = (
    *(
        "[" * 100_000,
        '{"a":' * 50_000 + "1" + "}" * 50_000,
        '{"size":' + "9" * 5000 + "}",
        "",
        "{",
        "[]",
        "1e999",
    ),
    *('"\\ud800"', '{"format":"standard","format":"compacted"}', "\ufeff{}", '{"layout":' * 900 + "}" * 900),
)


def layout(draw: Draw, *, far: bool = False) -> bytes:
    """A layout, or a document that has one, as a file."""
    if draw.chance(12):
        return draw.mangled(draw.pick(_TEXTS).encode("utf-8", "surrogatepass"), 60)
    document = copy.deepcopy(standard(draw.pick(CPUS)).to_dict())
    for _ in range(draw.few(4)):
        _change(draw, document)
    kept: Any = {"schema": "fpstate-convert/1", "layout": document} if draw.chance(60) else document
    if draw.chance(6):
        kept = {"layout": draw.pick(_VALUES)}
    text = json.dumps(kept, indent=draw.pick((None, 1)))
    return draw.mangled(text.encode(), 40)


def _change(draw: Draw, document: dict[str, Any]) -> None:
    places = document.get("places")
    entries = [each for each in places if isinstance(each, dict)] if isinstance(places, list) else []
    target = draw.pick(entries) if entries and draw.chance(128) else document
    if not target:
        return
    key = draw.pick(sorted(target))
    way = draw.below(6)
    if way == 0:
        del target[key]
    elif way == 1 and entries:
        places.append(dict(draw.pick(entries)))
    elif way == 2 and isinstance(target[key], int):
        target[key] = draw.odd(int(target[key]), 8, 255)
    else:
        target[key] = draw.pick(_VALUES)
