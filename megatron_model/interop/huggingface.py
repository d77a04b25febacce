"""A folder that `transformers` opens: weights, tokenizer, configuration, model card.

A classic model is a GPT-2 where its head's bias can be folded away; otherwise, and for the modern
architecture, the folder holds the model's code as well, which a reader has to trust
(``trust_remote_code=True``).
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from megatron_model import __version__
from megatron_model.config.fields import RunConfig, SamplingConfig, differences, get_setting
from megatron_model.interop import gpt2
from megatron_model.run.checkpoint import LoadedModel
from megatron_model.util.text import safe

CODE = Path(__file__).parent / "files"
UNKNOWN = "\0unk"
"""Stands in the tokenizer for what no character can be: one that is unknown is refused."""

FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "README.md",
    "SHA256SUMS",
    "tokenizer.json",
    "tokenizer_config.json",
    "modeling_megatron.py",
    "modeling_megatron_gpt2.py",
)
"""All that such a folder may hold."""


def write_folder(model: LoadedModel, name: str, folder: Path) -> str:
    """Write the files into an empty folder; return how the model is opened.

    Args:
        model: on the CPU.
        name: what the card calls it.
        folder: where the files go.
    """
    config = model.config
    weights = {key: value.contiguous() for key, value in model.model.state_dict().items()}
    if config.model.architecture == "classic":
        weights, about, code = _gpt2(weights, config, model.tokenizer.vocab_size)
    else:
        about, code = _modern(config, model.tokenizer.vocab_size)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    if code:
        (folder / code).write_bytes((CODE / f"{code}.txt").read_bytes())
    _write_json(folder / "config.json", about)
    _write_json(folder / "tokenizer.json", tokenizer_json(model.tokenizer.vocabulary))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": config.model.block_size,
            "clean_up_tokenization_spaces": False,
        },
    )
    sampling = SamplingConfig()
    _write_json(
        folder / "generation_config.json",
        {"do_sample": True, "temperature": sampling.temperature, "top_k": 0},
    )
    opened = _opened(trust=bool(code))
    (folder / "README.md").write_text(card(model, name, opened), encoding="utf-8")
    return opened


def _gpt2(
    weights: dict[str, Tensor], config: RunConfig, vocab_size: int
) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """Return a classic model's weights as GPT-2's, the configuration, and the code it needs."""
    shape = config.model
    folded = gpt2.without_head_bias(weights)
    named = {
        theirs: (value.T if gpt2.transposed(ours) else value).contiguous()
        for ours, theirs in gpt2.names(shape.layers).items()
        for value in [(folded or weights)[ours]]
    }
    about: dict[str, Any] = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": vocab_size,
        "n_positions": shape.block_size,
        "n_embd": shape.embed_dim,
        "n_layer": shape.layers,
        "n_head": shape.heads,
        "n_inner": shape.ff_dim,
        "activation_function": "gelu",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "dtype": "float32",
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), shape.dropout),
    }
    if folded is not None:
        return named, about, ""
    named["lm_head.bias"] = weights[gpt2.HEAD_BIAS]
    about["architectures"] = ["MegatronGPT2LMHeadModel"]
    about["auto_map"] = {"AutoModelForCausalLM": "modeling_megatron_gpt2.MegatronGPT2LMHeadModel"}
    return named, about, "modeling_megatron_gpt2.py"


def _modern(config: RunConfig, vocab_size: int) -> tuple[dict[str, Any], str]:
    """Return the configuration of a modern model, and the code it needs."""
    shape = config.model
    about = {
        "architectures": ["MegatronForCausalLM"],
        "model_type": "megatron-characters",
        "auto_map": {
            "AutoConfig": "modeling_megatron.MegatronConfig",
            "AutoModelForCausalLM": "modeling_megatron.MegatronForCausalLM",
        },
        "vocab_size": vocab_size,
        "block_size": shape.block_size,
        "embed_dim": shape.embed_dim,
        "heads": shape.heads,
        "layers": shape.layers,
        "ff_dim": shape.ff_dim,
        "dtype": "float32",
    }
    return about, "modeling_megatron.py"


def tokenizer_json(vocabulary: str) -> dict[str, Any]:
    """Return a tokenizer of single characters in the format of `tokenizers`."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        # `(?s:.)` would do in other engines, but not in the one that `tokenizers` uses.
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": r"[\s\S]"},
            "behavior": "Isolated",
            "invert": False,
        },
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "WordLevel",
            "vocab": {character: token for token, character in enumerate(vocabulary)},
            "unk_token": UNKNOWN,
        },
    }


def card(model: LoadedModel, name: str, opened: str) -> str:
    """Return the model card: what it is, how good, and how it is used."""
    config, shape = model.config, model.config.model
    count = sum(value.numel() for value in model.model.parameters())
    loss = "not measured"
    if model.val_loss is not None:
        loss = f"{model.val_loss:.4f} nats, {model.val_loss / math.log(2):.4f} bits per character"
    rows = [
        ("architecture", shape.architecture),
        ("parameters", f"{count:,}"),
        ("characters it knows", f"{model.tokenizer.vocab_size:,}"),
        ("characters it sees at once", f"{shape.block_size:,}"),
        ("layers, width, heads", f"{shape.layers}, {shape.embed_dim}, {shape.heads}"),
        ("text", _code(Path(config.data.corpus).name) if config.data.corpus else "not known"),
        ("steps", f"{model.step:,} of batches of {config.training.batch_size}"),
        ("validation loss", loss),
    ]
    table = "\n".join(f"| {what} | {value} |" for what, value in rows)
    return (
        "---\n"
        "library_name: transformers\n"
        "pipeline_tag: text-generation\n"
        "tags: [character-level]\n"
        "---\n\n"
        f"# {_code(name)}\n\n"
        "A character-level transformer: it reads and writes one character at a time.\n\n"
        f"| | |\n| --- | --- |\n{table}\n\n"
        f"```python\n{opened}```\n\n"
        f"Its settings, as far as they are not the usual ones:\n\n```\n{_settings(config)}```\n\n"
        f"Written by megatron-tui {__version__} on {time.strftime('%Y-%m-%d', time.gmtime())}.\n"
    )


def _settings(config: RunConfig) -> str:
    """Return the settings that are not the default ones, a line each; no path of this machine."""
    changed = differences(config, RunConfig())
    lines = [
        f"--set {key}={safe(str(get_setting(config, key)), one_line=True)}\n"
        for key in sorted(changed)
        if key != "data.corpus"
    ]
    return "".join(lines).replace("`", "'")


def _opened(*, trust: bool) -> str:
    more = ", trust_remote_code=True" if trust else ""
    return (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'tokenizer = AutoTokenizer.from_pretrained("PATH")\n'
        f'model = AutoModelForCausalLM.from_pretrained("PATH"{more})\n'
        'tokens = tokenizer("The ", return_tensors="pt").input_ids\n'
        "print(tokenizer.decode(model.generate(tokens, max_new_tokens=100)[0]))\n"
    )


def _code(text: str) -> str:
    """Return a name as code, which no name can leave."""
    return "`" + safe(text, one_line=True).replace("`", "'").replace("|", "/") + "`"


def _write_json(path: Path, found: object) -> None:
    path.write_text(json.dumps(found, ensure_ascii=False, indent=1), encoding="utf-8")
