"""Training only the upper layers.

The lower layers of a pre-trained model hold what is common to all tasks, the upper ones what is special to one
(Yosinski et al. 2014, section 4). What lies below the lowest trained layer needs no backward pass at all.
"""

from dataclasses import dataclass

from minift.methods.method import Method
from minift.tasks.task_model import TaskModel


@dataclass(frozen=True)
class Frozen(Method):
    """Frozen below layer K: the embeddings and the lowest `layers` layers stay as they are."""

    name = "frozen"

    layers: int

    def apply(self, model: TaskModel) -> None:
        model.body.freeze(self.layers)
