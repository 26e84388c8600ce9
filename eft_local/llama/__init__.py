"""llama.cpp behind a few classes: the only code of the project that imports llama_cpp."""

from eft_local.llama import kernels

kernels.installed()

from eft_local.llama.adapter import Adapter
from eft_local.llama.context import Context
from eft_local.llama.distribution import Distribution
from eft_local.llama.library import supports_gpu_offload
from eft_local.llama.model import Model
from eft_local.llama.sampler import Sampler
from eft_local.llama.template import ChatTemplate

__all__ = ["Adapter", "ChatTemplate", "Context", "Distribution", "Model", "Sampler", "supports_gpu_offload"]
