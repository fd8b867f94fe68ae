"""Passes through a module whose weights stay in their files: those of a layer are read as it runs, and then dropped."""

from collections import OrderedDict
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key

from ..io.tensor_files import StoredTensor
from .loaded import is_finite, not_finite

Reader = Callable[[str], StoredTensor]
"""Returns the tensor of a parameter from its name inside the module."""


@contextmanager
def streamed(module: nn.Module, stored: Reader, *, unread: Collection[nn.Module] = ()) -> Generator[None]:
    """Have a module without weights compute with those of its files, in float32, for the length of a `with`.

    A table of words is read by the rows of the words that occur. A weight that is used otherwise than in the pass of
    the layer that has it is nan.

    Args:
        module: The module; its parameters are on the meta device, before and afterwards.
        stored: Its tensors in the files.
        unread: Modules inside whose output nothing reads: they return their input.
    """
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    with ExitStack() as stack:
        for inner in unread:
            stack.callback(_passing_on(inner))
        for layer in module.modules():
            mine = {key: parameter for key, parameter in layer._parameters.items() if parameter is not None}
            if mine:
                files = {key: stored(names[id(parameter)]) for key, parameter in mine.items()}
                stack.callback(layer._parameters.update, mine)
                layer._parameters.update({key: _absent(parameter) for key, parameter in mine.items()})
                _follow(layer, files, stack)
        yield


def file_names(module: nn.Module, keys: Collection[str]) -> dict[str, str]:
    """Return the names in the files by the names of a module's parameters, as the libraries load them.

    Parameters that a library computes from several tensors are left out.
    """
    if not isinstance(module, PreTrainedModel):
        named = OrderedDict((key, key) for key in keys)
        if hasattr(module, "_fix_state_dict_keys_on_load"):  # of diffusers: the names of attention before 2023
            cast("Any", module)._fix_state_dict_keys_on_load(named)
        return named
    transforms = get_model_conversion_mapping(module)
    renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
    converters = cast("list[Any]", [each for each in transforms if not isinstance(each, WeightRenaming)])
    inside = module.state_dict()
    pairs = ((rename_source_key(key, renamings, converters, module.base_model_prefix, inside), key) for key in keys)
    named = {name: key for (name, converter), key in pairs if converter is None}
    # Tensors that several layers share are in a file under the name of one of them.
    shared: dict[int, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if name in named:
            shared.setdefault(id(parameter), named[name])
    return {name: shared[id(p)] for name, p in module.named_parameters() if id(p) in shared}


def blocks_of(encoder: PreTrainedModel) -> nn.ModuleList:
    """Return the layers of a text encoder, those of a language model where it sees images too."""
    count = encoder.config.get_text_config().num_hidden_layers
    lists = ((name, each) for name, each in encoder.named_modules() if isinstance(each, nn.ModuleList))
    return next(each for name, each in lists if len(each) == count and "vis" not in name)


def _follow(layer: nn.Module, files: Mapping[str, StoredTensor], stack: ExitStack) -> None:
    """Have a layer read its weights before each pass and drop them after it, until the stack is closed."""
    absent = dict(layer._parameters)

    def read(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if isinstance(layer, nn.Embedding):
            words, places = cast("Tensor", args[0]).unique(return_inverse=True)
            layer.weight = _present(files["weight"], files["weight"].rows(words.tolist()))
            return (places, *args[1:])
        for key, tensor in files.items():
            layer._parameters[key] = _present(tensor, tensor.read())
        return None

    def drop(*_: object) -> None:
        layer._parameters.update(absent)

    stack.callback(layer.register_forward_pre_hook(read).remove)
    stack.callback(layer.register_forward_hook(drop, always_call=True).remove)
    if isinstance(layer, nn.Embedding):
        padding, layer.padding_idx = layer.padding_idx, None  # of the whole table; it matters to gradients alone
        stack.callback(setattr, layer, "padding_idx", padding)


def _absent(parameter: nn.Parameter) -> nn.Parameter:
    """Return a parameter of the same shape whose only number, nan, takes no memory."""
    return nn.Parameter(torch.full((), torch.nan).expand(parameter.shape), requires_grad=False)


def _present(stored: StoredTensor, values: Tensor) -> nn.Parameter:
    """Return a parameter in float32 of some or all values of a tensor.

    Raises:
        InputError: A value is not finite.
    """
    if not is_finite(values):
        raise not_finite(f"{stored.path.parent.name}.{stored.name}")
    return nn.Parameter(values.to(torch.float32), requires_grad=False)


def _passing_on(module: nn.Module) -> Callable[[], None]:
    """Have a module return its input, until the function that is returned is called."""

    def forward(hidden_states: Tensor, *_: object, **__: object) -> Tensor:
        return hidden_states

    vars(module)["forward"] = forward
    return lambda: vars(module).pop("forward") and None
