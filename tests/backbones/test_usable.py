"""Models whose weights an edit would not reach are refused where the edit is made and where it is applied."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch.nn.utils import parametrizations, prune, spectral_norm

from erasure import erase
from erasure.errors import InputError
from tests import tiny


def fused(pipe: Any) -> None:
    pipe.fuse_qkv_projections()


def adapted(pipe: Any) -> None:
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_k"]))


def adapted_text(pipe: Any) -> None:
    pipe.text_encoder.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]))


def cast(pipe: Any) -> None:
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


def normed(pipe: Any) -> None:
    parametrizations.weight_norm(pipe.unet.conv_out)


def pruned(pipe: Any) -> None:
    prune.l1_unstructured(pipe.unet.conv_out, "weight", amount=0.1)


def hooked(pipe: Any) -> None:
    spectral_norm(pipe.unet.conv_in)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (fused, r"got fused projections in 'unet\..*'\. Call pipe\.unfuse_qkv_projections\(\) first"),
        (
            adapted,
            r"got an active LoRA or another adapter in 'unet\..*to_k'\. Call pipe\.unload_lora_weights\(\) first",
        ),
        (adapted_text, r"got an active LoRA or another adapter in 'text_encoder\..*q_proj'"),
        (cast, "got numbers of float8_e4m3fn in 'unet.*Remove from the unquantised model with --low-memory, and load"),
        (pruned, r"got weights computed from others in 'unet\.conv_out'"),
        (hooked, r"got weights computed from others in 'unet\.conv_in'"),
        (normed, r"got weights computed from others in 'unet\.conv_out'"),
    ],
)
def test_a_model_that_an_edit_does_not_reach_is_refused(changed: Callable[[Any], None], expected: str) -> None:
    edit, pipe = erase(tiny.sd1(), "cat"), tiny.sd1()
    changed(pipe)
    with pytest.raises(InputError, match=expected):
        erase(pipe, "cat")
    with pytest.raises(InputError, match=expected):
        edit.merge_into(pipe, check=False)
    with pytest.raises(InputError, match=expected), edit.applied_to(pipe, check=False):
        pass


def test_it_is_taken_again_as_it_was() -> None:
    pipe = tiny.sd1()
    edit = erase(pipe, "cat")
    fused(pipe)
    pipe.unfuse_qkv_projections()
    adapted(pipe)
    pipe.unload_lora_weights()
    with edit.applied_to(pipe):
        pass
    assert erase(pipe, "cat").changes.keys() == edit.changes.keys()


def test_transformers_are_looked_at_too() -> None:
    pipe = tiny.sd3()
    pipe.transformer.fuse_qkv_projections()
    with pytest.raises(InputError, match=r"got fused projections in 'transformer\."):
        erase(pipe, "cat")
