"""A recommender as a model: its table, its ranking, concepts of items with their null, and the whole way of the commands."""

from __future__ import annotations

import gzip
import json
import re
from contextlib import closing

import numpy as np
import pytest
import torch
from fixtures import run_here

from feature_store.results.findings import Finding
from feature_store.store import Store
from sae.apply.recommender.interactions import Columns, Item, read_sequences
from sae.apply.recommender.item_concepts import Firings, coherences, concepts_of, item_concepts, strong_from
from sae.apply.recommender.judged_concepts import judged_concepts
from sae.apply.recommender.model import FIRST, PAD, RecommenderSettings, last_logits, model_of, ranking, train, windows
from sae.apply.recommender.recommendations import Histories
from sae.errors import ConfigError, DataError
from sae.interpret.judging.judge import Judge, JudgeConfig

COLUMNS = Columns()
GENRES = ("Comedy", "Drama", "War", "Noir")


def write_tables(folder, n_users=60, n_items=40, seed=0):
    """Users who love one genre: three of four of their items are of it."""
    rng = np.random.default_rng(seed)
    genre = np.arange(n_items) % len(GENRES)
    items = ["movieId,title,year,genres", *(f"{n},Film {n},{1980 + n % 30},{GENRES[genre[n]]}" for n in range(n_items))]
    rows = ["userId,movieId,rating,timestamp"]
    for user in range(n_users):
        loved = np.flatnonzero(genre == user % len(GENRES))
        others = rng.permutation(np.setdiff1d(np.arange(n_items), loved))[:3]
        picked = rng.permutation(np.concatenate([rng.permutation(loved)[:9], others]))
        rows += [f"{user},{item},4,{time}" for time, item in enumerate(picked)]
    (folder / "items.csv").write_text("\n".join(items), encoding="utf-8")
    with gzip.open(folder / "ratings.csv.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(rows))
    return folder / "ratings.csv.gz", folder / "items.csv"


def test_sequences_are_in_the_order_of_time_and_of_frequent_users_and_items(tmp_path):
    ratings, items = write_tables(tmp_path)
    sequences = read_sequences(ratings, items, COLUMNS)
    assert len(sequences.users) == 60 and all(len(user) >= 5 for user in sequences.users)
    assert {item.title for item in sequences.items} <= {f"Film {n} ({1980 + n % 30})" for n in range(40)}
    (tmp_path / "r.csv").write_text(
        "userId,movieId,timestamp\n"
        + "\n".join(f"a,{n},{9 - n}" for n in range(5))
        + "\n"
        + "\n".join(f"b{m},{n},1" for m in range(5) for n in range(5))
    )
    (tmp_path / "i.csv").write_text("movieId\n0\n1\n")
    small = read_sequences(tmp_path / "r.csv", tmp_path / "i.csv", COLUMNS)
    assert small.users[0] == [4, 3, 2, 1, 0] and small.items[3] == Item("3", "item 3", ())


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("userId,movieId\n1,2\n", ConfigError, "no column timestamp; it has userId, movieId"),
        ("userId,movieId,timestamp\n1,2,soon\n", DataError, "row 1: 'soon' is no time"),
        ("userId,movieId,timestamp\n1,2,3\n", DataError, "have 5 interactions"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path, text, error, words):
    (tmp_path / "r.csv").write_text(text)
    (tmp_path / "i.csv").write_text("movieId\n2\n")
    with pytest.raises(error, match=words):
        read_sequences(tmp_path / "r.csv", tmp_path / "i.csv", COLUMNS)
    with pytest.raises(ConfigError, match=r"ends in \.csv or \.tsv"):
        read_sequences(tmp_path / "r.json", tmp_path / "i.csv", COLUMNS)


def test_windows_and_ranks():
    rows = windows([[0, 1, 2, 3, 4], [5]], 3)
    assert rows.tolist() == [[4, 5, 6], [2, 3, PAD], [7, PAD, PAD]]
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.5] + [0.0] * 10])
    assert ranking(scores, [1]).gain.tolist() == [1] and ranking(scores, [2]).gain.tolist() == [1 / np.log2(4)]
    assert ranking(scores, [5]).hit.tolist() == [0]  # of fourteen equal ones it counts as the last


def test_padding_and_other_users_do_not_change_scores_and_history_is_not_recommended():
    model = model_of(12, RecommenderSettings(width=16, history=6)).eval()
    alone = last_logits(model, [[3, 4]], 6)
    together = last_logits(model, [[3, 4], [0, 1, 2, 5, 6, 7, 8]], 6)
    assert torch.allclose(alone[0], together[0], atol=1e-5)
    assert alone[0, [3, 4]].tolist() == [-torch.inf] * 2 and torch.isfinite(alone[0]).sum() == 10
    assert model.get_output_embeddings().weight.shape[0] == 12 + FIRST


def test_training_learns_who_loves_what_and_gives_the_same_weights_again(tmp_path):
    sequences = read_sequences(*write_tables(tmp_path), COLUMNS)
    settings = RecommenderSettings(width=16, history=12, epochs=25, lr=1e-2, dropout=0.0)
    model = train(sequences, settings)
    again = train(sequences, settings)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    scores = last_logits(model, [user[:-1] for user in sequences.users], 12)
    genre = [item.categories[0] for item in sequences.items]
    loved = [max(set(names), key=names.count) for names in ([genre[i] for i in user] for user in sequences.users)]
    right = np.mean([genre[int(row.argmax())] == name for row, name in zip(scores, loved, strict=True)])
    assert right > 0.5  # a fourth by chance


def planted(n_samples=1500, n_latents=12, seed=0):
    """Latents that fire where the recommended item has one genre; the last three fire anywhere."""
    rng = np.random.default_rng(seed)
    items = [Item(str(n), f"Film {n}", (GENRES[n % 4],)) for n in range(80)]
    recommended = rng.integers(0, 80, n_samples)
    rows = []
    for latent in range(n_latents):
        genre = latent % 4 if latent < n_latents - 3 else None
        fires = (
            rng.random(n_samples) < 0.1 if genre is None else (recommended % 4 == genre) & (rng.random(n_samples) < 0.3)
        )
        rows += [(sample, latent, rng.exponential()) for sample in np.flatnonzero(fires)]
    sample, latent, act = map(np.array, zip(*rows, strict=True))
    return Firings(sample, latent, act, recommended), concepts_of(items)


def test_planted_concepts_are_found_and_random_latents_are_at_chance():
    firings, concepts = planted()
    found = item_concepts(firings, concepts)
    for concept in found[:9]:
        assert concepts.names[concept.concept] == GENRES[concept.latent % 4]
        assert concept.confidence > 0.7 and concept.recall == 1 and concept.null < 0.65
        assert concept.confidence == pytest.approx((concept.recall + concept.silence) / 2)
    assert all(concept.confidence < 0.75 for concept in found[9:])
    chance = [c.confidence for seed in range(20) for c in item_concepts(*planted(seed=seed))[9:]]
    assert np.mean(chance) == pytest.approx(
        0.5, abs=0.05
    )  # the concept is chosen on other samples than it is tested on


def test_a_concept_that_no_strong_sample_has_is_at_chance():
    """As many samples of a kind: silence on all of them is half right."""
    rng = np.random.default_rng(0)
    items = [Item(str(n), f"Film {n}", (GENRES[n % 4],) if n % 20 == 0 else ()) for n in range(200)]
    recommended = rng.integers(0, 200, 1000)
    sample = np.concatenate([rng.permutation(1000)[:n] for n in (11, 13, 400)])
    latent = np.repeat([0, 1, 2], (11, 13, 400))
    firings = Firings(sample, latent, rng.exponential(size=len(sample)), recommended)
    for concept in item_concepts(firings, concepts_of(items)):
        assert concept.confidence <= 0.65 and concept.confidence == pytest.approx(
            (concept.recall + concept.silence) / 2
        )


def test_levels_are_global_deciles_and_scarce_latents_are_left_out():
    assert strong_from(np.arange(1, 101, dtype=float)) == pytest.approx(np.quantile(np.arange(1, 101), 0.4))
    firings, concepts = planted()
    weak = firings._replace(act=np.where(firings.latent == 2, firings.act * 1e-3, firings.act))
    assert 2 not in [concept.latent for concept in item_concepts(weak, concepts)]


def test_items_of_one_direction_are_coherent():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(60, 16))
    vectors[:10] = vectors[0] + 0.01 * rng.normal(size=(10, 16))
    recommended = np.arange(60)
    sample, latent = np.concatenate([np.arange(10), np.arange(20, 40), [41]]), np.repeat([0, 2, 3], (10, 20, 1))
    firings = Firings(sample, latent, rng.exponential(size=31), recommended)
    alike, mixed, single, absent = coherences(firings, vectors, np.array([0, 2, 3, 4]))
    assert alike > 0.99 and abs(mixed) < 0.4 and np.isnan([single, absent]).all()


def film_judge(knows):
    """A judge who names the genre that most recommended films share, and tells samples by it; or says 10 to everything."""

    def genre(title):
        return GENRES[int(re.findall(r"Film (\d+)", title)[0]) % len(GENRES)]

    def reply(_system, data, schema):
        if "description" in schema["properties"]:
            found = [genre(sample["recommended"]) for sample in data["samples"]]
            return json.dumps({"description": max(GENRES, key=found.count)})
        if not knows:
            return json.dumps({"levels": [10] * len(data["samples"])})
        return json.dumps({"levels": [9 * (genre(s["recommended"]) == data["description"]) for s in data["samples"]]})

    return reply


def planted_histories():
    """Eight latents of one genre each, twice; every sample recommends a film of its latent's genre."""
    rng = np.random.default_rng(1)
    items = [Item(str(n), f"Film {n}", (GENRES[n % 4],)) for n in range(80)]
    latent = np.repeat(np.arange(8), 60)
    recommended = 4 * rng.integers(0, 20, len(latent)) + latent % 4
    firings = Firings(np.arange(len(latent)), latent, rng.exponential(size=len(latent)) + 1, recommended)
    histories = [rng.integers(0, 80, 12).tolist() for _ in range(len(latent))]
    return firings, Histories(items, histories), histories


def test_a_judge_that_knows_films_is_sure_and_one_that_always_says_yes_is_at_chance(tmp_path, judges):
    firings, histories, samples = planted_histories()
    labelled = item_concepts(firings, concepts_of(histories.items))
    for knows in (True, False):
        script = judges(film_judge(knows))
        with closing(Judge(JudgeConfig(base_url=script.url, model="x"), tmp_path / f"{knows}.sqlite")) as judge:
            found = judged_concepts(judge, labelled, firings, samples, histories=histories, seed=0)
        assert [c.latent for c in found] == list(range(8)) and found[0].description == GENRES[0]
        assert len(script.seen[0]["messages"]) == 2 and "Film" in script.seen[0]["messages"][1]["content"]
        for concept in found:
            assert concept.confidence == pytest.approx((concept.recall + concept.silence) / 2)
            assert concept.confidence > 0.8 if knows else concept.confidence == concept.null == 0.5


def test_from_a_table_of_ratings_to_audited_latents(tmp_path, judges):
    """The whole way: recommender, dictionary, store of item sequences, audit."""
    ratings, items = write_tables(tmp_path, n_users=120)
    out = tmp_path / "films"
    options = ("--width", 16, "--history", 12, "--epochs", 12)
    done = run_here("recommend", "train", ratings, "--items", items, "--out", out, *options)
    assert done.returncode == 0, done.stderr
    assert "NDCG@10" in done.stderr + done.stdout
    sets = ("runs_dir=" + str(tmp_path / "runs"), "train.tokens=6000", "sae.0.k=4", "sae.0.d_sae=64")
    done = run_here("train", out / "config.yaml", *(word for s in sets for word in ("--set", s)))
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs/films/dictionaries/taste"
    with closing(Store(folder / "store")) as store:  # contexts of items, as people know them
        assert any(
            b"Film" in bytes(token) for token in store.cursor().execute("select text from token").fetchnumpy()["text"]
        )
    done = run_here("recommend", "audit", folder)
    assert done.returncode == 0, done.stderr
    finding = Finding.read(folder / "findings/recommend")
    figures = {figure.name: figure.value for figure in finding.figures}
    assert figures["confidence"] > 0.5 and figures["HR@10"] > 0.2  # pyright: ignore
    assert finding.tables[0].rows and "concept" in finding.summary
    line = json.loads((out / "sequences.jsonl").read_text().splitlines()[0])
    assert line["text"].count(" | ") == len(line["items"]) - 2
    again = run_here("recommend", "train", ratings, "--items", items, "--out", out)
    assert again.returncode != 0 and str(out) in again.stderr
    assert {"confidence, untrained", "coherence, untrained"} <= set(figures) and "confidence, judged" not in figures
    judge = judges(film_judge(True))
    done = run_here("recommend", "audit", folder, "--judge", judge.url, "--judged", 6, "--name", "judged")
    assert done.returncode == 0, done.stderr
    judged = Finding.read(folder / "findings/judged")
    assert len(judged.tables[-1].rows) == 6 and judged.tables[-1].title == "Descriptions by a language model"
    assert any(figure.name == "confidence, judged" for figure in judged.figures)
    wrong = run_here("recommend", "audit", folder, "--data", tmp_path)
    assert wrong.returncode != 0 and "no recommender of `sae recommend train`" in wrong.stderr
