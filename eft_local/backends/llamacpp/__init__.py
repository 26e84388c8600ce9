"""llama.cpp in a few classes: the only code of the project that imports llama_cpp."""

from eft_local.backends.llamacpp import kernels

kernels.installed()

from eft_local.backends.llamacpp.adapter import Adapter
from eft_local.backends.llamacpp.context import Context
from eft_local.backends.llamacpp.distribution import Distribution
from eft_local.backends.llamacpp.library import supports_gpu_offload
from eft_local.backends.llamacpp.model import Model
from eft_local.backends.llamacpp.sampler import Sampler
from eft_local.backends.llamacpp.template import ChatTemplate

__all__ = ["Adapter", "ChatTemplate", "Context", "Distribution", "Model", "Sampler", "supports_gpu_offload"]
