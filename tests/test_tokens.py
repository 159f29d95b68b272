"""Text to contexts: nothing lost, held out by hash, resumable anywhere, the same whatever the interruptions."""

from __future__ import annotations

import csv
import hashlib
import json
import zipfile
from itertools import islice

import numpy as np
import pytest
from fixtures import make_text, make_tokenizer

from sae.errors import ArtefactError, DataError
from sae.foundation.downloads import PackagePart, join_members
from sae.foundation.screen import Progress
from sae.model.vocabulary import token_bytes
from sae.text.corpus import DatasetText, InstalledDocs, Mixture, PackageText, documents
from sae.text.tokens import TextConfig, build, is_held_out, manifest


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def config(path, **more):
    source = {"source": "datasets", "path": "json", "data_files": [str(path)]}
    return TextConfig(sources=(source,), ctx_len=16, held_out_fraction=0.3, held_out_tokens=320, **more)


def test_streams_are_the_documents_in_order_and_disjoint(tmp_path, tokenizer, text_file):
    train, held_out = build(
        config(text_file), tokenizer, prepend_bos=False, n_tokens=4000, folder=tmp_path, progress=Progress()
    )
    names = train.document_names(), held_out.document_names()
    assert not set(names[0]) & set(names[1])
    texts = [json.loads(line)["text"] for line in text_file.read_text().splitlines()]
    for contexts, mine in ((train, False), (held_out, True)):
        expected = [t for t in texts if is_held_out(t, 0.3) == mine]
        ids = [i for t in expected for i in [*tokenizer(t, add_special_tokens=False).input_ids, tokenizer.eos_token_id]]
        flat = contexts.ids.reshape(-1)
        assert flat.tolist() == ids[: len(flat)]
        owners = contexts.documents.reshape(-1)
        assert (np.diff(owners.astype(int)) >= 0).all()
    assert train.n_contexts == 250 and held_out.n_contexts == 20


def test_every_context_begins_with_bos_where_the_model_needs_it(tmp_path, tokenizer, text_file):
    with_bos, _ = build(
        config(text_file), tokenizer, prepend_bos=True, n_tokens=3200, folder=tmp_path / "a", progress=Progress()
    )
    without, _ = build(
        config(text_file), tokenizer, prepend_bos=False, n_tokens=3200, folder=tmp_path / "b", progress=Progress()
    )
    assert (with_bos.ids[:, 0] == tokenizer.bos_token_id).all()
    flat = with_bos.ids[:, 1:].reshape(-1)
    assert np.array_equal(flat, without.ids.reshape(-1)[: len(flat)])
    owners = with_bos.documents[:, 1:].reshape(-1)
    assert np.array_equal(owners, without.documents.reshape(-1)[: len(owners)])


def test_an_interrupted_build_ends_with_the_same_bytes(tmp_path, tokenizer, text_file, monkeypatch):
    monkeypatch.setattr("sae.text.tokens.DOCUMENTS_PER_BATCH", 10)
    build(config(text_file), tokenizer, prepend_bos=True, n_tokens=6000, folder=tmp_path / "whole", progress=Progress())
    calls = []

    class Stopping(Progress):
        def update(self, done, total=None, **figures):
            calls.append(1)
            if len(calls) % 3 == 0:
                raise KeyboardInterrupt

    for _ in range(40):
        try:
            build(
                config(text_file),
                tokenizer,
                prepend_bos=True,
                n_tokens=6000,
                folder=tmp_path / "parts",
                progress=Stopping(),
            )
            break
        except KeyboardInterrupt:
            with (tmp_path / "parts" / "train" / "ids.bin").open("ab") as file:
                file.write(b"torn")
    assert len(calls) > 4
    for name in ("train/ids.bin", "train/documents.bin", "train/documents.txt", "held_out/ids.bin", "position.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


def test_too_little_text_says_how_much_there_was(tmp_path, tokenizer, text_file):
    with pytest.raises(DataError, match=r"needs 1,000,000 train tokens, the sources gave [\d,]+"):
        build(
            config(text_file),
            tokenizer,
            prepend_bos=False,
            n_tokens=1_000_000,
            folder=tmp_path / "a",
            progress=Progress(),
        )
    train, _ = build(
        config(text_file, on_end="stop"),
        tokenizer,
        prepend_bos=False,
        n_tokens=1_000_000,
        folder=tmp_path / "b",
        progress=Progress(),
    )
    assert train.n_contexts > 100


@pytest.mark.parametrize("content", ["", '{"text": ""}\n', '{"text": "   "}\n{"text": null}\n'])
def test_empty_text_is_refused(tmp_path, tokenizer, content):
    path = tmp_path / "empty.jsonl"
    path.write_text(content)
    with pytest.raises(DataError):
        build(
            config(path, on_end="stop"),
            tokenizer,
            prepend_bos=False,
            n_tokens=1000,
            folder=tmp_path / "t",
            progress=Progress(),
        )


def test_a_missing_column_is_named(text_file):
    source = DatasetText(source="datasets", path="json", data_files=(str(text_file),), column="body")
    with pytest.raises(DataError, match=r"no column 'body'. Columns: text"):
        list(documents(source))


def test_files_of_every_format_read_alike_and_skip(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = make_text(7)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    (tmp_path / "a.txt").write_text("".join(t + "\n" for t in texts))
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text"], *[[t] for t in texts]])
    for kind, name in (("json", "a.jsonl"), ("text", "a.txt"), ("parquet", "a.par*"), ("csv", "a.csv")):
        source = DatasetText(source="datasets", path=kind, data_files=(str(tmp_path / name),))
        assert [d.text for d in documents(source)] == texts


def test_mixtures_follow_their_weights_and_resume(tmp_path):
    paths = []
    for name in ("a", "b"):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": name * 400}) + "\n" for _ in range(200)))
        paths.append(path)
    sources = tuple(
        DatasetText(source="datasets", path="json", data_files=(str(p),), weight=w)
        for p, w in zip(paths, (3, 1), strict=True)
    )
    mixture = Mixture(sources)
    drawn = []
    for _ in range(100):
        chosen, document = mixture.next_document()
        mixture.tokens[chosen] += 100
        drawn.append(document.name)
    assert mixture.taken == [75, 25]
    resumed = Mixture(sources, mixture.taken, mixture.tokens)
    assert resumed.next_document() == mixture.next_document()


def make_wheel(tmp_path, members):
    path = tmp_path / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"name": "thing", "version": "1.0", "archive_sha256": digest, "archive": path}


def test_package_members_are_read_joined_and_checked(tmp_path):
    part = make_wheel(tmp_path, {"d/1.txt": b"one ", "d/2.txt": b"two", "e.bin": b"no"})
    source = PackageText(source="package", part=PackagePart(**part, member="d/*.txt"))
    assert [d.text for d in documents(source)] == ["one ", "two"]
    target = tmp_path / "joined"
    join_members((PackagePart(**part, member="d/*.txt"),), hashlib.sha256(b"one two").hexdigest(), target)
    assert target.read_bytes() == b"one two"
    with pytest.raises(ArtefactError, match="SHA-256 is"):
        join_members((PackagePart(**part, member="e.bin"),), "0" * 64, target)
    assert not target.exists()
    with pytest.raises(ArtefactError, match="no member matches 'x'"):
        list(documents(PackageText(source="package", part=PackagePart(**part, member="x"))))
    wrong = {**part, "archive_sha256": "0" * 64}
    with pytest.raises(ArtefactError, match="the config pins 0000"):
        list(documents(PackageText(source="package", part=PackagePart(**wrong, member="e.bin"))))


def test_installed_docs_are_long_different_and_ordered(tmp_path, tokenizer):
    stream = documents(InstalledDocs(source="installed-docs"))
    first = [next(stream) for _ in range(300)]
    assert all(len(d.text) >= 200 for d in first)
    assert len({d.text for d in first}) == 300
    assert len({d.name.split("/")[0] for d in first}) >= 4
    again = islice(documents(InstalledDocs(source="installed-docs")), 100, None)
    assert [next(again) for _ in range(200)] == first[100:]
    text = TextConfig(sources=({"source": "installed-docs"},), ctx_len=16, held_out_tokens=160)
    build(text, tokenizer, prepend_bos=False, n_tokens=1000, folder=tmp_path, progress=Progress())
    about = manifest(text, tmp_path)
    assert about["installed"]["torch"] and len(about["sha256"]) == 64 and "saedex" not in about["installed"]


def test_token_bytes_spell_any_text(tokenizer):
    spelled = token_bytes(tokenizer)
    for text in ("the cat", "naïve café ☕ 東京", "tab\tand\nline"):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert b"".join(spelled[i] for i in ids).decode() == text


def test_sentencepiece_tokens_are_spelled_too():
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, "\u2581the": 1, "<0xE2>": 2, "cat": 3}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    raw.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>")
    assert token_bytes(fast) == [b"<unk>", b" the", b"\xe2", b"cat"]
