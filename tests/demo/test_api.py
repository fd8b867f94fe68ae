"""The API, through `gradio_client`, as docs/app.md has it."""

import base64
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image
from typer.testing import CliRunner

from erasure import Edit
from erasure.cli.main import app
from erasure.demo.server.serve import _launched, serve
from erasure.demo.server.waiting import WaitingPage
from erasure.errors import BaseMismatchError, InputError
from tests import tiny
from tests.demo.running import App, answer, free_port
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
        (
            "/erase",
            {"concepts": ["cat"], "settings": {"strength": 1e308}},
            "settings.strength: expected a",
        ),
        ("/erase", {"concepts": ["cat"], "method": "esd", "settings": {"steps": 10**12}}, "settings.steps: expected a"),
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
        *("/attention", "/measure", "/audit", "/export"),
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


def test_a_shared_page_never_has_one_ledger_for_all(tmp_path) -> None:
    result = CliRunner().invoke(app, ["app", "--share", "--ledger", str(tmp_path / "mine")])
    assert result.exit_code == 2
    assert "expected no --ledger with --share" in result.stderr


@pytest.mark.usefixtures("own_environment")
def test_a_ledger_of_another_model_is_refused_before_anything_starts(tmp_path) -> None:
    from erasure import Ledger

    Ledger.open_or_create(tmp_path / "mine", tiny.sd1(), "a/model")
    with pytest.raises(BaseMismatchError), WaitingPage(free_port()) as waiting:
        serve(world.pipeline(), "tinyworld", "cpu", ledger=tmp_path / "mine", minutes=1.0, waiting=waiting)


def test_a_port_that_is_taken_is_said(address: str) -> None:
    port = int(address.rstrip("/").rpartition(":")[2])
    with pytest.raises(InputError, match=f"expected a free port, got {port}. Give another by --port"):
        WaitingPage(port)


def test_a_port_that_is_taken_between_is_said(monkeypatch) -> None:
    from types import SimpleNamespace

    def taken(**options: object) -> None:
        raise OSError("Cannot find empty port")

    with pytest.raises(InputError, match="expected a free port, got 7"):
        _launched(SimpleNamespace(launch=taken), 7, share=False)


def test_the_waiting_page_says_what_is_loaded_and_leaves_the_port(monkeypatch) -> None:
    stages: list[str] = []
    with WaitingPage(free_port(), stages.append) as waiting:
        waiting.say("loading <b>my model</b>")
        status, page = answer(waiting.address)
        assert (status, stages) == (503, ["loading <b>my model</b>"])
        assert "loading &lt;b&gt;my model&lt;/b&gt;" in page
        assert "<b>" not in page
    WaitingPage(waiting.port).close()
    monkeypatch.setenv("GRADIO_SERVER_NAME", "no.such.host.invalid")
    with pytest.raises(InputError, match=r"expected an address of this machine, got 'no\.such\.host"):
        WaitingPage(waiting.port)


def test_without_gradio_the_extra_is_named_before_anything_is_loaded(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    result = CliRunner().invoke(app, ["app"])
    assert result.exit_code == 2
    assert "pip install 'erasure[app]'" in result.stderr
    assert "loading" not in result.stdout


def test_a_request_of_any_length_is_refused(client: Client) -> None:
    import httpx

    def pieces():
        yield from [b" " * 2**16] * 5

    call = f"{client.src}gradio_api/call/suggest"
    for body in (b" " * (2**18 + 1), pieces()):
        assert httpx.post(call, content=body, timeout=None).status_code == 413
    assert httpx.post(call, json={"data": [["cat"]]}, timeout=None).status_code == 200


_HOLD = """
import sys, time
from gradio_client import Client
job = Client(sys.argv[1], verbose=False).submit(
    ["cat"], "esd", settings={"steps": 1500, "batch_size": 80}, api_name="/erase"
)
while job.status().code.name != "PROCESSING":
    time.sleep(0.1)
print("held", flush=True)
time.sleep(3600)
"""


def test_a_client_that_leaves_frees_the_model(address: str) -> None:
    leaving = subprocess.Popen([sys.executable, "-c", _HOLD, address], stdout=subprocess.PIPE, text=True)
    try:
        assert leaving.stdout is not None
        assert leaving.stdout.readline() == "held\n"
    finally:
        leaving.kill()
        leaving.communicate()
    (pair,) = Client(address, verbose=False).predict(["a cat"], steps=1, api_name="/compare")
    assert pair["after"] == pair["before"]
