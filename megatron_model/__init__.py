"""Character-level transformers, without a screen.

text file -> corpus -> tokenizer -> token array -> batches -> model -> trainer -> events
-> run folder.

The names below are imported when they are first used, so that importing the package, asking for
``--help`` or drawing a first frame does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megatron_model.checkpoint import load_model as load_model
    from megatron_model.classic import TransformerModel as TransformerModel
    from megatron_model.config import RunConfig as RunConfig
    from megatron_model.modern import ModernTransformer as ModernTransformer
    from megatron_model.runner import run_training as run_training
    from megatron_model.sampling import generate as generate
    from megatron_model.sampling import generate_stream as generate_stream
    from megatron_model.tokenizer import CharTokenizer as CharTokenizer
    from megatron_model.trainer import Trainer as Trainer

__version__ = "0.1.0"

_HOMES = {
    "CharTokenizer": "tokenizer",
    "ModernTransformer": "modern",
    "RunConfig": "config",
    "Trainer": "trainer",
    "TransformerModel": "classic",
    "generate": "sampling",
    "generate_stream": "sampling",
    "load_model": "checkpoint",
    "run_training": "runner",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
