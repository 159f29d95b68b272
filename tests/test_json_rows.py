"""JSON files as text: rows that differ, bytes and characters that no tokenizer takes, and clear words for the rest."""

from __future__ import annotations

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae.errors import DataError
from sae.text.corpus import DatasetText, documents
from sae.text.json_rows import rows
from sae.text.mixture import parts

VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=2))


def source(path, **settings):
    return DatasetText(source="datasets", path="json", data_files=(str(path),), **settings)


@given(st.lists(st.dictionaries(st.text(), VALUES), min_size=1, max_size=8), st.booleans(), st.booleans())
def test_rows_are_what_was_written(tmp_path_factory, written, as_list, compressed):
    path = tmp_path_factory.mktemp("rows") / ("a.json.gz" if compressed else "a.json")
    text = json.dumps(written, indent=1) if as_list else "\n\n".join(map(json.dumps, written))
    path.write_bytes((gzip.compress if compressed else bytes)(text.encode("utf-8")))
    assert list(rows(str(path))) == written


def test_columns_may_change_within_a_file(tmp_path):
    lines = [
        {"text": "one"},
        {"text": "two", "year": 1900},
        {"year": "unknown"},
        {"text": "three", "year": {"from": 1}},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert [d.content for d in documents(source(tmp_path / "a.jsonl"))] == ["one", "two", "", "three"]


def test_half_of_a_surrogate_pair_is_replaced_and_a_whole_one_is_not(tmp_path, tiny_model):
    from transformers import AutoTokenizer

    (tmp_path / "a.jsonl").write_text('{"text": "a \\ud800 cat, \\ud83d\\ude00"}')
    (part,) = parts(source(tmp_path / "a.jsonl"), AutoTokenizer.from_pretrained(tiny_model))
    assert part.text == "a \ufffd cat, \U0001f600"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"text": "a"}\n{"text": ', r"line 2 with text on it: not valid JSON .*'\{\"text\":'"),
        (b'{"text": "a"}\n["b"]', "line 2: found a JSON list"),
        (b'[{"text": "a"}, 3]', "item 1: found a JSON int"),
        (b'[{"text": "a"', "begins as a list and is not valid JSON"),
        (b'{"body": "a"}', "no column 'text'. Columns: body"),
        (b"[" * 100_000, "begins as a list"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, content, words):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match=words):
        list(documents(source(tmp_path / "a.json")))


def test_a_cut_compressed_file_is_named(tmp_path):
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 100)[:-20])
    with pytest.raises(DataError, match=r"a\.json\.gz"):
        list(documents(source(tmp_path / "a.json.gz")))
