"""Models on the Hugging Face hub: how they are named, which are downloaded, and getting the others.

Files live in the standard Hugging Face cache, which other tools share. huggingface_hub is imported on first use only.
"""

from eft_local.hub.names import HubModel, HubName

__all__ = ["HubModel", "HubName"]
