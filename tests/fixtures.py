"""What tests share: small real things to test on, planted stores, small models and dictionaries, scripted judges."""

from __future__ import annotations

import contextlib
import copy
import http.server
import importlib
import io
import json
import math
import os
import pickle
import shutil
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, Union, get_args, get_origin

import httpx
import numpy as np
import pytest
import torch
import yaml
from filelock import FileLock
from pydantic import BaseModel, ConfigDict, create_model

from feature_store import queries
from feature_store.dictionary_files import FilterFacts, LabelSummary, ModelFacts, Provenance, TextFacts
from feature_store.indexing.codes import Codes, codes_of_rows
from feature_store.indexing.contexts import ContextCollector, ContextLimits
from feature_store.indexing.formats import POSITION_EDGES
from feature_store.indexing.generation import Directions, Limits, corpus_of, publish
from feature_store.records import Explanation, FeatureRow, Score
from feature_store.store import Store
from sae.architectures import ARCHITECTURES, Batch, build
from sae.interpret.interpret import InterpretConfig, interpret
from sae.model.hookpoints import Channel
from sae.model.language_model import LanguageModel
from sae.publish import dictionary
from sae.stream.harvest import HarvestConfig, Harvester

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "dog",
    "ran",
    "to",
    "see",
    "red",
    "blue",
    "green",
    "sun",
    "moon",
    "star",
    "tree",
    "house",
    "river",
    "stone",
]


def make_tokenizer(folder: Path) -> Any:
    """A byte-level BPE tokenizer trained on a few words."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator([" ".join(WORDS)] * 50, vocab_size=400, special_tokens=["<s>", "</s>"])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    fast.save_pretrained(folder)
    return fast


def make_text(n_documents: int, seed: int = 0) -> list[str]:
    """Documents of random sentences from a few words."""
    generator = torch.Generator().manual_seed(seed)
    documents = []
    for number in range(n_documents):
        picks = torch.randint(len(WORDS), (60,), generator=generator).tolist()
        documents.append(f"story {number}: " + " ".join(WORDS[i] for i in picks))
    return documents


def save_model(folder: Path) -> Path:
    """Saves a random Llama with 3 layers of width 32 and a tokenizer; returns the folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(exist_ok=True)
    tokenizer = make_tokenizer(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def save_text(path: Path) -> Path:
    """Writes 400 documents as JSON lines; returns the path."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in make_text(400)), encoding="utf-8")
    return path


def small_tree(tiny_model: Path, text_file: Path) -> dict[str, Any]:
    """The configuration of a small run, as YAML would give it."""
    return {
        "name": "tiny",
        "model": {"source": "folder", "path": str(tiny_model), "dtype": "float32"},
        "text": {
            "sources": [{"source": "datasets", "path": "json", "data_files": [str(text_file)]}],
            "ctx_len": 32,
            "held_out_fraction": 0.2,
            "held_out_tokens": 1024,
        },
        "harvest": {"batch_contexts": 8},
        "shuffle": {"reuse": 2, "buffer_bytes": 500_000},
        "train": {
            "tokens": 12_000, "batch_tokens": 128, "lr": 0.003, "warmup_tokens": 1000,
            "checkpoint_tokens": 4000, "log_tokens": 1000,
        },
        "sae": [
            {"name": "first", "architecture": "topk", "hook": "resid_post.1", "d_sae": 64, "k": 4, "k_aux": 16,
             "dead_after_tokens": 3000},
        ],
        "evaluate": {"splice_tokens": 512},
    }  # fmt: skip


def explanations(store: Store, feature: int) -> list[Explanation]:
    """All explanations of a feature, its label first."""
    return queries.features(store, feature, feature + 1)[0].explanations


def feature_scores(store: Store, feature: int) -> list[Score]:
    """Scores of a feature that do not depend on its label."""
    return queries.features(store, feature, feature + 1)[0].scores


def rows_of(store: Store) -> list[FeatureRow]:
    """Every feature as a table shows it, by id."""
    return [store.columns.row(feature) for feature in range(store.n_features)]


def copy_run(source: Path, target: Path) -> Path:
    """Copies a run or dictionary folder without what says who has it, which comes and goes."""
    return Path(shutil.copytree(source, target, ignore=shutil.ignore_patterns(".owner")))


def shared(root: Path, name: str, make: Callable[[Path], Any]) -> tuple[Path, Any]:
    """(folder, what `make` returned) of something made once for all test processes; the others wait for the first.

    `root` is the folder that the processes have in common.
    """
    folder, result = root / name, root / f"{name}.pickle"
    with FileLock(root / f"{name}.lock"):
        if not result.exists():
            folder.mkdir()
            result.write_bytes(pickle.dumps(make(folder)))
    return folder, pickle.loads(result.read_bytes())


def write_config(folder: Path, tree: dict[str, Any], **changes: Any) -> Path:
    """A config file under `folder` with dotted changes applied; runs go to `folder`/runs."""
    tree = copy.deepcopy(tree)
    tree["runs_dir"] = str(folder / "runs")
    for key, value in changes.items():
        node: Any = tree
        *path, last = key.split("__")
        for part in path:
            node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
        node[int(last) if isinstance(node, list) else last] = value
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def run_here(*arguments: Any) -> subprocess.CompletedProcess[str]:
    """`sae ...` in this process: what it prints and its exit code, without the price of a process and its imports."""
    from sae.cli import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([*map(str, arguments)])
        except SystemExit as left:  # argparse
            code = int(left.code or 0)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serving(path: Path | str, *more: str) -> Iterator[str]:
    """Address of a real server process over a run, for the time of the block."""
    port = free_port()
    command = [sys.executable, "-m", "sae.cli", "serve", str(path), "--port", str(port), *more]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    address = f"http://127.0.0.1:{port}"
    for _ in range(100):
        try:
            httpx.get(f"{address}/api/v1/dictionaries").raise_for_status()
            break
        except httpx.HTTPError:
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            time.sleep(0.1)
    try:
        yield address
    finally:
        process.terminate()
        process.communicate(timeout=20)


AXE = Path(__file__).parent.parent / "server" / "ui" / "node_modules" / "axe-core" / "axe.min.js"
RULES = ["wcag2a", "wcag2aa", "wcag21aa", "wcag22aa", "best-practice"]


def violations(page: Any) -> list[tuple[str, list[str]]]:
    """What axe finds on a page by the rules of WCAG 2.2 AA and of good practice: rule, and some of the elements."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("tags => axe.run({ runOnly: tags })", RULES)["violations"]
    return [(rule["id"], [node["html"] for node in rule["nodes"]][:3]) for rule in found]


def settled(page: Any) -> None:
    """Waits until nothing is loading."""
    page.wait_for_function(
        "() => document.querySelector('main h1') && !document.querySelector('.busy')"
        " && !/(Loading|Searching) …/.test(document.querySelector('main').innerText)"
    )


@contextlib.contextmanager
def opened_chromium() -> Iterator[Any]:
    """A headless Chromium for the time of the block."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=chromium(), args=arguments)
        yield browser
        browser.close()


def chromium() -> str | None:
    """Path of a Chromium, if there is one."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


SMALL_MODEL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}


LLAMA = {**SMALL_MODEL, "intermediate_size": 48, "num_key_value_heads": 2}


GPT2 = {"vocab_size": 96, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}


FAMILIES = {
    "GPT2": GPT2,
    "Llama": LLAMA,
    "Mistral": LLAMA,
    "Gemma": {**LLAMA, "head_dim": 12},
    "Gemma2": {**LLAMA, "head_dim": 12, "sliding_window": 16},
    "Gemma3Text": {**LLAMA, "head_dim": 12, "sliding_window": 16},
    "Qwen2": LLAMA,
    "Qwen3": {**LLAMA, "head_dim": 12},
    "Phi": {**SMALL_MODEL, "intermediate_size": 48},
    "Phi3": {**LLAMA, "pad_token_id": 0},
    "OPT": {**SMALL_MODEL, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "Bloom": {"vocab_size": 96, "hidden_size": 32, "n_layer": 3, "n_head": 4},
    "GPTNeoX": {**SMALL_MODEL, "intermediate_size": 48},
    "GPTJ": {**GPT2, "rotary_dim": 4},
    "StableLm": LLAMA,
    "Olmo2": LLAMA,
    "Starcoder2": LLAMA,
}


# Families in which a site is missing, or that saedex refuses.
OTHER_FAMILIES = {
    "Qwen3Moe": {**LLAMA, "moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2},
    "NemotronH": {
        **LLAMA, "layers_block_type": ["mamba", "moe", "attention"], "mamba_num_heads": 4, "mamba_head_dim": 16,
        "ssm_state_size": 8, "n_groups": 2, "chunk_size": 8, "n_routed_experts": 4, "moe_intermediate_size": 24,
        "moe_shared_expert_intermediate_size": 24, "num_experts_per_tok": 2, "head_dim": 8,
    },
    "XLNet": {"vocab_size": 96, "d_model": 32, "n_layer": 3, "n_head": 4, "d_inner": 48},
    "Reformer": {
        "vocab_size": 96, "hidden_size": 32, "attn_layers": ["local"] * 3, "num_attention_heads": 4, "is_decoder": True,
        "attention_head_size": 8, "feed_forward_size": 48, "axial_pos_embds": False, "max_position_embeddings": 64,
        "local_attn_chunk_length": 8,
    },
    "Mamba": {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 3, "state_size": 4},
}  # fmt: skip


def small_model(family: str, **changes: Any) -> LanguageModel:
    """A random model of a family, with 3 layers of width 32."""
    import transformers

    torch.manual_seed(3)
    settings = {"bos_token_id": 0, "eos_token_id": 0, **(FAMILIES | OTHER_FAMILIES)[family], **changes}
    config = getattr(transformers, f"{family}Config")(**settings)
    model = transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norm gains start at 0 and 1: make every term count
            parameter.add_(0.05 * torch.randn_like(parameter))
    tokenizer = SimpleNamespace(all_special_ids=[0], bos_token_id=0)
    return LanguageModel(model, tokenizer, family, "", "", False)


def ids(n=6, length=16):
    """Token ids [n, length] for `small_model`."""
    return np.random.default_rng(0).integers(1, 96, (n, length))


def harvested(lm, hooks, tokens, documents=None, packing="joined", **config):
    """Hook point -> activations [contexts, ctx_len, width]."""
    harvester = Harvester(lm, tuple(map(Channel, hooks)), HarvestConfig(**config), packing)
    made = harvester.harvest(tokens, np.zeros(tokens.shape, np.int64) if documents is None else documents)
    return {channel.hook: x for channel, x in made.x.items()}


D_MODEL, D_SAE, K = 12, 48, 5


def make(name, dtype=torch.float32, **more):
    """A small initialised dictionary of an architecture."""
    config_class = ARCHITECTURES[name].config_class
    wanted = {"hook": "resid_post.0", "d_sae": D_SAE, "k": K, "dead_after_tokens": 100, "target_l0": 6.0}
    known = {key: value for key, value in wanted.items() if key in config_class.model_fields}
    config = config_class(**{"architecture": name, "name": "x", **known, **config_class.example, **more})
    sae = build(config, D_MODEL, selection_dtype=dtype)
    sae.initialise(torch.Generator().manual_seed(1), torch.randn(D_MODEL, generator=torch.Generator().manual_seed(2)))
    with torch.no_grad():
        sae.b_enc.normal_(0, 0.1, generator=torch.Generator().manual_seed(3))
    return sae


def batch(n=64, seed=5, same=True):
    """A batch for `make`'s dictionaries; `same` where the input is the target."""
    x = rows(n, seed)
    return Batch(x, x if same else rows(n, seed + 1), rows(n, seed + 2))


def rows(n=64, seed=5):
    """Random activations for `make`'s dictionaries."""
    return torch.randn(n, D_MODEL, generator=torch.Generator().manual_seed(seed)) * 2


FILTERS = FilterFacts(
    drop_positions=1,
    special_ids_dropped=[0],
    input_scale_folded=1.0,
    median_norm=8.0,
    positions_read=2,
    positions_kept=1,
)


PROVENANCE = Provenance(run="x", model=ModelFacts(name="m"), text=TextFacts(ctx_len=128), filters=FILTERS)


def published(folder, name, **more):
    """A dictionary folder of an architecture whose every tensor matters."""
    sae = make(name, **more)
    if name == "transcoder" and sae.W_skip is not None:
        torch.nn.init.normal_(sae.W_skip, generator=torch.Generator().manual_seed(4))
    for parameter in ("r_mag", "b_mag"):
        if name == "gated":
            torch.nn.init.normal_(sae.get_parameter(parameter), 0, 0.2, generator=torch.Generator().manual_seed(6))
    for seed in range(5):
        sae.observe(sae.losses(batch(seed=seed), torch.tensor(1.0)).training_pass)
    dictionary.publish(folder, sae, PROVENANCE)
    return folder


STREAM_D_SAE, STREAM_K, STREAM_CONTEXTS, STREAM_LENGTH, STREAM_VOCABULARY = 12, 3, 60, 24, 7


STREAM_TOKENS = [b" a", b"b", b" C", b"7", b"\n", b".", b" A"]


class CodeRows(NamedTuple):
    """Codes with k places for every token, easy to count with; an activation of 0 is no latent."""

    ids: np.ndarray
    documents: np.ndarray
    indices: np.ndarray
    acts: np.ndarray

    @property
    def codes(self) -> Codes:
        return codes_of_rows(*self)


def codes(seed, levels=6, contexts=STREAM_CONTEXTS):
    """A stream with few token ids and few activation values, so that equal texts and ties are common."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, STREAM_VOCABULARY, (contexts, STREAM_LENGTH)).astype(np.uint16)
    ids[contexts // 2 :: 3] = ids[0]
    indices = np.stack([rng.permutation(STREAM_D_SAE)[:STREAM_K] for _ in range(contexts * STREAM_LENGTH)])
    indices = indices.reshape(contexts, STREAM_LENGTH, STREAM_K).astype(np.uint16)
    acts = rng.integers(0, levels, (contexts, STREAM_LENGTH, STREAM_K)).astype(np.float32)
    acts[:, 0] = 0
    documents = np.repeat(np.arange(contexts // 3), 3)[:, None].repeat(STREAM_LENGTH, 1).astype(np.uint32)
    return CodeRows(ids, documents, indices, acts)


def collect(stream, limits, batch, seed=0):
    sparse = stream.codes
    collector = ContextCollector(STREAM_D_SAE, limits, sparse.acts, seed)
    for first in range(0, len(stream.ids), batch):
        collector.add(sparse, slice(first, first + batch))
    return collector.finish(STREAM_CONTEXTS * (STREAM_LENGTH - 1))


def no_model() -> Any:
    """In place of a dictionary with its language model."""
    raise AssertionError("what runs by default needs no model")


PLANTED_CONTEXTS, PLANTED_LENGTH, EACH, RANDOM = 900, 60, 6, 20


KINDS = ("token", "next_token", "previous_token", "bigram", "prefix", "position", "format", "two words", "keyphrase")


SILENT = len(KINDS) * EACH + RANDOM


def vocabulary(rng):
    """60 words in families of six with a common beginning, 300 others, 30 numbers; each with a space before it."""
    letters = np.array(list("bcdfghklmnprstvwz"))
    vowels = np.array(list("aeiou"))

    def syllables(n):
        return "".join(rng.choice(letters) + rng.choice(vowels) for _ in range(n))

    families = [f"{'xyq'[i % 3]}{vowels[i // 3]}j" for i in range(EACH)]
    words = [stem + syllables(2) for stem in families for _ in range(6)]
    others: dict[str, None] = {}
    while len(others) < 300:
        others[syllables(3)] = None
    return families, [f" {w}".encode() for w in (*words, *others, *map(str, range(100, 130)))]


def make_planted(folder: Path) -> tuple[LabelSummary, list[str]]:
    """Publishes and labels a store in `folder`: six features for each kind of trigger, 20 that fire at random, one that never does."""
    rng = np.random.default_rng(0)
    families, words = vocabulary(rng)
    ids = rng.integers(0, len(words), (PLANTED_CONTEXTS, PLANTED_LENGTH)).astype(np.uint16)
    place = np.broadcast_to(np.arange(PLANTED_LENGTH), ids.shape)
    first, n_families = 6 * EACH, len(words) - 30
    columns = []
    for i in range(EACH):  # a pair is planted, so that it occurs often enough
        at = rng.random(ids.shape) < 0.003
        at[:, -1] = False
        pair = first + 7 * i + 30 * KINDS.index("bigram")
        ids[at], ids[np.roll(at, 1, axis=1)] = pair, pair + 3
    for kind in KINDS:
        for i in range(EACH):
            a, b = first + 7 * i + 30 * KINDS.index(kind), first + 7 * i + 3 + 30 * KINDS.index(kind)
            before, after = np.roll(ids, 1, axis=1), np.roll(ids, -1, axis=1)
            fires = {
                "token": ids == a,
                "next_token": (after == a) & (place < PLANTED_LENGTH - 1),
                "previous_token": (before == a) & (place > 0),
                "bigram": (before == a) & (ids == b) & (place > 0),
                "prefix": ids // 6 == i,
                "position": np.searchsorted(POSITION_EDGES, place, "right") - 1 == i,
                "format": (ids >= n_families) & (place > 0 if i % 2 else place >= 0),
                "two words": (ids == a) | (ids == b),
                "keyphrase": np.zeros(ids.shape, bool),
            }[kind]
            if kind == "keyphrase":
                for c, p in zip(*(ids == a).nonzero(), strict=True):
                    fires[c, p + 1 : p + 20] = True
            columns.append(fires)
    columns += [rng.random(ids.shape) < 0.02 for _ in range(RANDOM)] + [np.zeros(ids.shape, bool)]
    acts = np.stack(columns, axis=2) * rng.uniform(0.5, 1.0, (*ids.shape, len(columns)))
    indices = np.broadcast_to(np.arange(len(columns), dtype=np.uint16), acts.shape)
    documents = np.repeat(np.arange(PLANTED_CONTEXTS, dtype=np.uint32)[:, None], PLANTED_LENGTH, 1)
    corpus = corpus_of(
        codes_of_rows(ids, documents, indices, acts.astype(np.float32)),
        words,
        [f"d{n}" for n in range(PLANTED_CONTEXTS)],
        document_keys=np.arange(PLANTED_CONTEXTS, dtype=np.uint64),
    )
    target = next(f for f in range(len(columns)) if KINDS[f // EACH] == "next_token")
    pairs = np.tile(np.array([[first + 7 * (target % EACH) + 30, 1]]), (len(columns), 1))
    neighbours = (np.arange(len(columns))[:, None] + np.arange(1, 6)) % len(columns)
    publish(folder / "store", corpus, Directions(pairs, pairs, pairs, pairs, neighbours, np.full(neighbours.shape, 0.05)),
            Limits(ContextLimits(), 4, 0), facts={})  # fmt: skip
    return interpret(folder, InterpretConfig(), no_model), families


@dataclass
class Script:
    """A judge: `reply(system, data, schema)` is the answer's text, or a status code; `seen` are the requests."""

    reply: Any
    chance: Any = None  # of a yes, by what the answer says: then log-probabilities are told where asked
    seen: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""


def told_chances(text, chance):
    """Log-probabilities of an answer, a token a word: every true and false with its opposite beside it."""
    content = []
    for word in text.replace("[", "[ ").replace("]", " ]").split():
        plain_word = word.strip(",")
        yes = chance() if plain_word in ("true", "false") else 1.0
        pairs = {" true": yes, "false,": 1 - yes} if yes < 1 else {word: 1.0}
        top = [{"token": t, "logprob": math.log(max(p, 1e-9)), "bytes": None} for t, p in pairs.items()]
        content.append({"token": word, "logprob": -0.1, "bytes": None, "top_logprobs": top})
    return {"content": content, "refusal": None}


@contextmanager
def scripted_judges() -> Iterator[Callable[..., Script]]:
    """Starts scripted judges, as OpenAI-compatible servers, for the time of the block."""
    servers = []

    def start(reply, chance=None):
        script = Script(reply, chance)

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                script.seen.append(body)
                schema = body.get("response_format", {}).get("json_schema", {}).get("schema", {})
                made = script.reply(body["messages"][0]["content"], json.loads(body["messages"][1]["content"]), schema)
                status, text = (made, "") if isinstance(made, int) else (200, made)
                message = {"role": "assistant", "content": text}
                told = told_chances(text, script.chance) if script.chance and body.get("logprobs") else None
                answer = {
                    "id": "x", "object": "chat.completion", "created": 0, "model": body["model"],
                    "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": told}],
                    "usage": {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13},
                } if status == 200 else {"error": {"message": f"scripted {status}"}}  # fmt: skip
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        script.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        return script

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def imported(name: str) -> Any:
    """A package of a peer; the test is skipped where it is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if os.environ.get("SAEDEX_PEERS"):  # `make test` installs them all, so a missing one is a failure
            return importlib.import_module(name)
        return pytest.importorskip(name, exc_type=ImportError)


STRICT = ConfigDict(extra="forbid", strict=True)


def strict(annotation: Any) -> Any:
    """The annotation with every model in it replaced by one that wants all keys, refuses others, and converts nothing."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields: dict[str, Any] = {
            name: (strict(field.annotation), ...) for name, field in annotation.model_fields.items()
        }
        return create_model(f"Strict{annotation.__name__}", __config__=STRICT, **fields)
    arguments = tuple(map(strict, get_args(annotation)))
    if get_origin(annotation) is list:
        return list[arguments[0]]
    if arguments and type(None) in arguments:
        return Union[arguments]  # noqa: UP007  (a tuple of types)
    return annotation
