"""Stock models of single tasks, each with a backbone of its own."""

import torch
from reading import TASKS

from hf_multitask import MultiTaskModel
from hf_multitask.modeling.kinds import KINDS


def stocks_of(backbone_path, folder, family, kinds):
    """By type, a folder with a stock model, each of a backbone of its own."""
    folders = {}
    for number, kind in enumerate(kinds):
        torch.manual_seed(number)
        model = MultiTaskModel.from_backbone(backbone_path(family), tasks={kind: TASKS[kind]()})
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.02)
        model.export_task(kind, folder / kind)
        folders[kind] = str(folder / kind)
    return folders


def auto_class(kind):
    return KINDS[kind].stock_class
