"""Character-level transformers, without a screen.

text file -> corpus -> tokenizer -> token array -> batches -> model -> trainer -> events
-> run folder.

The names below are imported when they are first used, so that importing the package, asking for
``--help`` or drawing a first frame does not wait for torch.
"""

from importlib import import_module

# Not typing's: nothing may be imported here that the current folder of ``python -m`` could hold.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from megatron_model.config.fields import RunConfig as RunConfig
    from megatron_model.data.tokenizer import CharTokenizer as CharTokenizer
    from megatron_model.inference.sampler import generate as generate
    from megatron_model.inference.sampler import generate_stream as generate_stream
    from megatron_model.model.classic import TransformerModel as TransformerModel
    from megatron_model.model.modern import ModernTransformer as ModernTransformer
    from megatron_model.run.checkpoint import load_model as load_model
    from megatron_model.run.runner import run_training as run_training
    from megatron_model.training.trainer import Trainer as Trainer

__version__ = "0.1.0"

_HOMES = {
    "CharTokenizer": "data.tokenizer",
    "ModernTransformer": "model.modern",
    "RunConfig": "config.fields",
    "Trainer": "training.trainer",
    "TransformerModel": "model.classic",
    "generate": "inference.sampler",
    "generate_stream": "inference.sampler",
    "load_model": "run.checkpoint",
    "run_training": "run.runner",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
