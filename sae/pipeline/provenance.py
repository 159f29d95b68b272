"""The provenance of a trained dictionary, for its card; `feature_store.dictionary_files` has the card's type."""

from __future__ import annotations

from feature_store.dictionary_files import (
    FilterFacts,
    ModelFacts,
    Provenance,
    TextFacts,
    TokenizerFacts,
    TrainingFacts,
)
from sae.model.model_folder import tokenizer_sha256
from sae.pipeline.stage import Run
from sae.text import tokens
from sae.training.trainer import SaeTrainer


def provenance_of(run: Run, trainer: SaeTrainer) -> Provenance:
    """Run, model, corpus, filters and training of a dictionary; every process must call it."""
    config, sources, statistics = run.config, run.prepared, trainer.statistics
    lm = sources.lm
    n_dead = trainer.n_dead()
    return Provenance(
        run=config.name,
        config_sha256=config.sha256(),
        seed=config.seed,
        model=ModelFacts(
            name=lm.name,
            sha256=lm.sha256,
            licence=lm.licence,
            dtype=str(sources.dtype).removeprefix("torch."),
            n_layers=lm.n_layers,
            prepend_bos=lm.prepend_bos,
        ),
        tokenizer=TokenizerFacts(sha256=tokenizer_sha256(lm.tokenizer), size=len(lm.tokenizer)),
        corpus=tokens.manifest(config.text, run.folder / "tokens"),
        text=TextFacts(ctx_len=config.text.ctx_len, packing=config.text.packing),
        filters=FilterFacts(
            drop_positions=config.harvest.drop_positions,
            special_ids_dropped=lm.special_ids if config.harvest.drop_special else [],
            input_scale_folded=statistics.scale,
            max_norm=statistics.max_norm,
            median_norm=statistics.median_norm,
            positions_read=sources.train.contexts.n_contexts * config.text.ctx_len,
            positions_kept=trainer.tokens_seen // config.shuffle.reuse,
        ),
        training=TrainingFacts(
            activations_seen=trainer.tokens_seen,
            reuse=config.shuffle.reuse,
            optimiser=config.train.model_dump(mode="json"),
            dead_at_end=n_dead,
        ),
    )
