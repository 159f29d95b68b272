"""Concepts by example: finds the features that tell positive texts from negative ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from sae.errors import DataError
from sae.interpret.intervals import Interval, balanced_accuracy, best_threshold, proportion

Method = Literal["difference", "top", "tree"]
Scope = Literal["text", "token"]
MOST_FEATURES, DEPTH, LEAST_TEXTS = 16, 3, 8
LEAST_SPREAD = 1e-3  # variance within the classes, in squared differences of their means


class TreeNode(NamedTuple):
    """A question of a decision tree: go to node `below` if the feature's activation is <= `threshold`, else to `above`.

    `share` is the share of positive texts among those that came here. A leaf has no feature.
    """

    feature: int | None
    threshold: float
    below: int
    above: int
    share: float


class _Rule(NamedTuple):
    features: list[int]
    weights: list[float]
    score: Callable[[np.ndarray], np.ndarray]  # of maxima [texts, d_sae], one number per text
    tree: list[TreeNode] | None


@dataclass(frozen=True)
class ConceptByExample:
    """A weighted set of features and a threshold: a text has the concept if sum_i weight_i a_i > threshold.

    a_i is the feature's maximum over the text's tokens. Precision, recall and balanced accuracy have 95 % intervals;
    they come from texts on which neither features nor threshold were chosen. A tree has a rule of its own: `tree` lists
    its nodes, a text has the concept if the share at its leaf exceeds `threshold`, and the weights are importances.
    With `scope` "token" (`token_concept`) a_i is the activation at one token, and a text has the concept if a token has it.
    """

    name: str
    method: Method
    features: list[int]
    weights: list[float]
    threshold: float
    n_positive: tuple[int, int]  # texts to choose on, texts to test on
    n_negative: tuple[int, int]
    precision: Interval
    recall: Interval
    balanced_accuracy: Interval
    chosen_balanced_accuracy: float
    seed: int
    tree: list[TreeNode] | None = None
    scope: Scope = "text"
    token_balanced_accuracy: float | None = None

    def as_json(self) -> dict[str, Any]:
        """The same as plain values."""
        values = asdict(self)
        for key in ("precision", "recall", "balanced_accuracy"):
            ends = (None if x != x else x for x in values[key])
            values[key] = dict(zip(("value", "low", "high"), ends, strict=True))
        return values


def scores_of(stored: Mapping[str, Any], maxima: Float[np.ndarray, "texts d_sae"]) -> Float[np.ndarray, " texts"]:
    """The score of every text for a concept as `as_json` keeps it; the text has the concept above its threshold."""
    if stored.get("tree") is None:
        return maxima[:, stored["features"]] @ np.array(stored["weights"], np.float64)
    nodes = [TreeNode(*node) for node in stored["tree"]]
    out = np.zeros(len(maxima))
    for number, row in enumerate(maxima):
        node = nodes[0]
        while node.feature is not None:
            node = nodes[node.below if row[node.feature] <= node.threshold else node.above]
        out[number] = node.share
    return out


def learn(
    name: str,
    positive: Float[np.ndarray, "n d_sae"],
    negative: Float[np.ndarray, "m d_sae"],
    method: Method = "difference",
    *,
    k: int = MOST_FEATURES,
    seed: int = 0,
) -> ConceptByExample:
    """A concept from the maxima [texts, d_sae] of positive and of negative texts.

    Half of the texts (drawn with `seed`) choose the features and the threshold (by balanced accuracy); the other half
    test. difference: the k features whose class means differ most, weighted by the difference over their variance
    within the classes. top: the one best feature. tree: a decision tree of depth 3 on the k features.
    """
    if k < 1:
        raise DataError(f"concept {name}: k is {k}; at least one feature is needed.")

    fewest = min(len(positive), len(negative))
    if fewest < LEAST_TEXTS:
        raise DataError(
            f"concept {name}: {len(positive)} positive and {len(negative)} negative texts; at least {LEAST_TEXTS} of each are needed."
        )

    rng = np.random.default_rng(seed)
    halves = [np.array_split(rng.permutation(len(x)), 2) for x in (positive, negative)]
    choose = positive[halves[0][0]], negative[halves[1][0]]
    test = positive[halves[0][1]], negative[halves[1][1]]
    features, weights, score, tree = _rule(choose, method, k, seed)
    threshold = best_threshold(score(choose[0]), score(choose[1]))
    is_positive = [score(part) > threshold for part in test]
    hits, false = int(is_positive[0].sum()), int(is_positive[1].sum())
    recall = proportion(hits, len(is_positive[0]))
    silent = proportion(len(is_positive[1]) - false, len(is_positive[1]))
    chosen_accuracy = (float((score(choose[0]) > threshold).mean()) + float((score(choose[1]) <= threshold).mean())) / 2

    return ConceptByExample(
        name, method, features, weights, threshold=threshold, n_positive=(len(choose[0]), len(test[0])), n_negative=(len(choose[1]), len(test[1])),
        precision=proportion(hits, hits + false), recall=recall, balanced_accuracy=balanced_accuracy(recall, silent), chosen_balanced_accuracy=chosen_accuracy, seed=seed, tree=tree,
    )  # fmt: skip


def best_feature(positive: Float[np.ndarray, "n d_sae"], negative: Float[np.ndarray, "m d_sae"]) -> int:
    """The feature that is larger in positive texts by most of its spread within both."""
    rising = positive.mean(0) > negative.mean(0)
    return int(np.argmax(np.where(rising, _strength(positive, negative), -1)))


def _strength(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """By how much of their spread within the classes features differ between them; -1 for those that hardly fire."""
    difference, spread = positive.mean(0) - negative.mean(0), positive.var(0) + negative.var(0)
    strength = np.abs(difference) / np.sqrt(spread + 1e-6 * max(float(spread.max()), 1e-12))
    return np.where((positive > 0).sum(0) + (negative > 0).sum(0) >= 2, strength, -1)


def _rule(choose: tuple[np.ndarray, np.ndarray], method: Method, k: int, seed: int) -> _Rule:
    positive, negative = choose
    difference = positive.mean(0) - negative.mean(0)
    spread = positive.var(0) + negative.var(0)
    if method == "top":
        best = best_feature(positive, negative)
        return _Rule([best], [1.0], lambda x: x[:, best], None)

    order = np.argsort(-_strength(positive, negative), kind="stable")
    order = order[:k]
    if method == "tree":
        from sklearn.tree import DecisionTreeClassifier

        tree = DecisionTreeClassifier(max_depth=DEPTH, class_weight="balanced", random_state=seed)
        tree.fit(np.vstack(choose)[:, order], np.repeat([1, 0], [len(positive), len(negative)]))
        share = lambda x: np.asarray(tree.predict_proba(x[:, order]))[:, 1]  # noqa: E731
        return _Rule(order.tolist(), tree.feature_importances_.tolist(), share, _nodes(tree.tree_, order))

    weights = _difference_weights(difference, spread, order)

    return _Rule(order.tolist(), weights, lambda x: x[:, order] @ np.array(weights), None)


def _difference_weights(difference: np.ndarray, spread: np.ndarray, order: np.ndarray) -> list[float]:
    """The difference of the classes over the variance within them. Where a class is all alike there is no spread to weigh by."""
    least = max(float(spread[order].mean()), LEAST_SPREAD * float(np.square(difference[order]).mean()))
    return (difference[order] / (spread[order] + least)).tolist()


class LinearRule(NamedTuple):
    """Features and their weights."""

    features: list[int]
    weights: list[float]


def linear_rule(
    positive: Float[np.ndarray, "n columns"], negative: Float[np.ndarray, "m columns"], features: Int[np.ndarray, " columns"],
    method: Method, *, k: int,
) -> LinearRule:  # fmt: skip
    """The features that tell rows of two classes apart (`difference`: k of them, `top`: the best), and their weights."""
    if method == "top":
        return LinearRule([int(features[best_feature(positive, negative)])], [1.0])
    order = np.argsort(-_strength(positive, negative), kind="stable")[:k]
    difference, spread = positive.mean(0) - negative.mean(0), positive.var(0) + negative.var(0)
    return LinearRule(features[order].tolist(), _difference_weights(difference, spread, order))


def _nodes(tree: Any, order: np.ndarray) -> list[TreeNode]:
    """A fitted tree as plain values, each node's feature by its number in the dictionary."""
    shares = tree.value[:, 0, 1] / tree.value[:, 0].sum(1)
    columns = zip(tree.feature, tree.threshold, tree.children_left, tree.children_right, shares, strict=True)
    return [
        TreeNode(int(order[feature]) if left >= 0 else None, float(edge), int(left), int(right), share=float(share))
        for feature, edge, left, right, share in columns
    ]
