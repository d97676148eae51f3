"""What is trained, what the optimizer holds, and in which mode: checks that look and compute nothing."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from minift import checkpoint, hub
from minift.diagnosis.case import Case
from minift.diagnosis.finding import Finding, some
from minift.errors import InputError
from minift.methods import saved
from minift.methods.lora import LoRALinear
from minift.methods.method import LANGUAGE_MODELS, head_parameters
from minift.models.attention import SelfAttention
from minift.nn import Dropout, Linear, Module, Parameter


def head_is_trained(case: Case) -> Iterator[Finding]:
    """A classification head is new or of another task: whatever else is frozen, it is trained."""
    frozen = [path for path, each in head_parameters(case.model).items() if not each.requires_grad]
    if frozen:
        yield Finding(
            "frozen-head",
            some(frozen),
            "requires_grad is False",
            "freeze the body alone: model.body.requires_grad_(False), not model.requires_grad_(False)",
        )


def optimizer_holds_what_is_trained(case: Case) -> Iterator[Finding]:
    """The optimizer's parameters are those of the model that are trained, the very objects.

    An optimizer that was built earlier holds what the model had then: before the head was replaced, before LoRA, or
    of another copy of the model.
    """
    own = {id(each) for each in case.parameters.values()}
    missing = [path for path, each in case.trained.items() if id(each) not in case.held]
    foreign = [each for each in case.optimizer.parameters if id(each) not in own]
    if missing and (len(missing) < len(case.trained) or not foreign):
        yield Finding(
            "not-in-optimizer",
            some(missing),
            f"{len(missing)} of {len(case.trained)} trained parameters are in no group of the optimizer",
            "build the optimizer last, after the head and the method, from all groups",
        )
    if foreign:
        yield Finding(
            "foreign-parameters",
            f"{len(foreign)} parameters of the optimizer, the first of shape {foreign[0].shape}",
            "they are not the model's: what the optimizer steps, the model does not use",
            "build the optimizer of the parameters of this very model",
        )


def parameters_are_listed(case: Case) -> Iterator[Finding]:
    """What the loss goes through is among model.parameters(): a module in a plain list or dict is not, so that no
    optimizer is given it and no checkpoint keeps it."""
    own = {id(each) for each in case.parameters.values()}
    hidden: dict[str, list[Parameter]] = {}
    for path, module in case.model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, (list, tuple)):
                value = dict(enumerate(value))
            pairs = value.items() if isinstance(value, dict) else ()
            for key, each in pairs:
                parts = each.parameters() if isinstance(each, Module) else [each]
                found = [part for part in parts if isinstance(part, Parameter) and id(part) not in own]
                if found:
                    hidden[f"{path}.{name}[{key!r}]".lstrip(".")] = found
    if not hidden:
        return
    unknown = [part for parts in hidden.values() for part in parts]
    before = [part.grad for part in unknown]
    with case.untouched(), case.quiet():
        for part in unknown:
            part.grad = None
        loss = case.loss(case.few)
        if loss.requires_grad:
            loss.backward()
        used = [place for place, parts in hidden.items() if any(part.grad is not None for part in parts)]
    for part, gradient in zip(unknown, before, strict=True):
        part.grad = gradient
    if used:
        yield Finding(
            "unlisted-parameters",
            some(used),
            "the loss goes through its parameters, and model.parameters() does not list them",
            "hold modules in a ModuleList, or each as an attribute of its own",
        )


def norms_and_biases_are_not_decayed(case: Case) -> Iterator[Finding]:
    """Decay pulls to 0, and a norm's weight belongs at 1: vectors are exempt (Devlin et al. 2019, in their code)."""
    names = {id(each): path for path, each in case.parameters.items()}
    decayed = [
        names[id(each)]
        for group in case.optimizer.param_groups
        for each in group["params"]
        if group["weight_decay"] > 0 and each.ndim <= 1 and each.requires_grad and id(each) in names
    ]
    if decayed:
        yield Finding(
            "decayed-norms",
            some(decayed),
            f"{len(decayed)} biases and weights of norms have weight decay",
            "give AdamW minift.decay_groups(model), or the method's parameter_groups",
        )


def words_are_tied(case: Case) -> Iterator[Finding]:
    """A language model whose config ties them answers with the words' own vectors: one parameter."""
    model = case.model
    if model.head not in LANGUAGE_MODELS or not getattr(model.config, "tie_word_embeddings", True):
        return
    words = model.body.vocabulary.weight
    shapes = (words.shape, (model.config.vocab_size, *words.shape[1:]))  # the table may have grown
    body = f"{model.architecture.body_name}."
    for path, module in model.named_modules():
        if not isinstance(module, Linear) or path.startswith(body):
            continue
        if module.weight is not words and module.weight.shape in shapes:
            yield Finding(
                "untied-embeddings",
                f"{path}.weight",
                "a parameter of its own, where the config ties it to the word embeddings",
                f"set it again after loading or replacing: model.{path}.weight = model.body.vocabulary.weight",
            )


def weights_are_as_loaded(case: Case) -> Iterator[Finding]:
    """A square weight that is nearer to the transpose of its checkpoint's than to that itself was loaded transposed:
    fine-tuning moves weights by far less."""
    model = case.model
    try:
        tensors = checkpoint.read_tensors(hub.resolve(model.source), np.float32) if model.source else None
    except (InputError, OSError):
        tensors = None
    if tensors is None:
        return
    turned = []
    for key in tensors:
        name = model.architecture.current_name(key)
        if name not in case.parameters or len(tensors.shapes[key]) != 2:
            continue
        now, then = case.parameters[name].data, tensors[key]
        if now.shape != then.shape or now.shape != then.T.shape:
            continue
        if np.linalg.norm(now - then.T) < 0.5 * np.linalg.norm(now - then):
            turned.append(name)
    if turned:
        yield Finding(
            "transposed-weight",
            some(turned),
            f"nearer to the transpose of what {model.source} holds than to that itself",
            "a linear layer's weight is (out, in) in checkpoints, GPT-2's (in, out): transpose neither, or once",
        )


def lora_begins_at_zero(case: Case) -> Iterator[Finding]:
    """LoRA's B is 0 before the first step, so that training begins at the pre-trained model (Hu et al. 2021, 4.1).

    What was loaded from a saved part is trained already. So is a B whose columns say much the same, which a gradient
    makes and chance does not: this tells a new optimizer on a trained model from a B that was drawn.
    """
    if case.steps or _loaded_from_a_part(case):
        return
    wrong = [
        path
        for path, module in case.model.named_modules()
        if isinstance(module, LoRALinear) and not module.merged and _drawn(module.lora_B.weight.data)
    ]
    if wrong:
        yield Finding(
            "lora-not-zero-at-start",
            some(wrong),
            "lora_B is not 0 before the first step, so the model is not the pre-trained one",
            "set B to 0 and draw A: model.<path>.lora_B.weight.data[:] = 0",
        )


def _drawn(b: np.ndarray) -> bool:
    """Whether B (out, r) is neither 0 nor the work of gradients, whose largest direction holds most of it."""
    if not b.any():
        return False
    if b.min() == b.max() or min(b.shape) == 1:
        return True
    energy = np.linalg.svd(b.astype(np.float64), compute_uv=False) ** 2
    of_chance = (1 + (min(b.shape) / max(b.shape)) ** 0.5) ** 2 / min(b.shape)  # Marchenko and Pastur 1967
    return bool(energy[0] / energy.sum() < min(1.3 * of_chance, 0.9))


def _loaded_from_a_part(case: Case) -> bool:
    directory = Path(case.model.tokenizer.source).parent
    return directory.is_dir() and saved.description_of(directory) is not None


def lora_can_move(case: Case) -> Iterator[Finding]:
    """The gradient of A is a product with B, and that of B one with A: where both are 0, neither ever moves."""
    stuck = [
        path
        for path, module in case.model.named_modules()
        if isinstance(module, LoRALinear)
        and not module.lora_A.weight.data.any()
        and not module.lora_B.weight.data.any()
    ]
    if stuck:
        yield Finding(
            "does-not-move",
            some([f"{path}.lora_A and .lora_B" for path in stuck]),
            "both are 0, so the gradient of either is 0 for ever",
            "draw A, as minift.apply_method(model, 'lora') does, and leave B at 0",
        )


def model_is_in_training(case: Case) -> Iterator[Finding]:
    """A model that is to be trained is in training mode, where its dropouts drop."""
    has_dropout = {
        path
        for path, module in case.model.named_modules()
        if (isinstance(module, Dropout) and module.p > 0)
        or (isinstance(module, SelfAttention) and module.dropout > 0)
    }
    asleep = [path for path in sorted(has_dropout) if not case.modes[path]]
    if asleep:
        yield Finding(
            "dropout-off-in-training",
            some(asleep),
            "in evaluation mode, with a dropout of more than 0",
            "call model.train() before training, and again after each evaluation",
        )


def frozen_have_no_gradient(case: Case) -> Iterator[Finding]:
    """AdamW steps whatever has a gradient: one that was frozen after a backward pass, and not zeroed, still moves."""
    left = [
        path
        for path, each in case.parameters.items()
        if not each.requires_grad and each.grad is not None and id(each) in case.held
    ]
    if left:
        yield Finding(
            "frozen-moves",
            some(left),
            "frozen, but a gradient from before is left, which the optimizer's next step will use",
            "call model.zero_grad() after freezing",
        )
