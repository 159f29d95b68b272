"""Sparse probing: how well a few latents classify texts, compared with all activations and with random latents."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int

from sae.apply.probes.abstaining import telling_columns
from sae.architectures.settings import batch_of
from sae.evaluation.measure import Measure
from sae.evaluation.probing_data import text_sets
from sae.evaluation.subject import Subject

N_TRAIN, N_TEST, SETS = 200, 200, 113
KS = (1, 2, 5, 16)


def probe_auc(
    train: Float[np.ndarray, "train columns"],
    labels: Int[np.ndarray, " train"],
    test: Float[np.ndarray, "test columns"],
    test_labels: Int[np.ndarray, " test"],
) -> float:
    """Area under the ROC curve, on the test part, of an L2 logistic regression on standardised columns."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(train, labels)
    return float(roc_auc_score(test_labels, model.decision_function(test)))


class Probing(Measure):
    """Mean test AUC over the 113 binary sets of sae-probes (Kantamneni et al. 2025, arXiv 2502.16681).

    Activations at the last token; 100 texts per class to train and as many to test. For k = 1, 2, 5, 16: a logistic
    probe on the k latents whose class means differ most on the training part. Baselines: a probe on all activations,
    and one on k random latents that fire in the training part.
    """

    order = 40
    meanings: ClassVar[dict[str, str]] = {
        **{f"probing.latents.{k}": f"mean test AUC of a probe on {k} chosen latents" for k in KS},
        **{f"probing.random.{k}": f"the same on {k} random live latents, a baseline" for k in KS},
        "probing.activations": "mean test AUC of a probe on the activations themselves, the baseline to beat",
        "probing.beats_activations": "share of the sets on which 16 latents do better than all activations",
    }

    @torch.no_grad()
    def measure(self, subject: Subject) -> dict[str, Any]:
        """See `meanings`."""
        rng, table = np.random.default_rng(subject.seed), {}
        for number, texts in enumerate(text_sets(N_TRAIN, N_TEST, subject.seed)):
            train, train_latents = self._at_last_token(subject, texts.train)
            test, test_latents = self._at_last_token(subject, texts.test)
            labels = (texts.train_labels, texts.test_labels)
            row = {"activations": probe_auc(train, labels[0], test, labels[1])}
            live = np.flatnonzero(train_latents.max(0) > 0)
            for k in KS:
                random = rng.choice(live, min(k, len(live)), replace=False)
                chosen = telling_columns(train_latents, labels[0], k)
                for name, picked in (("latents", chosen), ("random", random)):
                    row[f"{name}.{k}"] = probe_auc(
                        train_latents[:, picked], labels[0], test_latents[:, picked], labels[1]
                    )
            table[texts.name] = row
            subject.progress.update(number + 1, SETS)

        means = {key: float(np.mean([row[key] for row in table.values()])) for key in next(iter(table.values()))}
        beats = [row["latents.16"] > row["activations"] for row in table.values()]

        return {
            "probing": {
                "sets": len(table),
                "activations": means["activations"],
                **{name: {str(k): means[f"{name}.{k}"] for k in KS} for name in ("latents", "random")},
                "beats_activations": float(np.mean(beats)),
                "by_set": table,
            }
        }

    def _at_last_token(self, subject: Subject, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """(activations, dense latents) at the last token of every text, cut to the context length."""
        lm, held_out, sae = subject.lm, subject.held_out, subject.sae
        lengths, rows = [], np.zeros((len(texts), held_out.contexts.ctx_len), np.int64)

        for n, text in enumerate(texts):
            ids = lm.token_ids(text, rows.shape[1])
            rows[n, : len(ids)] = ids
            lengths.append(max(len(ids), 1))

        order = np.argsort(lengths)  # short texts together, cut to their longest
        x = [torch.empty(0)] * len(texts)
        latents = np.zeros((len(texts), sae.d_sae), np.float32)

        for start in range(0, len(order), subject.batch_contexts):
            batch_texts = order[start : start + subject.batch_contexts]
            longest = lengths[batch_texts[-1]]
            ids_of_batch = rows[batch_texts, :longest]
            harvested = held_out.harvester.harvest(ids_of_batch, np.zeros_like(ids_of_batch))
            last = torch.tensor([lengths[i] - 1 for i in batch_texts], device=lm.device)
            at = {
                channel: t[torch.arange(len(batch_texts), device=lm.device), last] for channel, t in harvested.x.items()
            }
            batch = batch_of(sae.config, at)
            code = sae.encode(batch.x)
            dense = torch.zeros(len(batch_texts), sae.d_sae, device=batch.x.device)
            latents[batch_texts] = dense.scatter_add(1, code.top_indices, code.top_acts).cpu().numpy()
            for i, row in zip(batch_texts, batch.x.cpu(), strict=True):
                x[i] = row

        return torch.stack(x).numpy(), latents
