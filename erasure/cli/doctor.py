"""What this machine has, what works on it, and how to mend what does not; all of it tried, nothing guessed."""

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
    """One line of the doctor's.

    Attributes:
        name: What was looked at.
        found: What it is like; where it is wanting, what mends it.
    """

    name: str
    found: str


def checks(device: str) -> Iterator[Check]:
    """Give what is found of the machine and of what is installed.

    Args:
        device: What pictures would be made on: "cpu", "cuda", "mps".
    """
    yield Check(name="device", found=_about(device))
    for dtype in (torch.float16, torch.bfloat16):
        yield Check(name=str(dtype).removeprefix("torch."), found=_tried(lambda dtype=dtype: _convolve(device, dtype)))
    yield Check(name="attention", found=_tried(lambda: _attend(device)))
    yield Check(name="free disk", found=f"{shutil.disk_usage(Path.cwd()).free / 2**30:.1f} GiB")
    for package, (extra, use) in _EXTRAS.items():
        found = "installed"
        if not find_spec(package):
            found = f"not installed: pip install 'erasure[{extra}]', for {use}"
        elif package == "xformers":  # built for one release of torch, so that it is there says little
            found = _tried(lambda: _attend_by_xformers(device), "stay with --attention sdpa")
        yield Check(name=package, found=found)
    yield Check(name="Hub", found=_hub())


def _about(device: str) -> str:
    if not device.startswith("cuda"):
        return f"{device}, {torch.get_num_threads()} threads"
    about = torch.cuda.get_device_properties(device)
    return f"{device}, {about.name}, {about.total_memory / 2**30:.0f} GiB, capability {about.major}.{about.minor}"


def _tried(what: Callable[[], object], otherwise: str = "stay with float32, or use another device") -> str:
    try:
        what()
    except (RuntimeError, NotImplementedError, ImportError, ValueError) as error:
        return f"does not work here ({reason(error).rstrip('.')}): {otherwise}"
    return "works"


def _convolve(device: str, dtype: torch.dtype) -> None:
    picture = torch.ones(1, 4, 8, 8, device=device, dtype=dtype)
    torch.isfinite(F.conv2d(picture, torch.ones(4, 4, 3, 3, device=device, dtype=dtype), padding=1)).all().item()


def _attend(device: str) -> None:
    tokens = torch.ones(1, 2, 4, 8, device=device)
    torch.isfinite(F.scaled_dot_product_attention(tokens, tokens, tokens)).all().item()


def _attend_by_xformers(device: str) -> None:
    attend_once_by_xformers(device, torch.float16 if device.startswith("cuda") else torch.float32)


def _hub() -> str:
    """Say how the Hub is reached, and never by which token."""
    login = "logged in" if get_token() else "no login: hf auth login, to push and for models with terms"
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    return f"{login}; offline by HF_HUB_OFFLINE: unset it to download or push" if offline else login
