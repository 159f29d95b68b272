"""Tables and format version of the two kinds of generation: contexts (large) and explanations (small)."""

from __future__ import annotations

FORMAT_VERSION = 6
STORAGE_VERSION = "v1.2.0"  # readable by DuckDB 1.2 and everything newer

META = "create table meta (key varchar primary key, value varchar not null)"

CONTEXTS = (
    META,
    """create table feature (
        feature uinteger primary key,
        density double not null,
        n_fired ubigint not null,
        mean_act float not null,
        max_act float not null,
        n_documents uinteger not null,
        n_strong ubigint not null,      -- firings of at least a third of max_act
        n_strong_test ubigint not null, -- those in test documents
        n_documents_strong_test uinteger not null, -- test documents that hold one
        histogram blob not null,       -- uint32 [32], bins of log2(activation): see meta 'log2_edges'
        promoted_tokens blob not null, -- uint32
        promoted_logits blob not null, -- float32
        suppressed_tokens blob not null,
        suppressed_logits blob not null,
        neighbours blob not null,      -- uint32, by falling cosine of decoder rows
        neighbour_cosines blob not null,
        coactive blob not null,        -- uint32, features that fire on the same tokens
        coactive_scores blob not null, -- float32, n_both / sqrt(n_one n_other)
        positions blob not null,       -- uint32 [2, positions], strong firings: explain, test (feature_store.indexing.formats)
        formats blob not null,         -- uint32 [2, formats]
        lookup blob not null,          -- float64 [groups, 5], test sums of a, a^2, p, p^2, a p (statistics.py)
        mass_tokens blob not null,     -- uint32, tokens with most of the activation in explain documents
        mass_shares blob not null,     -- float32, their shares of it
        words varchar not null,        -- words around strong firings, one a line (words.py)
        word_hits blob not null,       -- uint32 [2, subsets], strong firings by the subset of these words in the window
        word_covered blob not null     -- uint32 [2, subsets], tokens likewise
    )""",
    """create table context_pack (
        feature uinteger primary key,
        windows blob not null,   -- one record a window: feature_store.packing.WINDOW
        token_ids blob not null, -- uint16 or uint32 (meta 'id_bytes'), all windows in a row
        act_places blob not null, -- uint8: places inside the window where the feature fires
        act_values blob not null, -- uint16: activation / max_act * 65535
        negatives blob not null   -- hard negatives: feature_store.indexing.negatives.NEGATIVE
    )""",
    """create table feature_token ( -- strong firings only
        feature uinteger not null, kind varchar not null, token uinteger not null,
        n_explain uinteger not null, n_test uinteger not null
    )""",
    """create table feature_bigram ( -- strong firings on `second` with `first` before it; the pair's occurrences
        feature uinteger not null, first uinteger not null, second uinteger not null,
        n_explain uinteger not null, n_test uinteger not null,
        occurrences_explain uinteger not null, occurrences_test uinteger not null
    )""",
    "create table token (token uinteger primary key, text blob not null, n_explain ubigint, n_test ubigint)",
    """create table document (
        document uinteger primary key, name varchar not null, n_tokens uinteger not null, is_test boolean not null,
        latents blob not null,  -- uint32, by falling sum of activation
        means blob not null,    -- float32, mean over the document's tokens
        maxima blob not null    -- float32
    )""",
    """create table document_text ( -- empty if the text is not kept
        document uinteger primary key,
        token_ids blob not null -- uint16 or uint32, all of the document
    )""",
    """create table random_window (
        id uinteger primary key, document uinteger not null,
        token_ids blob not null, -- uint16 or uint32
        peak utinyint not null, place uinteger not null, -- of the drawn token: in the window, in its document
        latents blob not null    -- uint32, ascending: every feature that fires anywhere in the window
    )""",
    """create view feature_summary as
        select feature, density, n_fired, mean_act, max_act, n_documents from feature""",
    """create table promotion ( -- of every token the features that raise its logit furthest above their other tokens'
        token uinteger primary key,
        features blob not null, -- uint32, the strongest first
        heights blob not null   -- float32, (logit - mean) / standard deviation over the feature's tokens
    )""",
)

LISTED = "listed"  # meta `promotion`: heights are the values of published lists

EXPLANATIONS = (
    META,
    """create table explanation (
        id uinteger primary key, feature uinteger not null,
        best_rule boolean not null, -- the best of the feature's rules, whether or not a judge's text is its label
        explainer varchar not null, text varchar not null,
        rule varchar, -- JSON list: what an event must have one of; null for texts that only a judge can test
        chosen boolean not null
    )""",
    """create table score (
        feature uinteger not null, explanation uinteger, -- null: about the feature, whatever its label
        scorer varchar not null, metric varchar not null, value double, low double, high double, -- 95 % interval
        chance double not null, baseline double, -- what the lexical baseline reaches
        n_pos uinteger not null, n_neg uinteger not null, n_failed uinteger not null,
        seed ubigint not null, split varchar not null, judge varchar, prompt varchar
    )""",
    """create table label (
        feature uinteger primary key, explainer varchar not null, text varchar not null,
        score double, low double, high double, n_pos uinteger not null, -- held out, with a 95 % interval
        f2 double -- of the text's rule; null for texts that only a judge can test
    )""",
    """create table judged ( -- which windows a scorer read, and what it found
        feature uinteger not null, explanation uinteger not null, scorer varchar not null,
        windows blob not null -- feature_store.packing.JUDGED
    )""",
    """create table place ( -- of a feature on the map: near those that it is like
        feature uinteger primary key, x float not null, y float not null -- 0 to 1
    )""",
    """create table concept (
        concept uinteger primary key, parent uinteger, name varchar not null,
        coverage double not null, -- share of members whose label holds a word of the name
        purity double not null,   -- share of the members' affinity inside the group
        features blob not null    -- uint32
    )""",
)
