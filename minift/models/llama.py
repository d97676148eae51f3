"""The Llama family, read from the bottom up (Touvron et al. 2023; Grattafiori et al. 2024; SmolLM; Qwen 2.5).

What differs from GPT-2: positions turn queries and keys instead of being added to the vectors, norms have no mean and
no bias, the feed-forward network has a gate, and several query heads may share a key head.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import numpy as np
from minift_kernels.arrays import array_namespace

from minift import ops
from minift.data import Batch
from minift.errors import InputError
from minift.history import Array
from minift.models.architecture import Architecture, Body, Head, ModelConfig
from minift.models.attention import SelfAttention
from minift.models.heads import CausalHead, LastTokenHead
from minift.nn import Dropout, Embedding, Linear, Module, ModuleList, RMSNorm
from minift.tensor import Tensor


@dataclass(frozen=True)
class DecoderConfig(ModelConfig):
    """What Llama's and Qwen's config.json have in common; the defaults are transformers'."""

    vocab_size: int = 32000
    hidden_size: int = 4096
    """H, the width of every token's vector."""
    intermediate_size: int = 11008
    """F, the width inside the feed-forward network."""
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    """N, the query heads."""
    num_key_value_heads: int = None  # type: ignore[assignment]
    """The key heads, each shared by as many query heads; N if not given."""
    head_dim: int = None  # type: ignore[assignment]
    """D, the size of a head; H / N if not given."""
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    """The longest text in tokens."""
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    attention_dropout: float = 0.0
    tie_word_embeddings: bool = False
    rope_parameters: dict = field(default_factory=lambda: {"rope_theta": 10000.0, "rope_type": "default"})
    """How fast each pair of numbers turns: see `rotation_speeds`."""
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self):
        # Written out, because transformers' Qwen does not take null for an answer.
        if self.num_key_value_heads is None:
            object.__setattr__(self, "num_key_value_heads", self.num_attention_heads)
        if self.head_dim is None:
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)

    @property
    def key_heads(self) -> int:
        return self.num_key_value_heads

    @property
    def key_width(self) -> int:
        return self.num_key_value_heads * self.head_dim

    @property
    def longest_text(self) -> int:
        return self.max_position_embeddings

    @property
    def head_dropout(self) -> float:
        return 0.1  # transformers' own, whatever the other dropouts are

    @property
    def biases(self) -> tuple[bool, bool, bool]:
        """Whether query, key and value have a bias; the attention's output; the feed-forward network."""
        raise NotImplementedError

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], source: str) -> Self:
        """Also reads how older files say the rotation: `rope_theta`, and `rope_scaling` for the rest."""
        scaling = config.get("rope_scaling") or {}
        old = {"rope_theta": config.get("rope_theta", 10000.0), "rope_type": "default", **scaling}
        if "type" in old:
            old["rope_type"] = old.pop("type")
        given = {name: value for name, value in config.items() if value is not None}
        return super().from_dict({"rope_parameters": old, **given}, source)

    def check(self, config: Mapping[str, Any], source: str) -> None:
        if self.hidden_act != "silu":
            raise InputError(f"{source}: hidden_act is {self.hidden_act!r}, expected 'silu'")
        if self.num_attention_heads % self.num_key_value_heads:
            raise InputError(
                f"{source}: num_attention_heads {self.num_attention_heads} is no multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if config.get("use_sliding_window"):
            raise InputError(f"{source}: use_sliding_window is true, which is not supported")
        rotation_speeds(self, source)


@dataclass(frozen=True)
class LlamaConfig(DecoderConfig):
    """The shape of a Llama, SmolLM among them."""

    attention_bias: bool = False
    mlp_bias: bool = False

    @property
    def biases(self) -> tuple[bool, bool, bool]:
        return self.attention_bias, self.attention_bias, self.mlp_bias


@dataclass(frozen=True)
class Qwen2Config(DecoderConfig):
    """The shape of a Qwen 2 or 2.5: queries, keys and values have biases."""

    vocab_size: int = 151936
    intermediate_size: int = 22016
    max_position_embeddings: int = 32768

    @property
    def biases(self) -> tuple[bool, bool, bool]:
        return True, False, False


class Rotation(NamedTuple):
    """The cosine and the sine of every token's angles, (T, D / 2) each."""

    cos: Array
    sin: Array


def rotation_speeds(config: DecoderConfig, source: str = "config.json") -> np.ndarray:
    """By how much each pair of a head's numbers turns from one token to the next, (D / 2,) float64.

    Pair i turns by theta^(-2i / D) (Su et al. 2021, section 3.2.2). "linear" divides all speeds by a factor, as if the
    tokens stood closer (Chen et al. 2023). "llama3" divides only those pairs that turn less than low_freq_factor times
    in the text it was first trained on, leaves those that turn more than high_freq_factor times, and goes over
    smoothly between (Llama 3.1's published code). Raises InputError for other kinds, for missing numbers, and for an
    odd D.
    """
    parameters = config.rope_parameters
    kind = parameters.get("rope_type", "default")
    size = config.head_dim
    if size % 2:
        raise InputError(
            f"{source}: head_dim is {size}, and pairs of numbers are turned: expected an even number"
        )
    try:
        speeds = float(parameters["rope_theta"]) ** (-np.arange(0, size, 2) / size)
        if kind == "default":
            return speeds
        if kind == "linear":
            return speeds / parameters["factor"]
        if kind == "llama3":
            low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
            turns = parameters["original_max_position_embeddings"] * speeds / (2 * math.pi)
            kept = np.clip((turns - low) / (high - low), 0, 1)  # the share of the speed that is not divided
            return kept * speeds + (1 - kept) * speeds / parameters["factor"]
    except KeyError as missing:
        raise InputError(f"{source}: rope_parameters of type {kind!r} lack {missing}") from None
    raise InputError(f"{source}: rope_type is {kind!r}, expected default, linear or llama3")


class LlamaAttention(SelfAttention):
    """Each token gathers from itself and the tokens before it; queries and keys are turned by their positions."""

    def __init__(self, config: DecoderConfig):
        super().__init__(config.num_attention_heads, config.attention_dropout, causal=True)
        width, size = config.hidden_size, config.head_dim
        bias, output_bias, _ = config.biases
        self.q_proj = Linear(width, config.num_attention_heads * size, bias)
        self.k_proj = Linear(width, config.num_key_value_heads * size, bias)
        self.v_proj = Linear(width, config.num_key_value_heads * size, bias)
        self.o_proj = Linear(config.num_attention_heads * size, width, output_bias)

    def forward(self, x: Tensor, segments: np.ndarray, rotation: Rotation) -> Tensor:
        q = ops.rotary(self.q_proj(x), *rotation)
        k = ops.rotary(self.k_proj(x), *rotation)
        return self.o_proj(self.attend(q, k, self.v_proj(x), segments, segments))


class LlamaMLP(Module):
    """The feed-forward network: H to F twice, one the gate of the other, and back."""

    def __init__(self, config: DecoderConfig):
        bias = config.biases[2]
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(ops.swiglu(self.gate_proj(x), self.up_proj(x)))


class LlamaLayer(Module):
    """Attention and feed-forward network; each reads a normalised copy, and what it finds is added to the vector."""

    def __init__(self, config: DecoderConfig):
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = LlamaAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = LlamaMLP(config)

    def forward(self, x: Tensor, segments: np.ndarray, rotation: Rotation) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), segments, rotation)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(Body):
    """The decoder, under the names of transformers' LlamaModel and Qwen2Model."""

    def __init__(self, config: DecoderConfig):
        super().__init__(config)
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = ModuleList([LlamaLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.speeds = rotation_speeds(config)  # (D / 2,)

    @property
    def vocabulary(self) -> Embedding:
        return self.embed_tokens

    def embed(self, words: Tensor, batch: Batch) -> Tensor:
        return words

    def encode(self, x: Tensor, batch: Batch) -> Tensor:
        xp = array_namespace(x.data)
        angles = xp.asarray(batch.positions[:, None] * self.speeds)  # (T, D / 2)
        rotation = Rotation(xp.cos(angles).astype(x.dtype), xp.sin(angles).astype(x.dtype))
        for layer in self.layers:
            x = layer(x, batch.segments, rotation)
        return self.norm(x)

    @property
    def foundation(self) -> list[Module]:
        return [self.embed_tokens]


class LlamaTokenHead(Head):
    """One answer per token: dropout, and a linear layer on the token's vector."""

    @staticmethod
    def build(model, config: DecoderConfig, outputs: int) -> None:
        model.dropout = Dropout(config.head_dropout)
        model.score = Linear(config.hidden_size, outputs)

    @staticmethod
    def forward(model, batch: Batch) -> Tensor:
        return model.score(model.dropout(model.model(batch)))  # (T, C)


def current_name(key: str) -> str:
    """A checkpoint of the decoder alone leaves out `model.`."""
    return f"model.{key}" if key.startswith(("embed_tokens.", "layers.", "norm.")) else key


def _architecture(model_type: str, class_prefix: str, config: type[DecoderConfig]) -> Architecture:
    return Architecture(
        model_type=model_type,
        class_prefix=class_prefix,
        body_name="model",
        config=config,
        body=Llama,
        layer_parts={
            "query": "q_proj",
            "key": "k_proj",
            "value": "v_proj",
            "feed_forward_output": "down_proj",
        },
        heads={
            "CausalLM": CausalHead,
            "SequenceClassification": LastTokenHead,
            "TokenClassification": LlamaTokenHead,
        },
        current_name=current_name,
    )


LLAMA = _architecture("llama", "Llama", LlamaConfig)
QWEN2 = _architecture("qwen2", "Qwen2", Qwen2Config)
