"""Checks of this machine and its installed packages, each made by running the operation."""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from huggingface_hub import get_token
from torch.nn import functional as F

from ..errors import reason
from ..loading import attend_once_by_xformers

_EXTRAS = {
    "open_clip": ("eval", "measures and reports"),
    "gradio": ("app", "the web demo"),
    "nudenet": ("nudity", "the measure of nudity; its model is AGPL-3.0"),
    "xformers": ("xformers", "--attention xformers, on CUDA"),
}


@dataclass(frozen=True, kw_only=True)
class Check:
    """Result of one check.

    Attributes:
        name: Name of the checked part.
        result: State of the part; if it does not work, the command that repairs it.
    """

    name: str
    result: str


def checks(device: str) -> Iterator[Check]:
    """Yield the checks of a device and of the installed extras.

    Args:
        device: Device of the sampling: "cpu", "cuda", "mps".
    """
    yield Check(name="device", result=_about(device))
    for dtype in (torch.float16, torch.bfloat16):
        yield Check(name=str(dtype).removeprefix("torch."), result=_tried(lambda dtype=dtype: _convolve(device, dtype)))
    yield Check(name="attention", result=_tried(lambda: _attend(device)))
    yield Check(name="free disk", result=f"{shutil.disk_usage(Path.cwd()).free / 2**30:.1f} GiB")
    for package, (extra, use) in _EXTRAS.items():
        result = "installed"
        if not find_spec(package):
            result = f"not installed: pip install 'erasure[{extra}]', for {use}"
        elif package == "xformers":  # built for one release of torch: installed does not mean usable
            result = _tried(lambda: _attend_by_xformers(device), "stay with --attention sdpa")
        yield Check(name=package, result=result)
    yield Check(name="Hub", result=_hub())


def _about(device: str) -> str:
    if not device.startswith("cuda"):
        return f"{device}, {torch.get_num_threads()} threads"
    about = torch.cuda.get_device_properties(device)
    return f"{device}, {about.name}, {about.total_memory / 2**30:.0f} GiB, capability {about.major}.{about.minor}"


def _tried(operation: Callable[[], object], otherwise: str = "stay with float32, or use another device") -> str:
    try:
        operation()
    except (RuntimeError, NotImplementedError, ImportError, ValueError) as error:
        return f"does not work here ({reason(error).rstrip('.')}): {otherwise}"
    return "works"


def _convolve(device: str, dtype: torch.dtype) -> None:
    latents = torch.ones(1, 4, 8, 8, device=device, dtype=dtype)
    torch.isfinite(F.conv2d(latents, torch.ones(4, 4, 3, 3, device=device, dtype=dtype), padding=1)).all().item()


def _attend(device: str) -> None:
    tokens = torch.ones(1, 2, 4, 8, device=device)
    torch.isfinite(F.scaled_dot_product_attention(tokens, tokens, tokens)).all().item()


def _attend_by_xformers(device: str) -> None:
    attend_once_by_xformers(device, torch.float16 if device.startswith("cuda") else torch.float32)


def _hub() -> str:
    """Return the state of the login to the Hub, without the token."""
    login = "logged in" if get_token() else "no login: hf auth login, to push and for models with terms"
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    return f"{login}; offline by HF_HUB_OFFLINE: unset it to download or push" if offline else login
