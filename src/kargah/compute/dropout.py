"""Another dropout than the model's own: one probability in place of every one, zero included.

Architectures keep their probabilities under many names in their configs, some read them at every forward pass, and some
make modules with a number of their own. So both are set: the config before the model is made of it, the modules after.
"""

from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from transformers import PreTrainedConfig

# `hidden_dropout_prob`, `attention_dropout`, `classifier_dropout`; GPT-2's `attn_pdrop`. Dropping whole layers
# (`layerdrop`) is another thing.
_NAMES = ("dropout", "pdrop")


def dropout_fields(config: PreTrainedConfig) -> list[str]:
    """Names of the probabilities of dropout in a model's config, also those that are None (the same as another)."""
    return [
        name
        for name, value in config.to_dict().items()
        if any(part in name for part in _NAMES)
        and (value is None or (isinstance(value, int | float) and not isinstance(value, bool)))
    ]


def override_dropout(model: nn.Module, probability: float) -> None:
    """Give every dropout module of `model` this probability."""
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = probability
