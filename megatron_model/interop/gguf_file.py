"""A GGUF file of a classic model, for llama.cpp and its relatives.

Of GPT-2's kind, float32, with llama.cpp's tokenizer of longest matches over bytes, which is exact
for single characters.
"""

from __future__ import annotations

from pathlib import Path

from megatron_model.interop import gpt2
from megatron_model.run.checkpoint import LoadedModel
from megatron_model.util.errors import RequestError

ENDS = {
    "token_embedding.weight": "token_embd.weight",
    "position_embedding.weight": "position_embd.weight",
    "norm.weight": "output_norm.weight",
    "norm.bias": "output_norm.bias",
    "head.weight": "output.weight",
}
LAYER = {
    "attention_norm": "attn_norm",
    "attention.qkv": "attn_qkv",
    "attention.projection": "attn_output",
    "feed_forward_norm": "ffn_norm",
    "feed_forward.0": "ffn_up",
    "feed_forward.2": "ffn_down",
}


def write_gguf(model: LoadedModel, name: str, path: Path) -> None:
    """Write the file.

    Raises:
        RequestError: the format has no such model, or the package `gguf` is not installed.
    """
    shape = model.config.model
    if shape.architecture != "classic":
        raise RequestError(
            f"GGUF has no model like the {shape.architecture} architecture, only classic; "
            "--format hf takes both."
        )
    weights = gpt2.without_head_bias(model.model.state_dict())
    if weights is None:
        raise RequestError(
            f"GGUF's GPT-2 has no bias in its head, and that of {model.tokenizer.vocab_size:,} "
            f"characters cannot be folded into {shape.embed_dim} channels; --format hf keeps it."
        )
    try:
        import gguf
    except ImportError:
        raise RequestError(
            "GGUF needs the package gguf: pip install 'megatron-tui[gguf]'."
        ) from None
    writer = gguf.GGUFWriter(str(path), "gpt2")
    writer.add_name(name)
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.block_size)
    writer.add_embedding_length(shape.embed_dim)
    writer.add_feed_forward_length(shape.ff_dim)
    writer.add_head_count(shape.heads)
    writer.add_layer_norm_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_vocab_size(model.tokenizer.vocab_size)
    writer.add_tokenizer_model("rwkv")
    # As bytes, with what cannot be printed written as Python writes it.
    writer.add_token_list([repr(c.encode())[2:-1] for c in model.tokenizer.vocabulary])
    writer.add_token_types([gguf.TokenType.NORMAL] * model.tokenizer.vocab_size)
    names = dict(ENDS)
    for layer in range(shape.layers):
        for ours, theirs in LAYER.items():
            for kind in ("weight", "bias"):
                names[f"blocks.{layer}.{ours}.{kind}"] = f"blk.{layer}.{theirs}.{kind}"
    for ours, theirs in names.items():
        writer.add_tensor(theirs, weights[ours].float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
