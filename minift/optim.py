"""Optimizers, schedules and clipping: how gradients become new weights."""

import math
from collections.abc import Callable, Iterable

from minift_kernels import adamw as adamw_kernels
from minift_kernels import grad_norm as grad_norm_kernels
from minift_kernels.arrays import array_namespace

from minift.errors import InputError
from minift.history import Array
from minift.nn import Module, Parameter


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2), step for step PyTorch's.

        m = b1 m + (1 - b1) g            the mean of recent gradients
        v = b2 v + (1 - b2) g^2          the mean of their squares
        w = w - lr weight_decay w - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

    m and v begin at 0; dividing by 1 - b^t corrects for that in the first steps (Kingma and Ba 2015, section 3).
    """

    def __init__(
        self,
        params: Iterable[Parameter | dict],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ):
        """`params`: parameters, or groups {"params": parameters, and any of lr, betas, eps, weight_decay}.

        Raises ValueError when there is no parameter, or one stands in two groups, and for parameters beside groups or
        an option that there is not; InputError, which is one, for a number out of range.
        """
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        given = list(params)
        groups = [each for each in given if isinstance(each, dict)]
        if 0 < len(groups) < len(given):
            raise ValueError("AdamW takes parameters or groups of them, not both")
        groups = groups or [{"params": given}]
        for group in groups:
            for option in group.keys() - {"params", *defaults}:
                raise ValueError(
                    f"AdamW has no option {option!r}; a group takes params, {', '.join(defaults)}"
                )
        self.param_groups = [{**defaults, **group, "params": list(group["params"])} for group in groups]
        for group in self.param_groups:
            _check_numbers(group)
        self.parameters: list[Parameter] = [each for group in self.param_groups for each in group["params"]]
        if not self.parameters:
            raise ValueError("AdamW was given no parameters")
        if len({id(parameter) for parameter in self.parameters}) < len(self.parameters):
            raise ValueError("AdamW was given a parameter twice")
        self.state: dict[Parameter, Moments] = {}

    def step(self, max_grad_norm: float | None = None) -> float | None:
        """Update every parameter that has a gradient; one without is left as it is, decay included.

        With `max_grad_norm` the update is that of gradients shortened by `clip_grad_norm_`, and their length before is
        returned. Nothing is written for it: each gradient is multiplied as it is read.
        """
        norm, scale = None, 1.0
        if max_grad_norm is not None:
            norm = grad_norm(self.parameters)
            scale = clip_scale(norm, max_grad_norm)
        for group in self.param_groups:
            by_step: dict[int, list[Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                moments = self.moments(parameter)
                moments.step += 1
                by_step.setdefault(moments.step, []).append(parameter)
            for step, parameters in by_step.items():
                adamw_kernels.step(
                    [parameter.data for parameter in parameters],
                    [parameter.grad for parameter in parameters],
                    [self.state[parameter].first for parameter in parameters],
                    [self.state[parameter].second for parameter in parameters],
                    lr=group["lr"],
                    beta1=group["betas"][0],
                    beta2=group["betas"][1],
                    eps=group["eps"],
                    weight_decay=group["weight_decay"],
                    step=step,
                    gradient_scale=scale,
                )
        return norm

    def moments(self, parameter: Parameter) -> "Moments":
        """What is remembered of a parameter; zeros before its first step."""
        if parameter not in self.state:
            self.state[parameter] = Moments(parameter.data)
        return self.state[parameter]

    def zero_grad(self) -> None:
        """Forget the gradients, so that the next backward() starts from nothing."""
        for parameter in self.parameters:
            parameter.grad = None


def _check_numbers(group: dict) -> None:
    """Raise InputError for numbers of a group with which no step makes sense."""
    for name in ("lr", "eps", "weight_decay"):
        if not 0 <= group[name] < math.inf:
            raise InputError(f"AdamW: {name} is {group[name]}, expected a finite number, 0 or more")
    if len(group["betas"]) != 2 or not all(
        0 <= beta < 1 for beta in group["betas"]
    ):  # a beta of 1 would divide by 1 - 1^t
        raise InputError(f"AdamW: betas are {group['betas']}, expected two numbers from 0 to below 1")


class Moments:
    """What AdamW remembers of one parameter: m, v (arrays of its shape) and t, the steps it has taken."""

    def __init__(self, data: Array):
        xp = array_namespace(data)
        self.first = xp.zeros_like(data)
        self.second = xp.zeros_like(data)
        self.step = 0


def decay_groups(model: Module, weight_decay: float = 0.01) -> list[dict]:
    """The model's trainable parameters in two groups: matrices, with decay, and biases and norms' weights, without.

    Decay pulls towards 0. That keeps a matrix from growing on noise; a bias or a LayerNorm weight (which belongs at 1)
    has nothing to gain from it (Devlin et al. 2019 exempt both in their code). They are told by having one axis: what
    a norm is called differs from model to model.
    """
    decayed, exempt = [], []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (decayed if parameter.ndim > 1 else exempt).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": exempt, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def clip_grad_norm_(parameters: Iterable[Parameter], max_norm: float) -> float:
    """Shorten all gradients together to `max_norm` if they are longer, and return their length before.

    The length is that of all gradients laid end to end (Pascanu et al. 2013, section 3.2), so their directions and
    proportions stay. As in PyTorch, 1e-6 is added to the divisor.
    """
    parameters = list(parameters)
    norm = grad_norm(parameters)
    scale = clip_scale(norm, max_norm)
    if scale < 1:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad = parameter.grad * scale
    return norm


def grad_norm(parameters: Iterable[Parameter]) -> float:
    """The length of all gradients laid end to end."""
    return float(
        grad_norm_kernels.forward([each.grad for each in parameters if each.grad is not None])
    )  # waits for a GPU


def clip_scale(norm: float, max_norm: float) -> float:
    """What gradients of this length are multiplied by so that they are no longer than `max_norm`."""
    return min(1.0, max_norm / (norm + 1e-6))


# ----------------------------------------------------------------------------------------------------------------
# Schedules: the share of the learning rate that each step uses


class Schedule:
    """Sets every group's rate to its first value times `shape(step)`; call `step()` after `optimizer.step()`."""

    def __init__(self, optimizer: AdamW, shape: Callable[[int], float]):
        self.optimizer = optimizer
        self.shape = shape
        self.base_rates = [group["lr"] for group in optimizer.param_groups]
        self.set_step(0)

    def step(self) -> None:
        """Go on to the next step's rate."""
        self.set_step(self.steps + 1)

    def set_step(self, steps: int) -> None:
        """The rate after this many steps, for a run that is taken up again."""
        self.steps = steps
        for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = base * self.shape(steps)


def linear_schedule(optimizer: AdamW, total_steps: int, warmup_steps: int = 0) -> Schedule:
    """Up from 0 in a line during warm-up, then down in a line to 0 at `total_steps`."""

    def shape(step):
        if step < warmup_steps:
            return step / max(1, warmup_steps)
        return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))

    return Schedule(optimizer, shape)


def cosine_schedule(optimizer: AdamW, total_steps: int, warmup_steps: int = 0) -> Schedule:
    """Up from 0 in a line during warm-up, then down along half a cosine to 0 (Loshchilov and Hutter 2017)."""

    def shape(step):
        if step < warmup_steps:
            return step / max(1, warmup_steps)
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return Schedule(optimizer, shape)


def constant_schedule(optimizer: AdamW, total_steps: int, warmup_steps: int = 0) -> Schedule:
    """Up from 0 in a line during warm-up, then the full rate; `total_steps` makes no difference."""

    def shape(step):
        return min(1.0, step / max(1, warmup_steps)) if warmup_steps else 1.0

    return Schedule(optimizer, shape)


SCHEDULES = {"linear": linear_schedule, "cosine": cosine_schedule, "constant": constant_schedule}
