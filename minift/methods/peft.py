"""Files of the library PEFT: `adapter_config.json` and `adapter_model.safetensors`.

What minift writes, `peft.PeftModel.from_pretrained(base_model, directory)` reads, and the reverse. A weight's key is
`base_model.model.` and its path in transformers' model; methods that put something in front of the text say
`prompt_embeddings` and, of the head, `base_model.` and its path.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from minift import checkpoint
from minift.errors import InputError
from minift.methods import part
from minift.methods.method import Method, head_parameters
from minift.tasks.task_model import TaskModel

CONFIG, WEIGHTS = checkpoint.FORMATS["PEFT"]

TASK_TYPES = {
    "SequenceClassification": "SEQ_CLS",
    "TokenClassification": "TOKEN_CLS",
    "QuestionAnswering": "QUESTION_ANS",
    "CausalLM": "CAUSAL_LM",
}
"""What PEFT calls the head that transformers' class names end with."""


class PeftMethod(Method):
    """A method whose trained part is saved as PEFT saves it."""

    peft_type: ClassVar[str]
    """What adapter_config.json calls it, such as LORA."""
    unsupported: ClassVar[tuple[str, ...]] = ()
    """Entries of an adapter_config.json that change the computation, and that minift does not have."""

    def peft_config(self, model: TaskModel) -> dict[str, Any]:
        """This method's own entries of adapter_config.json."""
        raise NotImplementedError

    @classmethod
    def from_peft(cls, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Self:
        """The method that an adapter_config.json and its weights' shapes tell of."""
        raise NotImplementedError

    @staticmethod
    def key_of(name: str) -> str:
        """The key of a parameter in the file."""
        return f"base_model.model.{name}"

    def save(self, model: TaskModel, directory: Path) -> None:
        head = head_parameters(model)
        part.write(model, directory / WEIGHTS, self.inserted(model) | head, self.key_of)
        config = {
            "peft_type": self.peft_type,
            "task_type": TASK_TYPES.get(model.head),
            "base_model_name_or_path": model.source,
            "inference_mode": True,
            "modules_to_save": sorted({_module_of(name, model) for name in head}) or None,
            **self.peft_config(model),
        }
        checkpoint.write_json(directory / CONFIG, config)
        checkpoint.remove_other_formats(directory, "PEFT")


def _module_of(name: str, model: TaskModel) -> str:
    """The module that PEFT is told to save for the sake of a parameter of the head."""
    if name.startswith(f"{model.architecture.body_name}."):
        return name.rpartition(".")[0]
    return name.partition(".")[0]


def read(methods: Mapping[str, type[PeftMethod]], config: Mapping[str, Any], directory: Path) -> PeftMethod:
    """The method of a directory that PEFT or minift wrote. Raises InputError for one that minift does not have."""
    kind = config["peft_type"]
    if kind not in methods:
        raise InputError(f"{directory / CONFIG}: peft_type is {kind!r}, expected one of {', '.join(methods)}")
    make = methods[kind]
    for name in make.unsupported:
        if config.get(name):
            raise InputError(f"{directory / CONFIG}: {name} is {config[name]!r}, which minift does not have")
    try:
        return make.from_peft(config, checkpoint.read_safetensors(directory / WEIGHTS).shapes)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{directory / CONFIG}: cannot be understood: {error!r}") from None
