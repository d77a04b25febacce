"""What the server of the ranks loads once, before any of them is forked from it."""

from __future__ import annotations

import torch._dynamo  # by torch's optimizers and by FSDP, in every process

import megatron_model.cli
import megatron_model.commands
import megatron_model.distributed_sharding
import megatron_model.distributed_worker
import megatron_model.runner

__all__ = ["megatron_model", "torch"]
