"""The modern character transformer of megatron-tui, for `transformers` (trust_remote_code=True)."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

LOGIT_CAP = 15.0


class MegatronConfig(PretrainedConfig):
    model_type = "megatron-characters"

    def __init__(
        self, vocab_size=65, block_size=256, embed_dim=64, heads=2, layers=2, ff_dim=256, **kwargs
    ):
        self.vocab_size, self.block_size, self.embed_dim = vocab_size, block_size, embed_dim
        self.heads, self.layers, self.ff_dim = heads, layers, ff_dim
        self.num_hidden_layers, self.hidden_size = layers, embed_dim
        self.num_attention_heads, self.max_position_embeddings = heads, block_size
        kwargs.setdefault("use_cache", False)
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(**kwargs)


def normalise(x):
    return F.layer_norm(x, (x.size(-1),))


def root_mean_square(x):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


def shift(x, by):
    return F.pad(x, (0, 0, by, 0))[:, : x.size(1)]


def mix(x, weights):
    return x + sum(weight * shift(x, place + 1) for place, weight in enumerate(weights))


class MegatronForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = MegatronConfig
    main_input_name = "input_ids"

    def __init__(self, config):
        super().__init__(config)
        layers, width = config.layers, config.embed_dim
        shapes = {
            "token_embedding": (config.vocab_size, width),
            "previous_gate": (width,),
            "attention": (layers, 4, width, width),
            "feed_forward": (layers, 2, config.ff_dim, width),
            "attention_mix": (layers, 2, width),
            "feed_forward_mix": (layers, 2, width),
            "head": (config.vocab_size, width),
        }
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.zeros(shape)))
        self.post_init()

    def _init_weights(self, module):
        """Leave the weights as they are: they are loaded."""

    def prepare_inputs_for_generation(self, input_ids, **kwargs):
        return {"input_ids": input_ids[:, -self.config.block_size :]}  # the window moves

    def forward(self, input_ids, attention_mask=None, labels=None, **kwargs):
        batch, length = input_ids.shape
        heads, width = self.config.heads, self.config.embed_dim
        depth = width // heads
        exponents = [1.0 + head * 6.0 / max(1, heads - 1) for head in range(heads)]
        costs = 0.5 ** torch.tensor(exponents, device=input_ids.device)
        costs[-1] = 0.0
        position = torch.arange(length, device=input_ids.device)
        distance = position[:, None] - position[None, :]
        bias = -costs[:, None, None] * distance.clamp(min=0)
        bias = bias.masked_fill(distance < 0, float("-inf"))
        x = self.token_embedding[input_ids]
        x = normalise(x + self.previous_gate * shift(x, 1))
        for layer in range(self.config.layers):
            h = mix(normalise(x), self.attention_mix[layer])
            qkv = F.linear(h, self.attention[layer, :3].reshape(3 * width, width))
            query, key, value = qkv.view(batch, length, 3, heads, depth).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(
                root_mean_square(query) * depth**-0.5,
                root_mean_square(key),
                value,
                attn_mask=bias.to(value.dtype),
                scale=1.0,
            )
            mixed = mixed.transpose(1, 2).reshape(batch, length, width)
            x = x + F.linear(mixed, self.attention[layer, 3])
            h = mix(normalise(x), self.feed_forward_mix[layer])
            wide = F.relu(F.linear(h, self.feed_forward[layer, 0])).square()
            x = x + wide @ self.feed_forward[layer, 1]
        logits = LOGIT_CAP * torch.tanh(F.linear(normalise(x), self.head) / LOGIT_CAP)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits)
