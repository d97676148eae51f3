"""The zoo of bugs: mistakes that fine-tuning scripts really have, each planted in three places.

    for plant in PLANTS:
        with plant.plant(plant.make(directory)) as (model, batch, optimizer):
            ...                                        # the set-up with the bug

Read `plant.py` first, then any of the others: `setups.py` has what is right, the rest what is wrong with it. A bug is
planted from outside, as little of it as will do, so that what was right stays in sight: an attribute, a batch or an
optimizer is replaced inside the block.
"""

from bug_zoo import batches, layers, losses, modes_and_methods, training
from bug_zoo.plant import Plant, Setup

PLANTS: list[Plant] = [
    *training.PLANTS,
    *modes_and_methods.PLANTS,
    *batches.PLANTS,
    *losses.PLANTS,
    *layers.PLANTS,
]

__all__ = ["PLANTS", "Plant", "Setup"]
