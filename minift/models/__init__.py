"""The families of models: one file each, and one line in this table."""

from collections.abc import Mapping
from typing import Any

from minift.errors import InputError
from minift.models import bert, distilbert, gpt2, llama, roberta, word_vectors
from minift.models.architecture import Architecture

MODELS: dict[str, Architecture] = {
    each.model_type: each
    for each in (
        bert.ARCHITECTURE,
        roberta.ARCHITECTURE,
        distilbert.ARCHITECTURE,
        gpt2.ARCHITECTURE,
        llama.LLAMA,
        llama.QWEN2,
        word_vectors.ARCHITECTURE,
    )
}
"""Every architecture by the model_type of its config.json."""


def architecture_of(config: Mapping[str, Any], source: str) -> Architecture:
    """The architecture that a config.json, read from `source`, asks for. Raises InputError where minift has none."""
    model_type = config.get("model_type")
    if model_type not in MODELS:
        raise InputError(f"{source}: model_type is {model_type!r}, expected one of {', '.join(MODELS)}")
    return MODELS[model_type]
