"""GPT-2 with a bias in its head, for `transformers` (trust_remote_code=True)."""

from torch import nn
from transformers import GPT2LMHeadModel


class MegatronGPT2LMHeadModel(GPT2LMHeadModel):
    def __init__(self, config):
        super().__init__(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=True)
        self.post_init()
