"""What a training run would lose with its process, in one file that is always whole.

Weights, AdamW's moments, the number of steps and the number of dropout masks drawn. The order of the texts and the
learning rate follow from the seed and the step, so they are not in it. A run that goes on from here has the same
weights at its end, bit for bit, as one that was never stopped.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from minift_kernels.arrays import array_namespace

from minift import checkpoint, random
from minift.device import as_numpy
from minift.errors import InputError
from minift.nn import Module
from minift.optim import AdamW

FILE = "training_state.safetensors"


@dataclass
class Progress:
    """How far a run has come."""

    step: int = 0
    """Optimizer steps taken."""
    tokens: int = 0
    """Tokens seen in them."""
    truncated: int = 0
    """Texts that were longer than the maximum, counted each time they were seen."""
    seconds: float = 0.0
    """Time spent in steps, by every process that worked on the run."""
    log_bytes: int = 0
    """The length of the log."""
    before: dict | None = None
    """The metrics before the first step."""
    judged: dict | None = None
    """What the report tells of the predictions before the first step."""


def save(directory: Path, progress: Progress, options: dict, model: Module, optimizer: AdamW) -> None:
    """Write the state of a run that was begun with these options. Raises InputError where that fails."""
    tensors = {}
    for name, parameter in model.named_parameters():
        tensors[f"model.{name}"] = parameter.numpy()
        if parameter in optimizer.state:
            tensors[f"first_moment.{name}"] = as_numpy(optimizer.state[parameter].first)
            tensors[f"second_moment.{name}"] = as_numpy(optimizer.state[parameter].second)
    steps = {
        name: optimizer.state[each].step for name, each in model.named_parameters() if each in optimizer.state
    }
    state = {
        "progress": asdict(progress),
        "options": options,
        "calls": random.default_generator.calls,
        "moment_steps": steps,
    }
    checkpoint.write_tensors(directory / FILE, tensors, {"state": json.dumps(state)})


def forget(directory: Path) -> None:
    """Delete the state, and what a save that was killed may have left of one."""
    for path in directory.glob(f"{FILE}*"):
        path.unlink()


def restore(directory: Path, options: dict, model: Module, optimizer: AdamW) -> Progress | None:
    """Set model, optimizer and random numbers to the saved state; None where there is none.

    Raises InputError for a damaged file, and for a run that was begun with other options.
    """
    path = directory / FILE
    if not path.exists():
        return None
    tensors = checkpoint.read_safetensors(path)
    try:
        state = json.loads(tensors.metadata["state"])
        progress = Progress(**state["progress"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: this is no training state of this version of minift: {error!r}") from None
    for name, value in options.items():
        if name not in state["options"]:
            raise InputError(
                f"{path}: an earlier version of minift wrote this, which did not keep {name}; "
                "pass --overwrite to begin the run anew"
            )
        if state["options"].get(name) != value:
            raise InputError(
                f"{path}: the run was begun with {name} = {state['options'].get(name)!r}, not {value!r}"
            )
    for name, parameter in model.named_parameters():
        library = array_namespace(parameter.data)
        parameter.data = library.array(tensors[f"model.{name}"])
        if f"first_moment.{name}" in tensors:
            moments = optimizer.moments(parameter)
            moments.first = library.array(tensors[f"first_moment.{name}"])
            moments.second = library.array(tensors[f"second_moment.{name}"])
            moments.step = state["moment_steps"][name]
    random.default_generator.calls = state["calls"]
    return progress
