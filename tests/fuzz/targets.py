"""Operations that read damaged input: each makes one case from a seed, and ends well or by an error of one line."""

import hashlib
import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from typer.testing import CliRunner

from erasure import Concept, Edit, Ledger
from erasure.cli.entries import entry_json
from erasure.cli.main import app
from erasure.closed_form.caption_statistics import read_captions
from erasure.concept import normalized
from erasure.erasers import make_eraser
from erasure.errors import ErasureError
from erasure.eval.benchmarks.coco import Coco
from erasure.eval.benchmarks.imagenette import Imagenette
from erasure.eval.images.manifest import FORMAT as STORE_FORMAT
from erasure.eval.images.manifest import MANIFEST, Manifest
from erasure.eval.images.store import ImageStore
from erasure.eval.protocols.ledger_measures import measured_of
from erasure.eval.reports.card_results import results_of
from erasure.eval.reports.score_files import compare_scores
from erasure.io.text import is_control
from erasure.ledger.record import FILE
from erasure.loading import load_model
from erasure.personalize.folder import PERSONALIZED, Personalized
from erasure.runs import configs, lists, overrides, removal, schema
from erasure.sampling import SamplingSettings
from tests import tiny

from .damage import VALUES, damaged_bytes, damaged_json, damaged_text, json_bytes

ROOT = Path(__file__).parents[2]
Case = Callable[[random.Random, Path], None]


class Samples:
    """Whole inputs, made once, that the cases damage copies of.

    Args:
        folder: Empty folder for them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pipe = tiny.sd1()
        self.model = folder / "model"
        self.pipe.save_pretrained(self.model)
        self.ledger = folder / "ledger"
        ledger = Ledger.open_or_create(self.ledger, self.pipe, str(self.model))
        uce = make_eraser("uce", rows="last-subject")
        for concept in (Concept(target="cat", anchor="dog"), Concept(target="boat", preserve=("ship",))):
            ledger.remove(self.pipe, uce, [concept])
        ledger.undo("001")
        (self.ledger / "run.json").write_bytes(json_bytes(_RUN))
        (self.ledger / "measures").mkdir()
        measure = {**_MEASURE, "state": ledger.state("002")}
        (self.ledger / "measures" / "002.json").write_bytes(json_bytes(measure))
        (self.ledger / "evaluations" / "one").mkdir(parents=True)
        (self.ledger / "evaluations" / "one" / "scores.json").write_bytes(json_bytes(_SCORES))
        self.edit = ledger.path / ledger.entries[1].file
        self.yaml = [
            path.read_text() for path in sorted((ROOT / "configs").glob("*/*.yaml")) if path.parent.name != "profiles"
        ]
        self.store = folder / "store"
        manifest = Manifest.of(self.pipe, ["a cat"], [0], SamplingSettings(steps=1))
        self.store.mkdir()
        (self.store / MANIFEST).write_bytes(json_bytes({"format": STORE_FORMAT, **manifest.as_json()}))


_RUN = {
    "config": {"model": "tinyworld", "eraser": {"name": "uce"}, "seed": 0},
    "versions": {"torch": "2"},
    "device": "cpu",
    "threads": 1,
    "platform": "Linux",
    "git": {"commit": "0" * 40, "dirty": False},
    "seconds": 1.0,
    "peak_mib": 1.0,
}
_RATE = {"value": 0.5, "hits": 1, "n": 2, "interval": [0.1, 0.9]}
_MEASURE = {
    "worst": "boat",
    "judge": "oracle",
    "sampler": {"steps": 1, "guidance_scale": 1.0},
    "removed": {"boat": {"efficacy": _RATE, "before": _RATE}},
    "kept": {"near": {"retention": _RATE, "distance": {"value": 0.1}}, "far": {"retention": None, "distance": _RATE}},
}
_SCORES = {
    "format": "erasure-scores/1",
    "rows": {"erased": {"efficacy": {**_RATE, "low": 0.1, "high": 0.9, "unit": "share"}}},
    "protocol": {"rows": {"erased": "edit: 002 by uce"}, "benchmark": {"id": "x"}, "metrics": {"efficacy": {}}},
}
_CSV = 'concept,anchor,preserve,kind\ncat,dog,Monet;Degas,object\n"neon, bright",,,style\n'
_PROMPTS = 'case_number,prompt,evaluation_seed,class\n0,"a tench, big",12,tench\n1,a church,7,church\n'


def fuzz_ledger(samples: Samples, chance: random.Random, folder: Path) -> None:
    """Damage the record of a ledger, or a file of it together with its hash, and read all of it."""
    copied = folder / "ledger"
    shutil.copytree(samples.ledger, copied)
    record = copied / FILE
    kind = chance.randrange(4)
    if kind == 0:
        record.write_bytes(damaged_bytes(record.read_bytes(), chance))
    elif kind == 1:
        data = json.loads(record.read_bytes())
        file = chance.choice([entry["file"] for entry in data["entries"]])
        _damage_edit(copied / file, chance)
        for entry in data["entries"]:
            entry["sha256"] = hashlib.sha256((copied / entry["file"]).read_bytes()).hexdigest()
        record.write_bytes(json_bytes(data))
    elif kind == 2:
        file = chance.choice([path for path in copied.rglob("*") if path.is_file()])
        file.write_bytes(damaged_bytes(file.read_bytes(), chance))
    else:
        record.write_bytes(json_bytes(damaged_json(json.loads(record.read_bytes()), chance)))
    before = _hashes(copied)
    try:
        ledger = Ledger.open(copied)
        for entry in ledger.entries:
            entry_json(entry, ledger)
        for problem in ledger.verify():
            _check_line(problem)
        ledger.edit()
        for entry in ledger.entries:
            measured_of(ledger, entry)
        if ledger.standing:
            results_of(ledger)
        removal.recorded_facts(copied)
    except ErasureError:
        _check_unchanged(before, copied)
        raise
    if ledger.standing:
        ledger.undo(ledger.standing[0].id)


def fuzz_edit(samples: Samples, chance: random.Random, folder: Path) -> None:
    """Damage the file of an edit, load it, and apply it."""
    file = folder / "edit.safetensors"
    shutil.copyfile(chance.choice((samples.edit, ROOT / "tests" / "golden" / "edit.safetensors")), file)
    _damage_edit(file, chance)
    rows = samples.ledger / "rows"
    edit = Edit.load(file, shared=rows) if chance.random() < 0.5 else Edit.load(file)
    edit.check_base(samples.pipe)
    with edit.applied_to(samples.pipe):
        pass


def fuzz_yaml(samples: Samples, chance: random.Random, folder: Path) -> None:
    """Damage a config, or a setting by path, and validate it."""
    raw: dict[str, Any] = {"concepts": [{"target": "cat"}]}
    if chance.random() < 0.6:
        text = damaged_text(chance.choice(samples.yaml), chance)
        (folder / "run.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
        raw = configs.read_config(folder / "run.yaml")
    if chance.random() < 0.6:
        path = chance.choice(("seed", "eraser.reg", "concepts.0.target", "measure.far", "output", "eraser", "concepts"))
        raw = overrides.override(raw, damaged_text(f"{path}={chance.choice(VALUES)}", chance))
    schema.parse(raw)


def fuzz_csv(samples: Samples, chance: random.Random, folder: Path) -> None:
    """Damage a list of requests or of prompts, and read it by each of its readers."""
    file = folder / "list.csv"
    text = damaged_text(chance.choice((_CSV, "cat,dog\nneon\n", _PROMPTS)), chance)
    content = text.encode("utf-8", "surrogatepass")
    file.write_bytes(content if chance.random() < 0.8 else damaged_bytes(content, chance))
    reader = chance.randrange(4)
    if reader == 0:
        _ = Coco(path=file).items
    elif reader == 1:
        _ = Imagenette(path=file).items
    elif reader == 2:
        list(read_captions(file))
    else:
        for request in lists.read_concepts(file):
            assert normalized(request["target"])
            assert "\n" not in request["target"]


def fuzz_folders(samples: Samples, chance: random.Random, folder: Path) -> None:
    """Damage a folder of a model, a personalised model or a store of images, and open it."""
    kind = chance.randrange(12)
    if kind == 0:
        copied = folder / "model"
        shutil.copytree(samples.model, copied)
        file = chance.choice([path for path in sorted(copied.rglob("*")) if path.is_file()])
        if file.suffix == ".json" and chance.random() < 0.7:
            file.write_bytes(json_bytes(damaged_json(json.loads(file.read_bytes()), chance)))
        else:
            file.write_bytes(damaged_bytes(file.read_bytes(), chance))
        load_model(str(copied))
    elif kind < 5:
        record = {"format": "erasure-personalization/1", "base": "tinyworld", "sha256": "0", "instances": []}
        (folder / PERSONALIZED).write_bytes(_damaged_document(record, chance))
        Personalized.open(folder)
    elif kind < 9:
        manifest = json.loads((samples.store / MANIFEST).read_bytes())
        (folder / MANIFEST).write_bytes(_damaged_document(manifest, chance))
        ImageStore.open(folder).missing()
    else:
        files = [folder / "one.json", folder / "two.json"]
        for file in files:
            file.write_bytes(_damaged_document(_SCORES, chance))
        compare_scores(files, [], "erased")


def fuzz_options(samples: Samples, chance: random.Random, folder: Path) -> None:
    """Call a command with random options on ledgers and models that are not there or are damaged."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    name = chance.choice([name for name in sorted(commands) if name not in ("app", "doctor", "methods", "pieces")])
    arguments = [name]
    for parameter in commands[name].params:
        if parameter.param_type_name == "argument":
            arguments += [_value(parameter.name, chance)] * chance.choice((0, 1, 1, 1, 2))
        elif parameter.name != "help" and chance.random() < (0.9 if parameter.required else 0.25):
            arguments.append(chance.choice(parameter.opts))
            if not parameter.is_flag and chance.random() < 0.95:
                arguments.append(_value(parameter.name, chance))
    result = CliRunner().invoke(app, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise AssertionError(f"{arguments}: {result.exception!r}") from result.exception
    assert result.exit_code in (0, 2), (arguments, result.exit_code, result.output)
    if result.exit_code == 2:
        _check_line(result.stderr.strip())
        assert not list(folder.iterdir()), arguments


def _value(name: str, chance: random.Random) -> str:
    if name in ("model", "source", "original", "ledger", "gold"):
        return chance.choice(("nowhere", "no/where", "", "x" * 5000, "a\x1b[31m", "./nothing"))
    plain = ("1", "0", "-1", "1e5", "7-0", "cat", "cat,dog", "a=b", "eraser.reg=x", "concepts.²=1", "seed=2020-01-01")
    return chance.choice((*plain, "", " ", "--", "[red]", "é", "nowhere.csv", "9" * 30, "\x1b]0;x\x07", "x" * 300))


def _damaged_document(value: Any, chance: random.Random) -> bytes:
    if chance.random() < 0.3:
        return damaged_bytes(json_bytes(value), chance)
    return json_bytes(damaged_json(value, chance))


def _damage_edit(file: Path, chance: random.Random) -> None:
    """Damage the bytes of a safetensors file, its header, or the description within its header."""
    content = file.read_bytes()
    kind = chance.randrange(3)
    if kind == 0:
        file.write_bytes(damaged_bytes(content, chance))
        return
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    if kind == 1:
        header = damaged_json(header, chance)
    else:
        description = json.loads(header["__metadata__"]["edit"])
        header["__metadata__"]["edit"] = json.dumps(damaged_json(description, chance))
    written = json_bytes(header)
    file.write_bytes(struct.pack("<Q", len(written)) + written + content[8 + length :])


def _hashes(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _check_unchanged(before: dict[str, str], folder: Path) -> None:
    assert _hashes(folder) == before, "an error changed the folder"


def _check_line(text: str) -> None:
    assert text, "an empty message"
    assert len(text.splitlines()) == 1, text
    assert not any(is_control(sign) for sign in text), text


def check_error(error: ErasureError) -> None:
    """Raise AssertionError unless an error is one line that a person can act on."""
    assert str(error).strip(), "an empty message"
    assert "\n" not in str(error), str(error)


TARGETS: dict[str, Callable[[Samples, random.Random, Path], None]] = {
    "ledger": fuzz_ledger,
    "edit": fuzz_edit,
    "yaml": fuzz_yaml,
    "csv": fuzz_csv,
    "folders": fuzz_folders,
    "options": fuzz_options,
}
"""Case of each kind of input."""
