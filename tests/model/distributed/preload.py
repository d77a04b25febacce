"""What the server of the ranks loads once, before any of them is forked from it."""

from __future__ import annotations

import torch._dynamo  # by torch's optimizers and by FSDP, in every process

import megatron_model.cli.parser
import megatron_model.cli.verbs.train
import megatron_model.distributed.fsdp
import megatron_model.distributed.worker
import megatron_model.run.runner

__all__ = ["megatron_model", "torch"]
