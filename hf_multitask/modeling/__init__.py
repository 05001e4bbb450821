"""The room that travels to the Hub: everything a saved model needs to run."""

from transformers import AutoConfig, AutoModel
from transformers.pipelines import PIPELINE_REGISTRY

from .config import MultiTaskConfig
from .heads import Head
from .model import MultiTaskModel
from .output import MultiTaskOutput
from .pipeline import MultiTaskPipeline

AutoConfig.register(MultiTaskConfig.model_type, MultiTaskConfig, exist_ok=True)
AutoModel.register(MultiTaskConfig, MultiTaskModel, exist_ok=True)
if "multitask" not in PIPELINE_REGISTRY.supported_tasks:
    PIPELINE_REGISTRY.register_pipeline("multitask", pipeline_class=MultiTaskPipeline, pt_model=AutoModel, type="text")

__all__ = ["Head", "MultiTaskConfig", "MultiTaskModel", "MultiTaskOutput", "MultiTaskPipeline"]
