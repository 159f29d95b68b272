"""Tables and format version of the two kinds of generation: contexts (large) and explanations (small)."""

from __future__ import annotations

FORMAT_VERSION = 1
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
        histogram blob not null,       -- uint32 [32], bins of log2(activation): see meta 'log2_edges'
        promoted_tokens blob not null, -- uint32
        promoted_logits blob not null, -- float32
        suppressed_tokens blob not null,
        suppressed_logits blob not null,
        neighbours blob not null,      -- uint32, by falling cosine of decoder rows
        neighbour_cosines blob not null
    )""",
    """create table context_pack (
        feature uinteger primary key,
        windows blob not null,   -- one record a window: feature_store.packing.WINDOW
        token_ids blob not null, -- uint16 or uint32 (meta 'id_bytes'), all windows in a row
        act_places blob not null, -- uint8: places inside the window where the feature fires
        act_values blob not null  -- uint16: activation / max_act * 65535
    )""",
    """create table feature_token ( -- strong firings only
        feature uinteger not null, kind varchar not null, token uinteger not null,
        n_explain uinteger not null, n_test uinteger not null
    )""",
    "create table token (token uinteger primary key, text blob not null, n_explain ubigint, n_test ubigint)",
    """create table document (
        document uinteger primary key, name varchar not null, n_tokens uinteger not null, is_test boolean not null,
        latents blob not null,  -- uint32, by falling sum of activation
        means blob not null,    -- float32, mean over the document's tokens
        maxima blob not null    -- float32
    )""",
    """create table random_window (
        id uinteger primary key, document uinteger not null,
        token_ids blob not null, -- uint16 or uint32
        latents blob not null    -- uint32, ascending: every feature that fires anywhere in the window
    )""",
    """create view feature_summary as
        select feature, density, n_fired, mean_act, max_act, n_documents from feature""",
    """create view promoted as
        select feature, unnest(range(0, octet_length(promoted_tokens) // 4)) as rank,
            ('0x' || substr(h, rank * 8 + 7, 2) || substr(h, rank * 8 + 5, 2)
                  || substr(h, rank * 8 + 3, 2) || substr(h, rank * 8 + 1, 2))::uinteger as token
        from (select *, hex(promoted_tokens) as h from feature)""",
)

EXPLANATIONS = (
    META,
    """create table explanation (
        id uinteger primary key, feature uinteger not null, explainer varchar not null, text varchar not null,
        chosen boolean not null
    )""",
    """create table score (
        explanation uinteger not null, scorer varchar not null, metric varchar not null, value double,
        chance double not null, n_pos uinteger not null, n_neg uinteger not null, split varchar not null
    )""",
    """create table label (
        feature uinteger primary key, explainer varchar not null, text varchar not null, score double
    )""",
)
