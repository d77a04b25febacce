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
    from megatron_model import events as events
    from megatron_model.config.fields import DataConfig as DataConfig
    from megatron_model.config.fields import ModelConfig as ModelConfig
    from megatron_model.config.fields import RunConfig as RunConfig
    from megatron_model.config.fields import SamplingConfig as SamplingConfig
    from megatron_model.config.fields import TrainingConfig as TrainingConfig
    from megatron_model.config.fields import config_from_toml as config_from_toml
    from megatron_model.config.fields import with_settings as with_settings
    from megatron_model.config.presets import PRESETS as PRESETS
    from megatron_model.config.presets import get_preset as get_preset
    from megatron_model.data.tokenizer import CharTokenizer as CharTokenizer
    from megatron_model.events.state import RunState as RunState
    from megatron_model.inference.sampler import generate as generate
    from megatron_model.inference.sampler import generate_stream as generate_stream
    from megatron_model.library import Model as Model
    from megatron_model.library import Run as Run
    from megatron_model.library import load as load
    from megatron_model.library import preflight as preflight
    from megatron_model.library import resume as resume
    from megatron_model.library import train as train
    from megatron_model.model.classic import TransformerModel as TransformerModel
    from megatron_model.model.modern import ModernTransformer as ModernTransformer
    from megatron_model.run.checkpoint import load_model as load_model
    from megatron_model.run.folder import RunFolder as RunFolder
    from megatron_model.run.folder import list_runs as list_runs
    from megatron_model.run.runner import run_training as run_training
    from megatron_model.training.trainer import Trainer as Trainer
    from megatron_model.util.errors import RequestError as RequestError
    from megatron_model.util.errors import RunFailedError as RunFailedError

__version__ = "0.1.0"

_HOMES = {
    "CharTokenizer": "data.tokenizer",
    "DataConfig": "config.fields",
    "Model": "library",
    "ModelConfig": "config.fields",
    "ModernTransformer": "model.modern",
    "PRESETS": "config.presets",
    "RequestError": "util.errors",
    "Run": "library",
    "RunConfig": "config.fields",
    "RunFailedError": "util.errors",
    "RunFolder": "run.folder",
    "RunState": "events.state",
    "SamplingConfig": "config.fields",
    "Trainer": "training.trainer",
    "TrainingConfig": "config.fields",
    "TransformerModel": "model.classic",
    "config_from_toml": "config.fields",
    "generate": "inference.sampler",
    "generate_stream": "inference.sampler",
    "get_preset": "config.presets",
    "list_runs": "run.folder",
    "load": "library",
    "load_model": "run.checkpoint",
    "preflight": "library",
    "resume": "library",
    "run_training": "run.runner",
    "train": "library",
    "with_settings": "config.fields",
}
__all__ = ["__version__", "events", *_HOMES]


def __getattr__(name: str) -> object:
    if name == "events":
        return import_module(f"{__name__}.events")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
