"""BatchTopK: the tokens * k largest activations of a batch, so that one token may use more latents than another."""

from __future__ import annotations

from typing import Literal, final

from pydantic import Field

from sae.architectures.selections import BatchKeepsK, BatchSelected


@final
class BatchTopKConfig(BatchKeepsK):
    """Settings of a BatchTopK dictionary."""

    architecture: Literal["batch_topk"] = Field(
        default="batch_topk", description="Keep the largest activations of the whole batch, k per token on average."
    )


@final
class BatchTopK(BatchSelected[BatchTopKConfig]):
    """BatchTopK sparse autoencoder; a threshold takes the place of the batch at inference.

    Paper: BatchTopK sparse autoencoders, Bussmann, Leask, Nanda 2024, arXiv 2412.06410, equations 5 to 7.
    Differs from the paper: the threshold is averaged over a number of tokens instead of updates.
    """

    config_class = BatchTopKConfig
