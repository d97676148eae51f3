"""GPT-2, read from the bottom up (Radford et al. 2019).

Attribute paths are the keys of a Hugging Face checkpoint: `wte` and `wpe` are the word and position embeddings, `h` the
layers, `ln` LayerNorms, `c_` marks what TensorFlow's first code wrote as a convolution of width 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from minift import ops
from minift.data import Batch
from minift.errors import InputError
from minift.models.architecture import Architecture, Body, ModelConfig
from minift.models.attention import SelfAttention
from minift.models.heads import CausalHead, LastTokenHead, TokenHead
from minift.nn import Dropout, Embedding, LayerNorm, Linear, Module, ModuleList, Parameter
from minift.tensor import Tensor

ACTIVATIONS = {
    "gelu_new": ops.gelu_tanh,
    "gelu_pytorch_tanh": ops.gelu_tanh,
    "gelu": ops.gelu,
    "relu": ops.relu,
}


@dataclass(frozen=True)
class GPT2Config(ModelConfig):
    """The shape of a GPT-2, under the names of its config.json; the defaults are the smallest that was published."""

    vocab_size: int = 50257
    n_positions: int = 1024
    """The longest text in tokens."""
    n_embd: int = 768
    """H, the width of every token's vector."""
    n_layer: int = 12
    n_head: int = 12
    """N; each head works on H / N of the vector."""
    n_inner: int | None = None
    """F, the width inside the feed-forward network; None means 4 H."""
    activation_function: str = "gelu_new"
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    bos_token_id: int | None = 50256
    eos_token_id: int | None = 50256

    @property
    def hidden_size(self) -> int:
        return self.n_embd

    @property
    def num_hidden_layers(self) -> int:
        return self.n_layer

    @property
    def num_attention_heads(self) -> int:
        return self.n_head

    @property
    def longest_text(self) -> int:
        return self.n_positions

    @property
    def head_dropout(self) -> float:
        return 0.1  # transformers' own, whatever the other dropouts are

    def check(self, config: Mapping[str, Any], source: str) -> None:
        if self.activation_function not in ACTIVATIONS:
            raise InputError(
                f"{source}: activation_function is {self.activation_function!r}, "
                f"expected one of {', '.join(ACTIVATIONS)}"
            )
        if self.n_embd % self.n_head:
            raise InputError(f"{source}: n_embd {self.n_embd} is no multiple of n_head {self.n_head}")
        unusual = {
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
        }
        for name, usual in unusual.items():
            if config.get(name, usual) != usual:
                raise InputError(f"{source}: {name} is {config[name]}, only {usual} is supported")


class Conv1D(Linear):
    """A linear layer whose weight stands in checkpoints as (in, out), and so it does here: y = x W + b."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features)
        self.weight = Parameter(self.weight.data.T.copy())

    def forward(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.weight.T, self.bias)


class GPT2Attention(SelfAttention):
    """Each token gathers from itself and the tokens before it; then the heads are mixed."""

    def __init__(self, config: GPT2Config):
        super().__init__(config.n_head, config.attn_pdrop, causal=True)
        self.c_attn = Conv1D(config.n_embd, 3 * config.n_embd)
        self.c_proj = Conv1D(config.n_embd, config.n_embd)
        self.resid_dropout = Dropout(config.resid_pdrop)

    def forward(self, x: Tensor, segments: np.ndarray) -> Tensor:
        qkv = self.c_attn(x)  # (T, 3 H)
        width = x.shape[1]
        q, k, v = (ops.columns(qkv, start, start + width) for start in range(0, 3 * width, width))
        return self.resid_dropout(self.c_proj(self.attend(q, k, v, segments, segments)))


class GPT2MLP(Module):
    """The feed-forward network: H to F, the activation, and back."""

    def __init__(self, config: GPT2Config):
        inner = config.n_inner or 4 * config.n_embd
        self.c_fc = Conv1D(config.n_embd, inner)
        self.c_proj = Conv1D(inner, config.n_embd)
        self.activation = ACTIVATIONS[config.activation_function]
        self.dropout = Dropout(config.resid_pdrop)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.c_proj(self.activation(self.c_fc(x))))


class GPT2Block(Module):
    """Attention and feed-forward network; each reads a normalised copy, and what it finds is added to the vector."""

    def __init__(self, config: GPT2Config):
        self.ln_1 = LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.attn = GPT2Attention(config)
        self.ln_2 = LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.mlp = GPT2MLP(config)

    def forward(self, x: Tensor, segments: np.ndarray) -> Tensor:
        x = x + self.attn(self.ln_1(x), segments)
        return x + self.mlp(self.ln_2(x))


class GPT2(Body):
    """The decoder, under the names of transformers' GPT2Model."""

    def __init__(self, config: GPT2Config):
        super().__init__(config)
        self.wte = Embedding(config.vocab_size, config.n_embd)
        self.wpe = Embedding(config.n_positions, config.n_embd)
        self.drop = Dropout(config.embd_pdrop)
        self.h = ModuleList([GPT2Block(config) for _ in range(config.n_layer)])
        self.ln_f = LayerNorm(config.n_embd, config.layer_norm_epsilon)

    @property
    def vocabulary(self) -> Embedding:
        return self.wte

    def embed(self, words: Tensor, batch: Batch) -> Tensor:
        return self.drop(words + self.wpe(batch.positions))

    def encode(self, x: Tensor, batch: Batch) -> Tensor:
        for block in self.h:
            x = block(x, batch.segments)
        return self.ln_f(x)

    @property
    def foundation(self) -> list[Module]:
        return [self.wte, self.wpe]

    @property
    def layers(self) -> list[Module]:
        return self.h.modules


def current_name(key: str) -> str:
    """The name that transformers uses today: the published checkpoints leave out `transformer.`."""
    if key == "lm_head.weight":  # one with the word embeddings, which some checkpoints hold twice
        return "transformer.wte.weight"
    return f"transformer.{key}" if key.startswith(("wte.", "wpe.", "h.", "ln_f.")) else key


ARCHITECTURE = Architecture(
    model_type="gpt2",
    class_prefix="GPT2",
    body_name="transformer",
    layer_parts={
        **dict.fromkeys(("query", "key", "value"), "c_attn"),
        "feed_forward_output": r"mlp\.c_proj",
    },
    config=GPT2Config,
    body=GPT2,
    heads={
        "CausalLM": CausalHead,
        "SequenceClassification": LastTokenHead,
        "TokenClassification": TokenHead,
    },
    current_name=current_name,
    odd_class_names={"CausalLM": "GPT2LMHeadModel"},
)
