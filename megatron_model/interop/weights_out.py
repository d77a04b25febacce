"""A model's weights in each of the formats that others read, whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from megatron_model.data.tokenizer import CharTokenizer
from megatron_model.interop import gguf_file, huggingface
from megatron_model.run.checkpoint import (
    LoadedModel,
    ModelState,
    save_plain_weights,
    write_model,
)
from megatron_model.run.taken_recipe import name_of
from megatron_model.util.errors import RequestError
from megatron_model.util.files import whole_folder, write_atomically
from megatron_model.util.text import safe


def export_model(
    model: LoadedModel, source: Path, output: Path, kind: str, *, overwrite: bool = False
) -> str:
    """Write a model; return what there is to say about its use, if anything.

    Args:
        model: on the CPU.
        source: its model file.
        output: a file, or for ``hf`` a folder.
        kind: ``pt``, ``safetensors``, ``gguf`` or ``hf``.
        overwrite: replace a folder, if it holds nothing but what an export writes.

    Raises:
        RequestError: the format cannot hold the model, or something else is at `output`.
        OSError: it cannot be written.
    """
    name = name_of(source)
    weights = model.model.state_dict()
    if kind == "pt":
        save_plain_weights(output, weights, mode=0o666)
    elif kind == "safetensors" and source.suffix == ".safetensors":
        write_atomically(output, source.read_bytes(), mode=0o666)
    elif kind == "safetensors":
        state = ModelState(weights, model.tokenizer, model.config, model.step, model.val_loss)
        write_model(output, state)
    elif kind == "gguf":
        _check_characters(model.tokenizer)
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "model.gguf"
            gguf_file.write_gguf(model, name, file)
            write_atomically(output, file.read_bytes(), mode=0o666)
    else:
        _check_characters(model.tokenizer)
        _check_free(output, overwrite)
        with whole_folder(output) as folder:
            opened = huggingface.write_folder(model, name, folder)
        _publish(output)
        return "it needs trust_remote_code=True" if "trust_remote_code" in opened else ""
    return ""


def _check_characters(tokenizer: CharTokenizer) -> None:
    """Refuse characters that are no text in UTF-8.

    Raises:
        RequestError: it names them.
    """
    lone = [character for character in tokenizer.vocabulary if 0xD800 <= ord(character) < 0xE000]
    if lone:
        named = ", ".join(f"U+{ord(character):04X}" for character in lone[:20])
        raise RequestError(f"The format holds no halves of characters, and the model has {named}.")


def _check_free(output: Path, overwrite: bool) -> None:
    """Refuse to write over what is not an export of ours, or was not to be replaced.

    Raises:
        RequestError: it says what is there.
    """
    where = safe(str(output), one_line=True)
    if not os.path.lexists(output):
        return
    if output.is_symlink() or not output.is_dir():
        raise RequestError(f"{where} is no folder; name another one.")
    there = sorted(path.name for path in output.iterdir())
    others = [name for name in there if name not in huggingface.FILES]
    if others:
        other = safe(others[0], one_line=True)
        raise RequestError(f"{where} holds {other}, which no export writes; name another folder.")
    if there and not overwrite:
        raise RequestError(f"{where} exists; --overwrite replaces it.")


def _publish(folder: Path) -> None:
    """Give a folder and its files the modes that new ones of this user have."""
    mask = os.umask(0o077)
    os.umask(mask)
    for file in folder.iterdir():
        file.chmod(0o666 & ~mask)
    folder.chmod(0o777 & ~mask)
