"""Runs: a file is checked whole, what it leaves open is filled in, and what was run can be run again."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from erasure import Concept, erase
from erasure.backbones import backbone_of
from erasure.backbones.name_lengths import check_names
from erasure.concept import normalized
from erasure.edits import SamplingEdit
from erasure.erasers import eraser_class, eraser_names, make_eraser
from erasure.errors import AlreadyRemovedError, ErasureError, InputError, UnknownNameError
from erasure.ledger import Ledger
from erasure.registry import registries
from erasure.runs import configs, lists, overrides, removal, schema
from erasure.tinyworld import vocabulary
from erasure.tinyworld.profile import TinyWorldProfile
from tests import tiny

CONFIGS = Path(__file__).parents[1] / "configs"
ELSEWHERE = {"model": "some/model", "concepts": [{"target": "Van Gogh"}]}


def test_the_smallest_config_is_filled_in_from_the_tiny_world() -> None:
    run = schema.parse({"concepts": [{"target": "KITTY"}]})
    (concept,) = run.concepts
    assert (run.model, run.eraser.name) == ("tinyworld", "uce")
    assert concept.target == "cat"
    assert concept.aliases == vocabulary.SYNONYMS["cat"]
    assert concept.kind == "object"
    assert concept.anchor == ""
    # Everything else it knows, but for the cat with a name of its own.
    assert set(concept.preserve) == set(vocabulary.concepts()) - {"cat", "Mittens"}


def test_a_concept_of_a_run_is_what_it_would_be_alone() -> None:
    run = schema.parse({"concepts": [{"target": "cat"}, {"target": "neon"}, {"target": "Biscuit"}]})
    assert [concept.kind for concept in run.concepts] == ["object", "style", "identity"]
    for concept in run.concepts:
        assert schema.parse({"concepts": [{"target": concept.target}]}).concepts == (concept,)
    assert "cat" in run.concepts[1].preserve


def test_what_is_given_is_not_filled_in() -> None:
    given = {"target": "cat", "preserve": [], "aliases": [], "kind": "unsafe", "anchor": "dog"}
    (concept,) = schema.parse({"concepts": [given]}).concepts
    assert concept == Concept(target="cat", anchor="dog", kind="unsafe")


@pytest.mark.parametrize("release", ["2025", 2025])
def test_a_config_has_the_defaults_that_go_with_its_settings(release: str | int) -> None:
    config = {"model": "some/model", "eraser": {"name": "esd", "release": release}, "concepts": [{"target": "cat"}]}
    assert schema.parse(config).eraser == make_eraser("esd", release="2025")
    assert schema.parse(overrides.override(config, "eraser.steps=7")).eraser == make_eraser(
        "esd", release="2025", steps=7
    )
    assert schema.parse({**config, "eraser": {"name": "duge", "match": "maps"}}).eraser.as_settings()["overshoot"] == 0


def test_other_models_know_only_what_is_given() -> None:
    (concept,) = schema.parse(ELSEWHERE).concepts
    assert concept == Concept(target="Van Gogh")


def test_an_unknown_concept_of_the_tiny_world_gets_a_suggestion() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown concept of the tiny world 'rabit'\. Did you mean 'rabbit'\?"):
        schema.parse({"concepts": [{"target": "rabit"}]})
    with pytest.raises(UnknownNameError, match="Rusty"):  # the generator never saw it, so there is nothing to remove
        schema.parse({"concepts": [{"target": "Rusty"}]})


def test_all_errors_of_a_file_are_shown_at_once() -> None:
    config = {
        **ELSEWHERE,
        "eraser": {"name": "uce", "preserv_scale": 1.0, "reg": "1.0"},
        "concepts": [{"target": "Van Gogh", "kind": "artist"}, {"anchor": "art"}],
        "seed": -1,
        "outptu": "there",
    }
    with pytest.raises(InputError) as caught:
        schema.parse(config)
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        "eraser: Unknown key 'preserv_scale'. Did you mean 'preserve_scale'?",
        "eraser.reg: expected a number, got '1.0'.",
        "concepts.0.kind: expected 'object', 'style', 'identity' or 'unsafe', got 'artist'.",
        "concepts.1.target: expected a value, got none.",
        "seed: expected a number greater than or equal to 0, got -1.",
        "config: Unknown key 'outptu'. Did you mean 'output'?",
    ):
        assert part in message, message


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"eraser": "uce"}, "eraser: expected a name and settings, got 'uce'"),
        ({"eraser": {"name": "ucee"}}, "Unknown eraser 'ucee'. Did you mean 'uce'?"),
        ({"concepts": []}, r"concepts: expected a list of concepts, got \[\]\. Write \[\{target: 'cat'\}\]"),
        (
            {"concepts": "cat"},
            r"name \(nudity, violence, weapons\) or file, got 'cat'\. For a concept write \[\{target",
        ),
        (
            {"concepts": [{"target": "cat", "preserve": "dog"}]},
            r"concepts\.0\.preserve: expected a list, got 'dog'\. Write \['dog'\]\.",
        ),
        ({"concepts": ["owl"]}, r"concepts\.0: expected a concept by its keys, got 'owl'\. Write \{target: 'owl'\}"),
        ({"concepts": [{"target": "a"}, ["owl"]]}, r"concepts\.1: expected a concept .*, got \['owl'\]\. Write"),
        ({"concepts": {"target": "owl"}}, r"concepts: expected a list of concepts, got .*owl.*\. Write \[\{target"),
        ({"concepts": None}, r"concepts: expected a list of concepts, got None\. Write \[\{target"),
        ({"concepts": [{"target": " "}]}, "^concepts.0.target: expected words"),
        ({"concepts": [{"target": "a", "preserve": ["!"]}]}, "^concepts.0.preserve: expected words, got '!'"),
        ({"eraser": {"name": "duge", "match": "maps", "overshoot": 1}}, "^eraser.overshoot: expected 0 where maps"),
        ({"eraser": {"name": "esd", "shape": {"flta": 1}}}, "^eraser.shape: Unknown key 'flta'. Did you mean 'flat'"),
        (
            {"eraser": {"name": "esd", "shape": {"flat": {"pionts": 1}}}},
            "^eraser.shape.flat: Unknown key 'pionts'. Did you mean 'points'",
        ),
        (
            {"eraser": [{"name": "uce"}, {"name": "esd", "steps": -2}]},
            r"^eraser.parts.1.esd.steps: expected a number greater than or equal to 0, got -2\.$",
        ),
        ({"measure": {"far": -1}}, "measure.far: expected a number greater than or equal to 0"),
        ({"measure": {"fra": 1}}, "measure: Unknown key 'fra'. Did you mean 'far'?"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(config, message) -> None:
    with pytest.raises(ErasureError, match=message):
        schema.parse({**ELSEWHERE, **config})


def test_overrides_are_read_as_yaml_and_checked_like_the_file() -> None:
    raw = overrides.override(ELSEWHERE, "eraser.name=esd")
    raw = overrides.override(raw, "eraser.lr=1e-4")
    raw = overrides.override(raw, "concepts.0.anchor=art")
    raw = overrides.override(raw, "measure.far=400")
    run = schema.parse(raw)
    assert run.eraser.name == "esd"
    assert run.eraser.lr == 1e-4  # type: ignore[attr-defined]
    assert run.concepts[0].anchor == "art"
    assert run.measure is not None
    assert run.measure.far == 400
    assert "eraser" not in ELSEWHERE
    with pytest.raises(InputError, match=r"eraser\.lr: expected a number, got '1e-5x'"):
        schema.parse(overrides.override(raw, "eraser.lr=1e-5x"))
    for wrong in ("eraser.lr", "=3", ".lr=3", "concepts.7.anchor=x", "seed.x=1", "eraser.lr=[1"):
        with pytest.raises(InputError, match="--set"):
            overrides.override({**raw, "seed": 0}, wrong)


def test_a_list_of_requests_is_read_with_and_without_a_heading(tmp_path) -> None:
    file = tmp_path / "requests.csv"
    file.write_text("cat\nVan Gogh, art ,Monet; Rembrandt\n\n\n")
    assert lists.read_concepts(file) == [
        {"target": "cat"},
        {"target": "Van Gogh", "anchor": "art", "preserve": ["Monet", "Rembrandt"]},
    ]
    file.write_text('\ufeffconcept,preserve,kind\n"dog, big",Monet,object\n')
    assert lists.read_concepts(file) == [{"target": "dog, big", "preserve": ["Monet"], "kind": "object"}]
    file.write_text("Anchor,Concept\ndog,cat\n")
    assert lists.read_concepts(file) == [{"anchor": "dog", "target": "cat"}]
    file.write_text('cat, "dog, small"\r\n')
    assert lists.read_concepts(file) == [{"target": "cat", "anchor": "dog, small"}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a concept a line, got none"),
        ("cat,dog,x,y\n", "line 1: expected at most 3 columns, got 4"),
        ("cat\n,dog\n", "line 2: expected a concept"),
        ("cat\n\ndog\n", "line 2: expected a concept, got an empty line"),
        ("concept,anchor\ncat,dog\ngun,Gun\n", "line 3: .*expected another concept than the target, got 'Gun'"),
        ("concept,ancor\ncat,dog\n", "line 1: .*Did you mean 'anchor'?"),
        ("concepts,anchors\ncat,dog\n", "line 1: .*Did you mean 'concept'?"),
        ("id,prompt\n1,cat\n", "line 1: Unknown column 'id'"),
        ("case_num,source,prompt\n0,imagenet,a cat\n", "line 1: Unknown column 'case_num'"),
        ("Labels,Index\n50_Cent_[m.01vvyc_],0\n", "line 1: Unknown column 'Labels'"),
        ("sensitive prompt,normal prompt\na cat,a dog\n", "line 1: Unknown column 'sensitive prompt'"),
        ('Prompt\tNote\na cat "on" a mat\t\n', "line 1: expected cells separated by commas, not tabs"),
        ("anchor,preserve\ncat,dog\n", "line 1: expected a column 'target', got 'anchor', 'preserve'"),
        ("concept,anchor,concept\ncat,dog,gun\n", "line 1: expected each column once, got 'target' twice"),
        ("target,concept\ncat,dog\n", "line 1: expected each column once"),
        ("concept,preserve,anchor\ncat,dog\n", "line 2: expected 3 columns, got 2"),
        ("concept;anchor\ncat;dog\n", "line 1: expected cells separated by commas, not semicolons"),
        ("cat\tdog\n", "line 1: expected cells separated by commas, not tabs"),
        ("cat,dog,Monet|Degas\n", "line 1: expected cells separated by commas, not bars"),
        ('gun\ncat,"dog\nneon\nmosaic\nhorse\n', "line 2: expected CSV.*a quote that is not closed"),
        ('gun\ncat,"dog\nneon"\nmosaic\n', "line 2: expected quotes closed on their line"),
        ('gun\ncat,do"g\n', "line 2: expected quotes closed on their line"),
        ("cat\nCaf\udce9\n", "line 2: expected CSV in UTF-8"),
        ("# my list\ncat\n", "line 1: expected a concept, got '# my list'"),
        ("sep=,\nconcept,anchor\ncat,dog\n", "line 1: expected a concept, got 'sep='"),
        ("- cat\n- dog\n", "line 1: expected a concept, got '- cat'"),
        ('{"concept": "cat"}\n', "line 1: expected a concept, got '{"),
        ("cat,dog\nanchor,concept\ndog,cat\n", "line 2: expected a concept, got a second line of columns"),
        ("cat\n“dog”\n", "line 2: expected straight quotes"),
        ("cat\0\0\n", "line 1: expected CSV in UTF-8, got a null character"),
        ("cat\uff0cdog\n", "line 1: expected cells separated by commas, not full-width commas"),
    ],
)
def test_a_list_of_requests_that_is_wrong_says_where(tmp_path, text, message) -> None:
    file = tmp_path / "requests.csv"
    file.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ErasureError, match=message):
        lists.read_concepts(file)
    with pytest.raises(InputError, match="No such file"):
        lists.read_concepts(tmp_path / "nowhere.csv")


def test_bytes_of_the_command_line_in_another_encoding_are_refused_where_they_stand() -> None:
    for name, where in (("target", "concepts.0.target"), ("preserve", r"concepts\.0\.preserve\.0")):
        concept = {"target": "cat", name: "caf\udce9" if name == "target" else ["caf\udce9"]}
        with pytest.raises(InputError, match=rf"^{where}: expected text in Unicode, got 'caf\\udce9'"):
            schema.parse({"model": "some-model", "concepts": [concept]})


@pytest.mark.parametrize("text", ["a: [", "- cat", "", "a: 1\na: 2", f"seed: 0x{'f' * 4000}"])
def test_a_file_that_is_no_config_is_refused_in_one_line(tmp_path, text) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(InputError, match="config") as caught:
        configs.read_config(tmp_path / "run.yaml")
    assert "\n" not in str(caught.value)


def test_yaml_1_2_reads_a_bare_exponent_as_a_number(tmp_path) -> None:
    (tmp_path / "run.yaml").write_text("lr: 1e-5\nno: no\n")
    assert configs.read_config(tmp_path / "run.yaml") == {"lr": 1e-5, "no": "no"}


def test_published_forms_take_the_start_of_the_empty_prompt() -> None:
    erasers = [configs.read_config(file)["eraser"] for file in CONFIGS.glob("*/*-published-*.yaml")]
    erasers += [configs.read_config(file)["eraser"] for file in CONFIGS.glob("uce/*-rewrite-*.yaml")]
    pieces = [piece for eraser in erasers for piece in (eraser, eraser.get("base", {})) if "name" in piece]
    having = [
        piece for piece in pieces if "empty_anchor" in {field.name for field in fields(eraser_class(piece["name"]))}
    ]
    assert {piece["name"] for piece in having} == {"uce", "speed", "oce"}
    assert {piece.get("empty_anchor") for piece in having} == {"start"}


@pytest.mark.parametrize(
    "file",
    [file for file in sorted(CONFIGS.glob("*/*.yaml")) if file.parent.name != "profiles"],
    ids=lambda file: file.stem,
)
def test_every_config_is_a_whole_run_that_takes_its_first_step(file, tmp_path, monkeypatch) -> None:
    # The oracle knows nothing of a tiny model's images.
    monkeypatch.setattr(TinyWorldProfile, "judge", lambda *_: None)
    raw = configs.read_config(file)
    assert {"model", "eraser", "concepts", "seed", "output"} <= raw.keys()
    assert file.parent.name == raw["eraser"]["name"]
    if raw["eraser"]["name"] == "esd":
        raw["eraser"] |= {"steps": 1, "sample_steps": 2}
    if raw["eraser"]["name"] == "tune":
        raw["eraser"] |= {"steps": 1, "objective": quickened("objective", raw["eraser"]["objective"])}
        shape = raw["eraser"].get("shape", {})
        if "sites" in shape:
            shape["sites"] = quickened("selector", shape["sites"])
        if "flat" in shape:
            shape["flat"] |= {"images": 2, "image_steps": 2}
    sampled = (
        "capsule",
        "casteer",
        "concept-prune",
        "leco",
        "spm",
        "absent",
        "advunlearn",
        "ant",
        "ca",
        "eraseanything",
        "eraseflow",
        "gem",
        "mace",
        "receler",
        "salun",
        "stamp",
        "stereo",
    )
    if raw["eraser"]["name"] in sampled:
        raw["eraser"] |= eraser_class(raw["eraser"]["name"]).quick
    keep = raw["eraser"].get("shape", {}).get("keep", {})
    if "healing" in keep:
        settings = keep["healing"] if isinstance(keep["healing"], dict) else {"weight": keep["healing"]}
        keep["healing"] = settings | {"view": "text", "neighbours": 1, "worst_every": 0}
    if raw["eraser"]["name"] == "stack":
        parts = ({"name": part} if isinstance(part, str) else part for part in raw["eraser"]["parts"])
        raw["eraser"]["parts"] = [
            part | (eraser_class(part["name"]).quick if part["name"] in sampled else {}) for part in parts
        ]
    if raw["eraser"]["name"] == "duge":
        raw["eraser"] |= {"steps": 1, "image_steps": 2, "memory_size": 4, "target_images": 2, "max_similarity": 1.0}
    if raw["eraser"]["name"] == "cfe":
        raw["eraser"]["keep_rank"] = 4  # of the 32 dimensions of a tiny model
    if raw["eraser"]["name"] == "trce":
        raw["eraser"] |= {"sample_steps": 3, "early_steps": 2, "trajectories": 1, "epochs": 1, "null_trajectories": 2}
        raw["eraser"]["reg"] = 1e-3
    run = schema.parse(raw)
    pipe = tiny.sd1()
    ledger = Ledger.open_or_create(tmp_path, pipe, "tiny")
    entry = next(removal.remove(run, pipe, ledger))
    assert entry.method == run.eraser.name
    edit = ledger.edit()
    assert edit.guidances if isinstance(edit, SamplingEdit) else edit.changes


def quickened(seam: str, piece: str | dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a piece, by name or with settings, that make it take a moment."""
    settings = {"name": piece} if isinstance(piece, str) else dict(piece)
    return {**settings, **registries()[seam].get(settings["name"]).quick}


def test_there_is_a_config_for_every_eraser_on_the_tiny_world() -> None:
    assert {file.parent.name for file in CONFIGS.rglob("*-tinyworld.yaml")} >= set(eraser_names())


def test_what_a_run_records_reads_back_as_the_same_run(tmp_path) -> None:
    run = schema.parse(
        {"concepts": [{"target": "cat", "anchor": "dog"}], "eraser": {"name": "uce", "reg": 0.25}, "seed": 7}
    )
    recorded = removal.facts(run, device="cpu", start=0.0)
    assert schema.parse(json.loads(json.dumps(recorded))["config"]) == run
    assert removal.facts(replace(run, output="somewhere"), device="cpu", start=0.0)["config"] == recorded["config"]
    assert recorded["peak_mib"] > 0
    assert recorded["versions"]["torch"]
    assert {"commit", "dirty"} == recorded["git"].keys()
    with (tmp_path / "again.yaml").open("w") as file:
        YAML(typ="safe", pure=True).dump(recorded["config"], file)
    assert schema.parse(configs.read_config(tmp_path / "again.yaml")) == run


def test_what_was_removed_before_is_not_removed_again(tmp_path) -> None:
    pipe = tiny.sd1()
    ledger = Ledger.open_or_create(tmp_path, pipe, "tiny")
    first = schema.parse({"concepts": [{"target": "cat", "preserve": ["dog"]}], "measure": None})
    assert [entry.id for entry in removal.remove(first, pipe, ledger)] == ["001"]
    second, already = removal.remaining(schema.parse({"concepts": [{"target": "cat"}, {"target": "dog"}]}), ledger)
    assert already == ["cat"]
    assert [concept.target for concept in second.concepts] == ["dog"]
    assert second.concepts == (schema.parse({"concepts": [{"target": "dog"}]}).concepts)
    ledger.undo("001")
    third, already = removal.remaining(schema.parse({"concepts": [{"target": "cat"}]}), ledger)
    assert (len(third.concepts), already) == (1, [])


def test_a_run_that_stops_leaves_what_it_finished(tmp_path) -> None:
    pipe = tiny.sd1()
    fingerprint = backbone_of(pipe).fingerprint()
    ledger = Ledger.open_or_create(tmp_path, pipe, "tiny")
    run = schema.parse({"concepts": [{"target": "cat"}, {"target": "dog"}]})
    for _ in removal.remove(run, pipe, ledger):
        break
    assert [entry.concepts[0].target for entry in Ledger.open(tmp_path).entries] == ["cat"]
    assert backbone_of(pipe).fingerprint() == fingerprint


def test_a_misspelt_setting_is_answered_with_the_settings_there_are() -> None:
    with pytest.raises(InputError) as caught:
        schema.parse({"eraser": {"name": "esd", "stepz": 3}, "concepts": [{"target": "cat"}]})
    known = str(caught.value).partition("Known: ")[2].rstrip(".").split(", ")
    assert {"name", "steps", "lr"} <= set(known)
    assert not {"quick", "depends_on"} & set(known)


def test_a_family_word_is_its_list_for_a_method_that_takes_families() -> None:
    run = schema.parse({"concepts": [{"target": "Weapon", "preserve": ["car"]}], "eraser": {"name": "trce"}})
    assert [concept.target for concept in run.concepts] == ["gun", "knife", "bomb"]
    assert {concept.anchor for concept in run.concepts} == {"flower"}
    assert {concept.preserve for concept in run.concepts} == {("car",)}
    assert run.concepts[0].aliases == ("pistol", "revolver", "weapon")
    assert schema.parse({"concepts": "weapons", "eraser": {"name": "trce"}}).concepts[2].aliases[0] == "explosive"
    with pytest.raises(UnknownNameError, match="'weapon'"):
        schema.parse({"concepts": [{"target": "weapon"}], "eraser": {"name": "uce"}})


@pytest.mark.parametrize("name", ["nudity", "violence", "weapons"])
def test_the_lists_are_whole(name) -> None:
    concepts = [Concept.from_json(entry) for entry in lists.read_concepts(lists.list_path(name))]
    words = [name for concept in concepts for name in concept.names]
    assert len(set(map(normalized, words))) == len(words) >= 9
    assert all(concept.anchor and concept.kind == "unsafe" for concept in concepts)


def test_a_name_that_the_model_cannot_read_is_refused_with_its_line(tmp_path) -> None:
    file = tmp_path / "list.csv"
    file.write_text(f"concept,anchor\ncat,dog\ngun,{'very ' * 80}calm\n")
    run = schema.parse({**ELSEWHERE, "concepts": str(file)})
    with pytest.raises(
        InputError, match=r"list.csv' line 3: concept.anchor: expected a name of at most \d+ tokens, got"
    ):
        removal.check_lengths(run, tiny.sd1(), [file])
    file.write_text(
        "concept,anchor\ncat,dog\ncafe\u0301,e\u0301clair\n", encoding="utf-8"
    )  # as file names are on a Mac
    run = schema.parse({**ELSEWHERE, "concepts": str(file)})
    removal.check_lengths(run, tiny.sd1(), [file])
    assert run.concepts[1].target == "caf\u00e9"


def test_a_name_of_which_an_encoder_knows_nothing_is_refused() -> None:
    backbone = backbone_of(tiny.flux())
    check_names([Concept(target="caf\u00e9 \u732b", anchor="dog")], backbone)
    with pytest.raises(InputError, match=r"concept.target: expected words that the text_encoder_2 knows, got '\u732b'"):
        check_names([Concept(target="\u732b")], backbone)
    check_names([Concept(target="\u732b")], backbone_of(tiny.sd1()))  # CLIP reads bytes


def test_a_method_that_takes_families_makes_one_entry_of_them(tmp_path) -> None:
    settings = {**eraser_class("trce").quick, "stages": "text"}
    run = schema.parse({**ELSEWHERE, "concepts": [{"target": "cat"}, {"target": "dog"}], "eraser": {"name": "uce"}})
    pipe = tiny.sd1()
    both = replace(run, eraser=make_eraser("trce", **settings))
    [entry] = removal.remove(both, pipe, Ledger.open_or_create(tmp_path / "one", pipe, "tiny"))
    assert [concept.target for concept in entry.concepts] == ["cat", "dog"]
    assert entry.solved
    assert len(list(removal.remove(run, pipe, Ledger.open_or_create(tmp_path / "two", pipe, "tiny")))) == 2


@pytest.mark.parametrize(
    "requests",
    [
        [{"target": "cat"}, {"target": " CAT"}],
        [{"target": "Dalí"}, {"target": "Dali\u0301"}],
        [{"target": "cat", "aliases": ["kitty"]}, {"target": "Kitty"}],
    ],
)
def test_a_request_that_is_made_twice_is_one(requests) -> None:
    assert len(schema.parse({**ELSEWHERE, "concepts": requests}).concepts) == 1


@pytest.mark.parametrize(
    "requests",
    [
        [{"target": "cat", "anchor": "dog"}, {"target": "cat", "anchor": "bird"}],
        [{"target": "cat"}, {"target": "kitty", "aliases": ["cat"]}],
    ],
)
def test_requests_that_share_a_name_and_differ_are_refused(requests) -> None:
    with pytest.raises(InputError, match=r"concepts\.1: expected a concept that no other request names"):
        schema.parse({**ELSEWHERE, "concepts": requests})


def test_names_that_stand_removed_in_part_are_refused(tmp_path) -> None:
    pipe = tiny.sd1()
    ledger = Ledger.open_or_create(tmp_path, pipe, "tiny")
    ledger.remove(pipe, make_eraser("uce", rows="last-subject"), [Concept(target="cat")])
    run = schema.parse({**ELSEWHERE, "concepts": [{"target": "kitty", "aliases": ["CAT"]}]})
    with pytest.raises(InputError, match="which entry 001 removes, and"):
        removal.remaining(run, ledger)


def test_a_run_finds_its_standing_entries_by_any_name(tmp_path) -> None:
    pipe = tiny.sd1()
    ledger = Ledger.open_or_create(tmp_path, pipe, "tiny")
    for concept in (Concept(target="cat", aliases=("kitty",)), Concept(target="gun")):
        ledger.remove(pipe, make_eraser("uce", rows="last-subject"), [concept])
    run = schema.parse({**ELSEWHERE, "concepts": [{"target": "Kitty"}, {"target": "dog"}]})
    assert [entry.id for entry in removal.standing_of(run, ledger)] == ["001"]
    assert removal.remaining(run, ledger)[1] == ["Kitty"]


def test_a_concept_that_another_process_removed_meanwhile_is_not_removed_again(tmp_path) -> None:
    pipe = tiny.sd1()
    mine, other = (Ledger.open_or_create(tmp_path, pipe, "tiny") for _ in range(2))
    run = schema.parse({**ELSEWHERE, "concepts": [{"target": "cat"}, {"target": "gun"}]})
    other.remove(pipe, run.eraser, [Concept(target="Cat")])
    late: list[str] = []
    entries = list(removal.remove(run, pipe, mine, on_removed_already=late.append))
    assert (late, [entry.concepts[0].target for entry in entries]) == (["cat"], ["gun"])
    with pytest.raises(AlreadyRemovedError, match="got 'cat', which entry 001 removes"):
        list(removal.remove(run, pipe, mine))
    assert len(Ledger.open(tmp_path).entries) == 2
    done, _ = removal.remaining(run, mine)
    assert list(removal.remove(done, pipe, mine)) == []  # the same command again


@pytest.mark.parametrize("method", ["uce", "esd"])
@pytest.mark.parametrize("field", ["target", "anchor", "preserve", "aliases"])
def test_a_name_that_the_model_would_cut_is_refused_by_every_eraser(method, field) -> None:
    name = " ".join("abcdefgh" for _ in range(10))  # the tiny vocabulary has a token a letter
    values = {"target": "cat", field: name if field in ("target", "anchor") else (name,)}
    eraser = make_eraser(method, **eraser_class(method).quick)
    with pytest.raises(InputError, match=rf"concept\.{field}: expected a name of at most \d+ tokens, got 'abcdefgh"):
        erase(tiny.sd1(), Concept(**values), eraser=eraser)


@pytest.mark.parametrize("field", ["target", "anchor", "preserve", "aliases"])
def test_a_name_with_a_special_token_is_refused(field: str, capfd: pytest.CaptureFixture[str]) -> None:
    name = "sunset <|endoftext|>"
    values: dict[str, Any] = {"target": "cat", field: name if field in ("target", "anchor") else (name,)}
    with pytest.raises(InputError, match=rf"concept\.{field}: expected words, got '.*' with the special token"):
        erase(tiny.sd1(), Concept(**values))
    with pytest.raises(InputError, match="expected a name of at most"):
        erase(tiny.sd1(), "very " * 80)
    assert capfd.readouterr().err == ""  # no tokenizer warns of what the error says


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"config": {"model": 1}}', "[" * 5000])
def test_a_damaged_record_of_a_run_is_named(tmp_path, text) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(InputError, match=r"run.json: expected a run's record, got .* Restore it from a copy") as caught:
        removal.recorded_facts(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["uce", "localised"])
def test_a_list_with_a_circle_of_anchors_removes_nothing(tmp_path: Path, method: str) -> None:
    pipe = tiny.sd1()
    ledger = Ledger.open_or_create(tmp_path, pipe, "some/model")
    chain = [{"target": "bird"}, {"target": "cat", "anchor": "dog"}, {"target": "dog", "anchor": "fox"}]
    circle = [*chain, {"target": "vixen", "aliases": ["fox"], "anchor": "CAT"}]

    def remove(concepts: list[dict[str, object]]) -> None:
        config = {"model": "some/model", "eraser": {"name": method}, "concepts": concepts}
        run, _ = removal.remaining(schema.parse(config), ledger)
        list(removal.remove(run, pipe, ledger))

    with pytest.raises(InputError, match="anchor: expected a concept that stays, got 'dog' for 'cat', a circle"):
        remove(circle)
    assert not ledger.entries
    remove(chain)
    with pytest.raises(InputError, match="got 'CAT' for 'vixen', a circle"):
        remove([{"target": "boat"}, circle[-1]])
    assert [entry.concepts[0].target for entry in Ledger.open(tmp_path).entries] == ["bird", "cat", "dog"]
