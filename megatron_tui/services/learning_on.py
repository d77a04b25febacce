"""Makes the folders of runs that begin with a model's weights. Reads both: for worker threads."""

from __future__ import annotations

from pathlib import Path

from megatron_model.config.fields import RunConfig
from megatron_model.run.folder import RunFolder


def learning_on(model: RunFolder, corpus: str, runs_dir: Path) -> RunFolder:
    """Return a run that goes on from a recorded one with another text, by its own recipe.

    Raises:
        RequestError: model or text cannot be read, or the folder not be written.
    """
    from megatron_model.run.request import ask, start_from

    request = ask(corpus, start=start_from(str(model.path.absolute()), runs_dir))
    return request.create(runs_dir, request.name_in(runs_dir))


def begun_with(model: Path, config: RunConfig, runs_dir: Path, name: str) -> RunFolder:
    """Return a run with just these settings that begins with the weights of another one.

    Raises:
        RequestError: model or text cannot be read, or the folder not be written.
    """
    from megatron_model.data.corpus import find_corpus
    from megatron_model.data.token_cache import prepare_now
    from megatron_model.run.request import Request, start_from
    from megatron_model.run.taken_recipe import check_shape

    start = start_from(str(model), runs_dir)
    check_shape(config, start.model.config)
    data = config.data
    source = find_corpus(data.corpus, data.reading)
    prepared = prepare_now(source, data.encoding, errors=data.errors)
    return Request(start.name, config, prepared, start).create(runs_dir, name)
