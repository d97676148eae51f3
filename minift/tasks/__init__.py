"""The tasks: one file each, and one line in this table."""

from minift.tasks.fill_mask import FillMask
from minift.tasks.instruction_tuning import InstructionTuning
from minift.tasks.multi_label import MultiLabelClassification
from minift.tasks.question_answering import QuestionAnswering
from minift.tasks.task_model import TaskModel
from minift.tasks.text_classification import TextClassification
from minift.tasks.text_generation import TextGeneration
from minift.tasks.text_regression import TextRegression
from minift.tasks.token_classification import TokenClassification

TASKS: dict[str, type[TaskModel]] = {
    "text-classification": TextClassification,
    "multi-label": MultiLabelClassification,
    "text-regression": TextRegression,
    "token-classification": TokenClassification,
    "question-answering": QuestionAnswering,
    "fill-mask": FillMask,
    "instruction-tuning": InstructionTuning,
    "text-generation": TextGeneration,
}
"""Every task by the name that `--task` takes."""
