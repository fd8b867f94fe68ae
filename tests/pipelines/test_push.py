"""Pushing to the Hub, tried on a server on this machine that speaks the few calls of it; see hub_server.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from erasure.edits import DenseChange, EditMetadata, WeightEdit
from erasure.errors import InputError
from erasure.io.push import check_push
from tests.pipelines.hub_server import Hub, serving

TOKEN = "hf_notASecretButItMustNotBeSeen"
PUSH = """
import sys
from pathlib import Path
from erasure.errors import ErasureError
from erasure.io.push import push

try:
    pushed = push(Path(sys.argv[1]), sys.argv[2], private="private" in sys.argv, message="cat removed")
except ErasureError as error:
    sys.exit(str(error))
print(pushed.url, *pushed.left)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small export."""
    (tmp_path / "out" / "unet").mkdir(parents=True)
    (tmp_path / "out" / "README.md").write_text("---\nlicense: apache-2.0\n---\n\n# A model\n")
    (tmp_path / "out" / "unet" / "model.safetensors").write_bytes(b"weights" * 100)
    (tmp_path / "out" / "unet" / "config.json").write_text("{}")
    return tmp_path / "out"


def pushed(hub: Hub, folder: Path, *arguments: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    """Push in a process of its own, for which the server is the Hub."""
    home = {"HF_HOME": str(folder.parent / "home"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    environment = {**os.environ, **home, "HF_ENDPOINT": hub.url, "HF_TOKEN": token}
    command = [sys.executable, "-c", PUSH, str(folder), "me/erased", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_all_files_arrive_in_one_commit(folder: Path) -> None:
    with serving() as hub:
        run = pushed(hub, folder)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == f"{hub.url}/me/erased/commit/{1:040d}"
    assert hub.commits == {"me/erased": ["cat removed"]}
    assert hub.files["me/erased"] == {**contents(folder), ".gitattributes": b""}
    assert hub.repos == {"me/erased": "public"}
    assert hub.tokens == {f"Bearer {TOKEN}"}


def test_after_an_interruption_nothing_large_is_sent_twice(folder: Path) -> None:
    with serving() as hub:
        hub.refuse = "/commit/"
        first = pushed(hub, folder)
        assert first.returncode == 1
        assert hub.commits == {"me/erased": []}
        hub.refuse = None
        assert pushed(hub, folder).returncode == 0
    assert hub.commits == {"me/erased": ["cat removed"]}
    assert hub.files["me/erased"]["unet/model.safetensors"] == b"weights" * 100
    assert [method for method, _ in hub.requests].count("PUT") == 1


def test_the_token_is_in_no_message(folder: Path) -> None:
    with serving() as hub:
        hub.refuse = "/preupload/"  # the server says the token back
        run = pushed(hub, folder)
    assert run.returncode == 1
    assert len(run.stderr.strip().splitlines()) == 1
    assert "expected the Hub to take 'me/erased', got" in run.stderr
    assert "not allowed with Bearer ***" in run.stderr
    assert TOKEN not in run.stdout + run.stderr


def test_private_is_private_or_refused(folder: Path) -> None:
    with serving() as hub:
        assert pushed(hub, folder, "private").returncode == 0
        assert hub.repos == {"me/erased": "private"}
        hub.repos["me/erased"] = "public"
        run = pushed(hub, folder, "private")
        assert run.returncode == 1
        assert "expected 'me/erased' to be private, got a public one" in run.stderr
        assert len(hub.commits["me/erased"]) == 1


def test_weights_that_were_there_before_are_named(folder: Path) -> None:
    with serving() as hub:
        assert pushed(hub, folder).returncode == 0
        hub.files["me/erased"]["unet/model.fp16.safetensors"] = b"not erased"
        run = pushed(hub, folder)
    assert run.stdout.split()[1:] == ["unet/model.fp16.safetensors"]


def test_a_hub_that_is_not_there_is_one_line(folder: Path) -> None:
    with serving() as hub:
        pass
    run = pushed(hub, folder)
    assert run.returncode == 1
    assert len(run.stderr.strip().splitlines()) == 1
    assert "Run it again to go on." in run.stderr


def test_without_a_login_nothing_is_asked(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("erasure.io.push.get_token", lambda: None)
    with pytest.raises(InputError, match="expected a login of the Hub, got none"):
        check_push("me/erased")


@pytest.mark.parametrize("repo", ["erased", "me/erased/again", "me/er ased", "", "me/--"])
def test_a_name_that_is_none_is_refused(repo: str) -> None:
    with pytest.raises(InputError, match="expected a repository 'USER/NAME'"):
        check_push(repo)


def test_an_edit_is_uploaded_as_one_file(tmp_path: Path) -> None:
    edit = tmp_path / "own.safetensors"
    metadata = EditMetadata.unedited("0" * 64, "tiny")
    WeightEdit(changes={"w": DenseChange(delta=torch.ones(2))}, metadata=metadata).save(edit)
    script = (
        "import sys; from erasure import Edit; print(Edit.from_pretrained(sys.argv[1]).push_to_hub(sys.argv[2],"
        " message='cat removed'))"
    )
    home = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN}
    with serving() as hub:
        environment = {**os.environ, **home, "HF_ENDPOINT": hub.url}
        command = [sys.executable, "-c", script, str(edit), "me/erased"]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == f"{hub.url}/me/erased/commit/{1:040d}"
    uploaded = tmp_path / "uploaded.safetensors"
    uploaded.write_bytes(hub.files["me/erased"]["edit.safetensors"])
    # The order of a header's keys is not fixed; what the file holds is.
    assert _content(uploaded) == _content(edit)


def _content(file: Path) -> tuple[dict[str, str], dict[str, list[float]]]:
    with safe_open(file, framework="pt") as opened:
        return opened.metadata(), {key: opened.get_tensor(key).tolist() for key in opened.keys()}  # noqa: SIM118
