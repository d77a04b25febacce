"""Weights of other programs become a run: nanoGPT's checkpoints, and folders of `transformers`.

Both are read without anything in them being executed.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import pickletools
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from megatron_model.config.fields import DataConfig, ModelConfig, RunConfig, TrainingConfig
from megatron_model.data.tokenizer import CharTokenizer
from megatron_model.events import schema as events
from megatron_model.events.schema import Event, encode_event
from megatron_model.interop import gpt2
from megatron_model.model.factory import misfit, shapes_of
from megatron_model.run.checkpoint import ModelState, write_start
from megatron_model.run.folder import RunFolder
from megatron_model.util.errors import RequestError
from megatron_model.util.files import read_bounded, write_atomically
from megatron_model.util.text import safe

MOST_BYTES = 64 << 20
"""Of a file that describes a model."""
COMPILED = "_orig_mod."
"""What torch.compile puts before the names of weights."""
_BUFFERS = (".attn.bias", ".attn.masked_bias")
"""Masks that some versions save among the weights."""
_PLAIN = frozenset(
    """
    PROTO FRAME MARK STOP POP MEMOIZE BINPUT LONG_BINPUT BINGET LONG_BINGET PUT GET EMPTY_DICT DICT
    SETITEM SETITEMS EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 NONE
    NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE BINUNICODE8
    INT FLOAT UNICODE
    """.split()  # noqa: SIM905 - a list of words reads better as words
)
"""What a pickle of dictionaries, lists, numbers and texts is made of."""


class Read(NamedTuple):
    """A model of another program, as one of ours."""

    state: ModelState
    kind: str
    """What it was, in a few words."""


def read_weights(source: Path, meta: Path | None) -> Read:
    """Read a model that another program saved.

    Args:
        source: a checkpoint of nanoGPT, or a folder of `transformers`.
        meta: nanoGPT's ``meta.pkl``, with the vocabulary.

    Raises:
        RequestError: it is something else, or has a part that the models here have not.
    """
    if source.is_dir():
        if meta is not None:
            raise RequestError("--meta goes with a checkpoint of nanoGPT; a folder has its own.")
        return _read_folder(source)
    if not source.exists():
        raise RequestError(f"{_shown(source)} does not exist.")
    if meta is None:
        meta = source.with_name("meta.pkl")
        if not meta.is_file():
            raise RequestError(
                f"{_shown(source)} says nothing of its vocabulary; name the meta.pkl that was made "
                "with its text: --meta FILE."
            )
    return _read_nanogpt(source, meta)


def import_weights(runs_dir: Path, name: str, source: Path, read: Read) -> RunFolder:
    """Make a run of a model: it can be written with, measured, exported, and learnt on from.

    Raises:
        RequestError: the name cannot be taken, or it cannot be written.
    """
    place = _shown(source.absolute())
    folder = RunFolder.create(runs_dir, name, read.state.config)
    with folder.removed_unless_written():
        folder.write_imported(place)
        write_start(folder.checkpoint_path(read.state.step), read.state)
        write_atomically(
            folder.events_path, b"".join(map(encode_event, _events(name, place, read)))
        )
    return folder


def _events(name: str, place: str, read: Read) -> Iterator[Event]:
    state, shape = read.state, read.state.config.model
    moment, step = time.time(), state.step
    yield events.RunStarted(
        step=0,
        time=moment,
        name=name,
        corpus=f"imported from {place}",
        characters=0,
        vocabulary_size=state.tokenizer.vocab_size,
        parameters=sum(value.numel() for value in state.weights.values()),
        steps=max(1, step),
        device="elsewhere",
        block_size=shape.block_size,
    )
    yield events.Notice(step=0, time=moment, text=f"Imported {read.kind}: weights without curves.")
    if state.val_loss is not None:
        yield events.Evaluated(
            step=step,
            time=moment,
            val_loss=state.val_loss,
            bits_per_character=state.val_loss / math.log(2),
            elapsed_seconds=0.0,
        )
    yield events.RunFinished(step=step, time=moment, reason="completed", elapsed_seconds=0.0)


def _read_nanogpt(source: Path, meta: Path) -> Read:
    where = _shown(source)
    try:
        # Mapped, not read: what it claims to hold costs no memory before it was looked at.
        found = torch.load(source, map_location="cpu", weights_only=True, mmap=True)
        arguments = msgspec.convert(found["model_args"], _Arguments)
        weights = _tensors(found["model"], where)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError) as error:
        raise RequestError(f"{where} is no checkpoint of nanoGPT: {_reason(error)}.") from None
    except pickle.UnpicklingError:
        raise RequestError(
            f"{where} is no checkpoint of nanoGPT: it holds more than tensors and plain values."
        ) from None
    vocabulary = _vocabulary_of(meta)
    width, biased = arguments.n_embd, arguments.bias
    shape = _shape(
        where,
        block_size=arguments.block_size,
        embed_dim=width,
        heads=arguments.n_head,
        layers=arguments.n_layer,
        ff_dim=4 * width,
        dropout=arguments.dropout,
    )
    if arguments.vocab_size != len(vocabulary):
        raise RequestError(
            f"{where} knows {arguments.vocab_size:,} tokens, and {_shown(meta)} has "
            f"{len(vocabulary):,}: it is of another text."
        )
    state = _state(
        _ours(weights, shape, where, transposed=False, biased=biased),
        vocabulary,
        RunConfig(model=shape, data=_data(found.get("config"))),
        step=_number(found.get("iter_num"), int, 0),
        loss=_number(found.get("best_val_loss"), float, None),
        where=where,
    )
    return Read(state, "a checkpoint of nanoGPT")


class _Arguments(msgspec.Struct):
    """What nanoGPT calls ``model_args``."""

    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    vocab_size: int
    bias: bool = False
    dropout: float = 0.0


def _data(config: object) -> DataConfig:
    name = config.get("dataset") if isinstance(config, dict) else None
    return DataConfig(corpus=safe(name, one_line=True) if isinstance(name, str) else "")


def _vocabulary_of(meta: Path) -> str:
    """Return the characters of nanoGPT's ``meta.pkl`` in the order of their tokens.

    Raises:
        RequestError: it holds anything but plain data, or no characters.
    """
    where = _shown(meta)
    try:
        data = read_bounded(meta, MOST_BYTES)
        for operation, argument, _ in pickletools.genops(data):
            # A number of a memo reserves as much memory before a class is even asked for.
            far = operation.name in ("BINPUT", "LONG_BINPUT", "PUT") and int(argument or 0) > len(
                data
            )
            if operation.name not in _PLAIN or far:
                raise RequestError(
                    f"{where} holds more than plain data ({operation.name}); it was not opened."
                )
        found = _PlainUnpickler(io.BytesIO(data)).load()
        characters = found["itos"]
        return "".join(_character(characters[token], where) for token in range(len(characters)))
    except OSError as error:
        raise RequestError(f"Cannot read {where}: {error.strerror}.") from None
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        EOFError,
        pickle.UnpicklingError,
    ) as error:
        raise RequestError(f"{where} is no meta.pkl of nanoGPT: {_reason(error)}.") from None


class _PlainUnpickler(pickle.Unpickler):
    """Dictionaries, numbers and texts: nothing that has a class."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _read_folder(source: Path) -> Read:
    where = _shown(source)
    about = _json(source / "config.json")
    file = source / "model.safetensors"
    if not file.is_file():
        raise RequestError(f"{where} has no model.safetensors; save it with safe_serialization.")
    try:
        weights = _tensors(load_file(file), where)
    except (OSError, ValueError, SafetensorError) as error:
        raise RequestError(f"{_shown(file)} is damaged: {_reason(error)}.") from None
    vocabulary = _vocabulary_in(source)
    kind = about.get("model_type")
    if kind == "gpt2":
        _check_gpt2(about, where)
        width = _number(about.get("n_embd"), int, 0)
        shape = _shape(
            where,
            block_size=about.get("n_positions", 1024),
            embed_dim=width,
            heads=about.get("n_head"),
            layers=about.get("n_layer"),
            ff_dim=about.get("n_inner") or 4 * width,
            dropout=about.get("resid_pdrop", 0.1),
        )
        tied = about.get("tie_word_embeddings", True)
        embedding = weights.get("transformer.wte.weight")
        if tied and embedding is not None:
            head = weights.setdefault("lm_head.weight", embedding)
            if head.shape != embedding.shape or not bool((head == embedding).all()):
                raise RequestError(
                    f"{where} says that its head is its embedding (tie_word_embeddings), and "
                    "lm_head.weight is another one."
                )
        ours = _ours(weights, shape, where, transposed=True, biased=True)
    elif kind == "megatron-characters":
        keys = ("block_size", "embed_dim", "heads", "layers", "ff_dim")
        shape = _shape(where, architecture="modern", **{key: about.get(key) for key in keys})
        ours = weights
    else:
        raise RequestError(f"{where} holds a model of the kind {_short(kind)}; gpt2 is read.")
    state = _state(ours, vocabulary, RunConfig(model=shape), step=0, loss=None, where=where)
    return Read(state, "a folder of transformers")


_MUST_BE: dict[str, tuple[Any, Any]] = {
    "activation_function": ("gelu", "gelu_new"),
    "layer_norm_epsilon": (1e-5, 1e-5),
    "scale_attn_weights": (True, True),
    "scale_attn_by_inverse_layer_idx": (False, False),
}
"""Of GPT-2's configuration: what the classic model does, and what saying nothing means."""


def _check_gpt2(about: Mapping[str, Any], where: str) -> None:
    for key, (ours, usual) in _MUST_BE.items():
        if about.get(key, usual) != ours:
            raise RequestError(
                f"{where} has {key} = {_short(about.get(key, usual))}; the classic model computes "
                f"with {ours}, and would write other text."
            )


def _vocabulary_in(source: Path) -> str:
    """Return the characters of a folder's tokenizer in the order of their tokens."""
    for name in ("tokenizer.json", "vocab.json"):
        path = source / name
        if path.is_file():
            found = _json(path)
            words: Any = found
            if name == "tokenizer.json":
                model = found.get("model")
                words = model.get("vocab") if isinstance(model, dict) else None
                if found.get("normalizer") is not None:
                    raise RequestError(
                        f"{_shown(path)} changes a text before it reads it (normalizer); models "
                        "here read it as it is."
                    )
            break
    else:
        raise RequestError(f"{_shown(source)} has no tokenizer.json and no vocab.json.")
    where = _shown(path)
    if not isinstance(words, dict) or sorted(words.values(), key=str) != sorted(
        range(len(words)), key=str
    ):
        raise RequestError(f"{where} has no vocabulary whose tokens are counted from 0.")
    return "".join(_character(word, where) for word in sorted(words, key=words.__getitem__))


def _character(word: object, where: str) -> str:
    if not isinstance(word, str) or len(word) != 1:
        raise RequestError(
            f"{where} has the token {_short(word)}, which is no single character; models here read "
            "characters."
        )
    return word


def _shape(where: str, **found: Any) -> ModelConfig:
    shape = {"architecture": "classic", "dropout": 0.0, **found}
    try:
        return msgspec.convert(shape, ModelConfig)
    except msgspec.ValidationError as error:
        raise RequestError(
            f"{where} has a shape that no model here has: {_reason(error)}."
        ) from None


def _ours(
    theirs: dict[str, Tensor], shape: ModelConfig, where: str, *, transposed: bool, biased: bool
) -> dict[str, Tensor]:
    """Return the weights of a GPT-2 under the classic model's names.

    Args:
        theirs: by GPT-2's names.
        shape: of the model.
        where: the file.
        transposed: the matrices are, as Hugging Face keeps them.
        biased: it has biases; without them they are zero.

    Raises:
        RequestError: it names a weight that is missing, of another shape, or known to nobody here.
    """
    left = {name for name in theirs if not name.endswith(_BUFFERS)}
    ours = {}
    for name, theirs_name in gpt2.names(shape.layers).items():
        if theirs_name not in theirs and name.endswith(".bias") and not biased:
            ours[name] = torch.zeros(theirs[theirs_name.removesuffix("bias") + "weight"].size(0))
            continue
        if theirs_name not in theirs:
            raise RequestError(f"{where} has no weight {theirs_name}: it is no GPT-2.")
        left.discard(theirs_name)
        value = theirs[theirs_name]
        ours[name] = value.T if transposed and gpt2.transposed(name) and value.dim() == 2 else value
    head = theirs.get("lm_head.bias")
    left.discard("lm_head.bias")
    ours[gpt2.HEAD_BIAS] = torch.zeros(ours["head.weight"].size(0)) if head is None else head
    if left:
        raise RequestError(f"{where} has the weight {_short(min(left))}, which no GPT-2 has.")
    return ours


def _state(
    weights: dict[str, Tensor],
    vocabulary: str,
    config: RunConfig,
    *,
    step: int,
    loss: float | None,
    where: str,
) -> ModelState:
    """Return the model, once its weights have the shapes of its configuration."""
    try:
        tokenizer = CharTokenizer.from_vocabulary(vocabulary)
    except ValueError as error:
        raise RequestError(f"{where}: {_reason(error)}.") from None
    if found := misfit(shapes_of(weights), config.model, len(vocabulary)):
        name, there, wanted = found
        raise RequestError(
            f"{where} does not fit its own description: {_short(name)} is {there}, and should be "
            f"{wanted}."
        )
    for name, value in weights.items():
        if not bool(value.isfinite().all()):
            raise RequestError(f"{where} has weights that are NaN or infinity: {name}.")
    whole = {name: value.clone().contiguous() for name, value in weights.items()}
    config = msgspec.structs.replace(config, training=TrainingConfig(steps=max(1, step)))
    return ModelState(whole, tokenizer, config, step, loss)


def _tensors(found: object, where: str) -> dict[str, Tensor]:
    if not isinstance(found, dict):
        raise RequestError(f"{where} holds no weights.")
    result = {}
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise RequestError(f"{where} has {_short(name)} among its weights, which is none.")
        if not value.dim():
            raise RequestError(f"{where} has {_short(name)}, a single number, among its weights.")
        if not value.is_floating_point() and not name.endswith(_BUFFERS):
            raise RequestError(f"{where} has weights of the kind {value.dtype}: {_short(name)}.")
        result[name.removeprefix(COMPILED)] = value.float()
    return result


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_bounded(path, MOST_BYTES))
    except FileNotFoundError:
        raise RequestError(f"{_shown(path)} does not exist.") from None
    except OSError as error:
        raise RequestError(f"Cannot read {_shown(path)}: {error.strerror}.") from None
    except (ValueError, RecursionError):
        raise RequestError(f"{_shown(path)} is not JSON.") from None
    if not isinstance(found, dict):
        raise RequestError(f"{_shown(path)} describes no model.")
    return found


def _number(found: object, kind: type, otherwise: Any) -> Any:
    """Return a number, also one in a tensor; `otherwise` where it is none."""
    try:
        value = kind(found)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return otherwise
    return value if math.isfinite(value) and 0 <= value < 2**53 else otherwise


def _short(found: object) -> str:
    return safe(str(found), one_line=True)[:100]


def _reason(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return safe(text, one_line=True)[:200].rstrip(".")


def _shown(path: Path) -> str:
    return safe(str(path), one_line=True)
