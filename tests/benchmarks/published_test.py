"""The page of estimates beside speeds that others measured."""

import json
import pathlib

import pytest

from benchmarks import published

DOCS = pathlib.Path(__file__).parents[2] / "docs"


def test_the_page_is_what_its_plans_say():
    plans = json.loads((DOCS / "PUBLISHED.json").read_text())
    assert published.render(plans) == (DOCS / "PUBLISHED.md").read_text()


def test_what_was_measured_is_counted_as_runs_are():
    """Six operations for a token and a weight, twelve for an element of a head and a key that it sees, half a row."""
    one = published.MEASURED["Llama-2-70B"]
    weights = 80 * (8192 * (2 * 8192 + 2 * 1024) + 3 * 8192 * 28672) + 8192 * 32000
    operations = 6 * weights + 12 * 80 * 8192 * 4096 / 2
    assert published.counted(one, published.shape(one)) == pytest.approx(operations * 692 / 459e12, rel=2e-3)
