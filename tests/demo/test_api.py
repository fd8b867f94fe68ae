"""The API, through `gradio_client`, as docs/app.md has it."""

import base64
import io
import re
from pathlib import Path

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image

from erasure import Edit, tinyworld
from erasure.cli.main import app
from erasure.demo.server.serve import serve
from erasure.errors import BaseMismatchError, InputError
from tests import tiny
from tests.demo.running import App
from tests.eval import world

PAGE = Path(__file__).parents[2] / "docs" / "app.md"
QUICK = {"rows": "last-subject"}


@pytest.fixture(scope="module")
def address(running: App) -> str:
    return running.address


@pytest.fixture
def client(address: str) -> Client:
    return Client(address, verbose=False)


def test_the_example_of_the_docs_runs_as_it_stands(address: str) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    names: dict[str, object] = {}
    exec(code.replace("http://127.0.0.1:7860", address), names)
    assert [entry["removed"] for entry in names["ledger"]] == [["cat"]]  # type: ignore[attr-defined]


def test_erase_compare_undo_and_export(client: Client) -> None:
    ledger = client.predict(["cat", "gun"], settings=QUICK, api_name="/erase")
    assert [(entry["id"], entry["removed"], entry["state"]) for entry in ledger] == [
        ("001", ["cat"], "standing"),
        ("002", ["gun"], "standing"),
    ]
    (pair,) = client.predict(["a cat"], steps=1, api_name="/compare")
    pictures = [Image.open(io.BytesIO(base64.b64decode(pair[side].partition(",")[2]))) for side in ("before", "after")]
    assert [image.size for image in pictures] == [(64, 64)] * 2
    assert [reading["name"] for reading in pair["readings"]] == ["cat"]
    file = client.predict("edit", api_name="/export")["file"]
    assert Edit.load(file).metadata.concepts[0].target == "cat"
    assert client.predict(api_name="/verify") == []
    assert [entry["state"] for entry in client.predict("001", api_name="/undo")] == ["undone", "standing"]


def test_every_client_has_a_ledger_of_its_own(client: Client, address: str) -> None:
    client.predict(["cat"], settings=QUICK, api_name="/erase")
    assert Client(address, verbose=False).predict(api_name="/ledger") == []


def test_methods_and_suggestions_say_what_may_be_sent(client: Client) -> None:
    methods = {method["name"]: method for method in client.predict(api_name="/methods")}
    assert "strength" in {setting["name"] for setting in methods["uce"]["settings"]}
    assert client.predict(["cat"], api_name="/suggest")["keep"][0] == "dog"


def test_attention_is_a_picture(client: Client) -> None:
    found = client.predict("a cat and a dog", ["cat", "dog"], api_name="/attention")
    assert found["words"] == ["cat", "dog"]
    assert found["sheet"].startswith("data:image/png;base64,")


@pytest.mark.parametrize(
    ("endpoint", "given", "said"),
    [
        ("/erase", {"concepts": ["unicorn"]}, "Unknown concept of the tiny world 'unicorn'"),
        ("/erase", {"concepts": "cat"}, "concepts: expected a list of names, got 'cat'"),
        ("/erase", {"concepts": ["cat"], "method": "../uce"}, "Unknown eraser '../uce'"),
        ("/erase", {"concepts": ["cat"], "settings": {"captions": "/etc/passwd"}}, "settings: expected one of"),
        ("/compare", {"prompts": ["x" * 5000]}, "prompt: expected at most 1,000 characters, got 5,000"),
        ("/compare", {"prompts": ["a cat"], "seeds": "0-9999"}, "seeds: expected at most 8 seeds"),
        ("/compare", {"prompts": ["a cat"], "steps": 10_000}, "steps: expected a number from 1 to 100"),
        ("/undo", {"entry": "../../etc/passwd"}, "undo: expected a removal, got none"),
        ("/export", {"form": "/etc/passwd"}, "Unknown form '/etc/passwd'"),
        ("/measure", {"images": 1_000_000}, "images: expected a number from 20 to 80"),
        ("/attention", {"prompt": "a cat", "words": ["dog"]}, "phrase: expected words of the prompt"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(client: Client, endpoint: str, given: dict, said: str) -> None:
    with pytest.raises(AppError) as error:
        client.predict(**given, api_name=endpoint)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_the_pages_own_events_are_not_part_of_the_api(client: Client) -> None:
    offered = client.view_api(print_info=False, return_format="dict")
    assert set(offered["named_endpoints"]) == {  # type: ignore[index]
        *("/erase", "/compare", "/ledger", "/undo", "/verify", "/suggest", "/methods"),
        *("/attention", "/measure", "/export"),
    }
    assert not offered["unnamed_endpoints"]  # type: ignore[index]


@pytest.mark.parametrize("path", ["/etc/passwd", "../../../../etc/passwd", str(PAGE), "erasure/cli/main.py"])
def test_no_file_is_served_but_what_the_page_made(client: Client, path: str) -> None:
    import httpx

    answer = httpx.get(f"{client.src}gradio_api/file={path}")
    assert answer.status_code in (403, 404)


def test_nothing_of_size_can_be_uploaded(client: Client) -> None:
    import httpx

    answer = httpx.post(f"{client.src}gradio_api/upload", files={"files": ("a.txt", b"x" * 5000)})
    assert answer.status_code == 413


@pytest.fixture
def own_environment(monkeypatch) -> None:
    """Take back what `serve` sets."""
    for name in ("GRADIO_ANALYTICS_ENABLED", "GRADIO_TEMP_DIR"):
        monkeypatch.setenv(name, "")


@pytest.mark.usefixtures("own_environment")
def test_a_shared_page_never_has_one_ledger_for_all(tmp_path) -> None:
    with pytest.raises(InputError, match="expected no --ledger with --share"):
        serve(world.pipeline(), "tinyworld", "cpu", ledger=tmp_path / "mine", share=True)


@pytest.mark.usefixtures("own_environment")
def test_a_ledger_of_another_model_is_refused_before_anything_starts(tmp_path) -> None:
    from erasure import Ledger

    Ledger.open_or_create(tmp_path / "mine", tiny.sd1(), "a/model")
    with pytest.raises(BaseMismatchError):
        serve(world.pipeline(), "tinyworld", "cpu", ledger=tmp_path / "mine")


@pytest.mark.usefixtures("own_environment")
def test_a_port_that_is_taken_is_said(address: str, monkeypatch) -> None:
    monkeypatch.setattr(tinyworld, "load_oracle", lambda device="cpu": world.oracle())
    port = int(address.rstrip("/").rpartition(":")[2])
    with pytest.raises(InputError, match=f"expected a free port, got {port}"):
        serve(world.pipeline(), "tinyworld", "cpu", port=port)


@pytest.mark.usefixtures("own_environment")
def test_without_gradio_the_extra_is_named(monkeypatch) -> None:
    import builtins
    import sys

    from typer.testing import CliRunner

    monkeypatch.setattr(tinyworld, "load", lambda device="cpu", dtype=None: world.pipeline())
    for name in [name for name in sys.modules if name.startswith("erasure.demo.") or name == "gradio"]:
        monkeypatch.delitem(sys.modules, name)
    found = builtins.__import__

    def without(name: str, *arguments, **options):
        if name == "gradio":
            raise ModuleNotFoundError("No module named 'gradio'", name="gradio")
        return found(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    result = CliRunner().invoke(app, ["app"])
    assert result.exit_code == 2
    assert "pip install 'erasure[app]'" in result.stderr
