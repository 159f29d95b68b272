"""All that a run needs, for processes that are forked: of `preloaded`'s server, and of the harness in `faults`."""

import gc

import datasets  # noqa: F401
import matplotlib.figure  # noqa: F401
import pyarrow.parquet  # noqa: F401
import torch.distributed  # noqa: F401
import transformers  # noqa: F401
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: F401

import sae.api
import sae.apply.concept
import sae.cli
import sae.interop.transfer
import sae.pipeline.run  # noqa: F401

gc.freeze()
