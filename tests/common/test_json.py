from __future__ import annotations

import math

import pytest

from gr00t_trt.common.files import MAX_JSON_DEPTH, parse_json


def test_values() -> None:
    assert parse_json('\ufeff{"a": [1, 2.5, "x", null, true]}') == {"a": [1, 2.5, "x", None, True]}
    assert math.isnan(parse_json("[NaN]")[0])
    assert parse_json("-Infinity") == -math.inf


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")])
def test_depth(opening, closing) -> None:
    levels = MAX_JSON_DEPTH // len(closing)
    inside = "1" if opening[-1] == ":" else ""
    parse_json(opening * levels + inside + closing * levels)
    for more in (levels + 1, 100_000):
        for text in (opening * more + inside + closing * more, opening * 100_000):
            with pytest.raises(ValueError, match="nested deeper than 100 levels"):
                parse_json(text)


@pytest.mark.parametrize("text", ["", "{", '{"a": }', "[1,]", "9" * 5000, "\x00"])
def test_malformed_text(text) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)
