"""Configuration: a frozen value; every wrong one is refused with all its problems, the nearest key and exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest
from fixtures import run_here, write_config

from sae.errors import ConfigError
from sae.pipeline.config import RunConfig, explain, load_config

CONFIGS = sorted((Path(__file__).parent.parent / "training_configs").glob("*.yaml"))


@pytest.mark.parametrize(
    "change",
    [
        {"text__sources__0__data_files": ["https://reader:canary@example.org/a.jsonl"]},
        {"interpret": {"judge": {"base_url": "http://canary@127.0.0.1:1/v1", "model": "m"}}},
    ],
)
def test_an_address_with_a_password_is_refused_and_not_repeated(tmp_path, tree, change):
    done = run_here("train", write_config(tmp_path, tree, **change))
    assert done.returncode == 2 and "holds a name or password" in done.stderr and "canary" not in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_shipped_config_loads(path):
    assert load_config(path).name


def test_configs_are_frozen_and_hash_by_value(tmp_path, tree):
    path = write_config(tmp_path, tree)
    config = load_config(path)
    assert config.sha256() == load_config(path).sha256()
    assert config.sha256() != load_config(path, ("train.lr=0.004",)).sha256()
    with pytest.raises(ValueError, match="frozen"):
        config.name = "other"


def test_overrides_and_readable_numbers(tmp_path, tree):
    path = write_config(tmp_path, tree, train__tokens="12_000")
    config = load_config(path, ("train.tokens=1e6", "sae.0.k=3", "log.project=x"))
    assert (config.train.tokens, config.sae[0].k, config.log.project) == (1_000_000, 3, "x")


WRONG = [
    ({"train__lrr": 1}, "train.lrr: unknown key; did you mean 'lr'"),
    ({"sae__0__d_sea": 64}, "unknown key; did you mean 'd_sae'"),
    ({"text__sources__0__pth": "x"}, "unknown key; did you mean 'path'"),
    ({"sae__0__k": 65}, "k is 65, allowed is 1..d_sae (64)"),
    ({"sae__0__k": 0}, "greater than or equal to 1 (given: 0)"),
    ({"sae__0__k": True}, "a whole number is wanted"),
    ({"sae__0__k": 2.5}, "a whole number is wanted (given: 2.5)"),
    ({"sae__0__hook": "residual.1"}, "a hook point is site.layer"),
    ({"sae__0__hook": "mlp_out"}, "a hook point is site.layer"),
    ({"sae__0__architecture": "topkk"}, "sae.0.architecture: 'topkk' is not known; did you mean 'topk'"),
    (
        {"sae__0__architecture": "gradient", "sae__0__beta": -1},
        "sae.0.beta: input should be greater than or equal to 0",
    ),
    ({"sae__0__grid": {"k": []}}, "sae: entry 0: grid maps settings to lists of values"),
    ({"sae__0__grid": {"k": [2, 4]}}, "k is given both in the grid and beside it"),
    ({"sae__0__name": "x-{kk}", "sae__0__grid": {"lr": [0.1]}}, "the settings in braces have to be of this entry"),
    ({"evaluate__measures": ["splices"]}, "no measure 'splices'; allowed measures are reconstruction, splice"),
    ({"sae": []}, "at least 1 item"),
    ({"train__lr": 0}, "train.lr: input should be greater than 0"),
    ({"train__lr": float("nan")}, "train.lr: input should be a finite number"),
    ({"train__tokens": "many"}, "train.tokens: input should be a valid integer"),
    ({"train__batch_tokens": 10**9}, "train.batch_tokens: 1000000000 is more than train.tokens"),
    ({"text__ctx_len": 1}, "text.ctx_len: input should be greater than or equal to 2"),
    ({"harvest__drop_positions": 32}, "leaves nothing of text.ctx_len 32"),
    ({"text__sources__0__source": "internet"}, "installed-docs"),
    ({"text__sources__0__data_files": None}, "reads files: give `data_files`"),
    ({"model": {"source": "hub", "repo": "gpt2"}}, "give `revision` as a 40-digit commit"),
    ({"model": {"source": "package", "parts": [], "sha256": "abc", "licence": "Gemma"}}, "at least 1 item"),
    ({"name": "../escape"}, "name: string should match pattern"),
    ({"interpret__explainers": ["tokens"]}, "allowed are token, next_token, previous_token"),
    ({"log__wandb": "maybe"}, "'off', 'offline' or 'online'"),
    ({"model": None}, "model"),
]


@pytest.mark.parametrize(
    ("change", "message"), WRONG, ids=[str(next(iter(c))) + f"-{n}" for n, (c, _) in enumerate(WRONG)]
)
def test_wrong_configs_are_refused_in_one_clear_line(tmp_path, tree, change, message):
    with pytest.raises(ConfigError) as caught:
        load_config(write_config(tmp_path, tree, **change))
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


def test_all_problems_come_at_once(tmp_path, tree):
    changes = {"train__lrr": 1, "sae__0__k": 0, "text__ctx_len": 1, "harvst": {}}
    with pytest.raises(ConfigError) as caught:
        load_config(write_config(tmp_path, tree, **changes))
    text = str(caught.value)
    assert "4 problems" in text
    assert all(
        key in text for key in ("train.lrr", "sae.0.k", "text.ctx_len", "harvst: unknown key; did you mean 'harvest'")
    )


@pytest.mark.parametrize("section", ["train", "text", "harvest", "shuffle", "sae.0"])
def test_every_key_misspelt_by_one_letter_is_caught(tmp_path, tree, section):
    names = {"train": "train", "text": "text", "harvest": "harvest", "shuffle": "shuffle", "sae.0": "sae"}
    keys = [
        key.split(".")[-1]
        for key, _, _ in explain()
        if key.replace("[]", "").split("<")[0].startswith(f"{names[section]}.") and key.count(".") == 1
    ]
    for key in keys:
        with pytest.raises(ConfigError, match="unknown key"):
            load_config(write_config(tmp_path, tree, **{f"{section.replace('.', '__')}__{key}x": 1}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nname: b\n", "'name' is given twice"),
        ("a: &x [1]\nb: *x\n", "aliases are not allowed"),
        ("- 1\n", "a mapping of sections is wanted"),
        ("a: [1\n", "not valid YAML"),
        ("a: !!python/object:os.system x\n", "not valid YAML"),
        ("", "a mapping of sections is wanted"),
    ],
)
def test_bad_yaml(tmp_path, text, message):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        load_config(path)


def test_command_line_refuses_without_writing(tmp_path, tree):
    done = run_here("train", write_config(tmp_path, tree, train__lrr=1))
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean 'lr'" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()
    missing = run_here("train", tmp_path / "absent.yaml")
    assert missing.returncode == 2 and "cannot be read" in missing.stderr
    override = run_here("train", write_config(tmp_path, tree), "--set", "train.tokens")
    assert override.returncode == 2 and "key.key=value" in override.stderr


def test_every_field_has_a_description_and_is_explained():
    rows = explain(RunConfig)
    assert len(rows) > 60
    assert all(text.strip() for _, _, text in rows)
    sections = {key.split(".")[0] for key, _, _ in rows if "." in key}
    for section in sections:
        most = 19 if section.startswith("sae") else 12  # ten settings of a dictionary are every architecture's
        assert sum(key.startswith(f"{section}.") and key.count(".") == 1 for key, _, _ in rows) <= most


def test_a_grid_is_one_dictionary_per_combination(tmp_path, tree):
    shared = {"hook": "resid_post.1", "d_sae": 64}
    grid = {"architecture": ["topk", "batch_topk"], "k": [2, 4]}
    entry = {**shared, "name": "{architecture}-k{k}", "grid": grid}
    config = load_config(write_config(tmp_path, tree, sae=[entry, {**shared, "name": "alone", "architecture": "relu"}]))
    assert [(s.name, s.architecture) for s in config.sae] == [
        ("topk-k2", "topk"), ("topk-k4", "topk"), ("batch_topk-k2", "batch_topk"), ("batch_topk-k4", "batch_topk"),
        ("alone", "relu"),
    ]  # fmt: skip
    named = load_config(write_config(tmp_path, tree, sae={**shared, "architecture": "topk", "grid": {"k": [2, 4]}}))
    assert [s.name for s in named.sae] == ["sae-k-2", "sae-k-4"]
