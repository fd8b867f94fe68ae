"""Docstrings, help texts, names and pages are in the field's plain English.

`python tests/test_prose.py [FOLDER ...]` prints the violations by folder.
"""

import ast
import io
import itertools
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.source_tree import Source, Violation, functions, main, package_sources, pages, script_sources  # noqa: E402

QUESTION = r"(?:What|Who|Whom|Whose|Where|How|When|Which|That|Whatever|Why)\b"
OPENING = re.compile(rf"{QUESTION}|Whether\b|(?:Return|Give|Yield|Say|Tell)s? (?:what|how|who|those|of|whether)\b")
FIELD_OPENING = re.compile(rf"(?:{QUESTION}|Of\b)")
FIELD = re.compile(r"^ {4}(\w+): (.*)$")
VAGUE = {"at", "found", "asked", "told", "given", "made", "gone", "own", "wanted"}
PICTURE = re.compile(r"picture", re.IGNORECASE)
# Encoded as they stand: other words, other numbers.
PROMPT = re.compile(r'"a black-and-white picture(?: of )?"|"a picture in the style of "?')
HELP = ("help", "description", "info")
PROMPTS = Path("erasure/prompts.py")  # its templates are input of the models, "a picture of a {}" among them
FIELDS = re.compile(r"\{[^{}\n]*\}")  # of f-strings, whose keys are those of stored files
UNWORDED = re.compile(r"<!-- table .*?<!-- end table -->|```.*?```|`[^`]*`|\]\([^)]*\)", re.DOTALL)


def sources() -> list[Source]:
    """Return the Python files whose words are checked."""
    return [*package_sources(), *script_sources()]


def documented(source: Source) -> Iterator[tuple[ast.AST, int, str]]:
    """Yield every node that has a docstring, with the docstring's first line and text."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node is source.tree:
            text = ast.get_docstring(node)  # type: ignore[arg-type]
            if text:
                yield node, node.body[0].lineno, text  # type: ignore[attr-defined]


def docstring_openings() -> list[Violation]:
    """Return docstrings that open with a question word or name their result by a relative clause."""
    return [
        Violation(source.path, line, f"docstring opens: {text.splitlines()[0]}")
        for source in sources()
        for node, line, text in documented(source)
        if OPENING.match(text) and not (text.startswith("Whether") and _is_property(node))
    ]


def _is_property(node: ast.AST) -> bool:
    names = [ast.unparse(d) for d in getattr(node, "decorator_list", [])]
    return any("property" in name for name in names)


def fields(source: Source) -> Iterator[tuple[int, str, str]]:
    """Yield line, name and first line of each described field: sections of docstrings, attributes' own strings."""
    for _, line, text in documented(source):
        described = False
        for offset, row in enumerate(text.splitlines()):
            if row in ("Attributes:", "Args:"):
                described = True
            elif row and not row.startswith(" "):
                described = False
            elif described and (match := FIELD.match(row)):
                yield line + offset, match[1], match[2]
    for node in ast.walk(source.tree):
        body = getattr(node, "body", [])
        for before, after in itertools.pairwise(body) if isinstance(body, list) else ():
            if isinstance(before, ast.Assign | ast.AnnAssign) and isinstance(after, ast.Expr) and _is_text(after.value):
                target = before.target if isinstance(before, ast.AnnAssign) else before.targets[0]
                yield after.lineno, ast.unparse(target), ast.literal_eval(after.value).strip()


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def help_texts(source: Source) -> Iterator[tuple[int, str, str]]:
    """Yield line, keyword and text of options' and controls' descriptions."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.keyword) and node.arg in HELP and _is_text(node.value):
            yield node.value.lineno, node.arg, ast.literal_eval(node.value)


def field_openings() -> list[Violation]:
    """Return descriptions of fields and options that open with "Of" or a question word."""
    return [
        Violation(source.path, line, f"{name}: {text}")
        for source in sources()
        for line, name, text in (*fields(source), *help_texts(source))
        if FIELD_OPENING.match(text) or (text[:1].islower() and FIELD_OPENING.match(text.capitalize()))
    ]


def stored_names(source: Source) -> Iterator[tuple[int, str]]:
    """Yield line and name of everything that a file assigns: variables, fields, parameters, functions, classes."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.ExceptHandler | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name:
            yield node.lineno, node.name


def vague_names() -> list[Violation]:
    """Return assigned names that say nothing of their value."""
    return [
        Violation(source.path, line, f"assigns {name!r}")
        for source in sources()
        for line, name in stored_names(source)
        if name in VAGUE
    ]


def _draws(path: Path) -> bool:
    """Return True for a file of the tiny world, whose drawings may be called pictures."""
    return "tinyworld" in path.as_posix()


def pictures() -> list[Violation]:
    """Return comments, texts and names that say "picture" for an image; keys of stored files are left alone."""
    violations = []
    for source in sources():
        if _draws(source.path) or source.path == PROMPTS:
            continue
        named = [(line, f"assigns {name!r}") for line, name in stored_names(source) if PICTURE.search(name)]
        violations += [Violation(source.path, line, text) for line, text in (*named, *_texts_of_pictures(source))]
    return violations


def _texts_of_pictures(source: Source) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(source.text).readline):
        if token.type not in (tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)):
            continue
        text = FIELDS.sub("", token.string) if token.type == tokenize.STRING else token.string
        for offset, row in enumerate(text.splitlines()):
            if PICTURE.search(PROMPT.sub("", row)) and " " in row.strip() and "tiny world" not in row:
                yield token.start[0] + offset, row.strip()


def pictures_in_pages() -> list[Violation]:
    """Return lines of pages that say "picture", paragraphs about the tiny world apart."""
    violations = []
    for page in pages():
        if _draws(page) or page.name == "CHANGELOG.md":
            continue
        line = 1
        # Words of generated tables are checked where they are built; code and links keep their names.
        text = UNWORDED.sub(lambda m: "\n" * m[0].count("\n"), (ROOT / page).read_text(encoding="utf-8"))
        for paragraph in re.split(r"(\n\s*\n)", text):
            if "tiny world" not in paragraph.lower():
                rows = enumerate(paragraph.splitlines())
                violations += [Violation(page, line + i, row.strip()) for i, row in rows if PICTURE.search(row)]
            line += paragraph.count("\n")
    return violations


CHECKS = (docstring_openings, field_openings, vague_names, pictures, pictures_in_pages)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_prose(check) -> None:
    violations = check()
    assert not violations, "\n".join(map(str, violations))


def test_every_public_function_of_the_package_is_documented() -> None:
    # Ruff's D rules hold this; it guards against a parser that finds nothing.
    assert sum(1 for source in package_sources() for _ in documented(source)) > len(package_sources())
    assert any(list(functions(source.tree)) for source in package_sources())


if __name__ == "__main__":
    sys.exit(main(CHECKS, sys.argv[1:]) > 0)
