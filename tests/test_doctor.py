"""What `erasure doctor` finds."""

import pytest
import torch
from typer.testing import CliRunner

from erasure import tinyworld
from erasure.cli import doctor
from erasure.cli.main import app
from tests.eval import world


def found(device: str = "cpu") -> dict[str, str]:
    return {check.name: check.result for check in doctor.checks(device)}


def test_what_works_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found()["attention"] == "works"
    assert found()["device"] == f"cpu, {torch.get_num_threads()} threads"

    def broken(*arguments, **options):
        raise RuntimeError("no kernel\nand a trace")

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", broken)
    assert found()["attention"].startswith("does not work here (no kernel): ")
    assert found()["bfloat16"] == "works"


def test_what_is_missing_has_its_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    assert found()["gradio"] == "not installed: pip install 'erasure[app]', for the web demo"
    monkeypatch.setattr(tinyworld, "load", lambda device="cpu", dtype=None: world.pipeline())
    shown = CliRunner().invoke(app, ["doctor"])
    assert shown.exit_code == 0
    assert "pip install 'erasure[app]'" in shown.stdout  # the brackets are no markup


def test_a_login_is_told_and_its_token_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(doctor, "get_token", lambda: "hf_secret")
    assert found()["Hub"] == "logged in"
    monkeypatch.setattr(doctor, "get_token", lambda: None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "no login: hf auth login" in found()["Hub"]
    assert "unset it" in found()["Hub"]


@pytest.mark.gpu
def test_on_a_gpu_it_names_it() -> None:
    assert torch.cuda.get_device_name() in found("cuda")["device"]
    assert found("cuda")["float16"] == "works"
