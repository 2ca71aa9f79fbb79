"""The names of the tasks. Does not import torch, as the options of the commands need them."""

TASKS: dict[str, str] = {
    "sentiment": "sentiment",
    "classification": "classes",
    "multilabel": "multilabel",
    "regression": "regression",
}
