"""The words of the style guide in CONTRIBUTING.md hold in every comment, string, and document."""

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STYLE_GUIDE = "CONTRIBUTING.md"  # it quotes the words that it bans

# Pattern -> what to write instead, and an example that the pattern must match.
BANNED = {
    r"\b(anew|afresh)\b": ("again, new, rebuild", "built anew"),
    r"(?<!there )\bis no (?!longer\b|more\b|less\b)[a-z]": ("is not a", "it is no path"),
    r", for (it|they|all)\b": ("because", "slow, for it waits"),
    r"\bRaises \w+ (where|if)\b": ("a `Raises:` section", "Raises UsageError where"),
    r"\b(go|goes|went|going) on\b": ("resume, continue", "goes on from step 3"),
    r"\bwhere there (is|are)\b": ("if", "where there is none"),
    r"(?<![`\"'.])\bforeign\b(?![`\"':=])": ("third-party", "foreign tars"),
    r"(?<!in )(?<!take )(?<!takes )\bplaces?\b": ("path, URL, index, point", "the place of it"),
    r"\bmend(s|ed|ing)?\b": ("fix", "mend it"),
    r"\bof (ours|theirs)\b": ("our, their", "a stage of ours"),
    r"\b(nobody's|whereof|thereof|hither)\b": ("a plain word", "nobody's"),
    r"\w*(colour|behaviour|neighbour|favour)": ("American spelling", "the colour"),
    r"\b(centred?|grey|labelled)\b": ("American spelling", "centred"),
    # `licence` is the name of a field in the shard format.
    r"(?<![`\"'.])\blicences?\b(?![`\"':=])": ("license", "a licence of"),
    r"\b(optimi|normali|initiali|summari|materiali|recogni|seriali)s(?!t|m)\w": (
        "American spelling",
        "normalised",
    ),
}


def python_prose(text: str) -> Iterator[tuple[int, str]]:
    """Yield (line number, text) for the comments and for the strings that hold a space."""
    kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", None)}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in kinds and " " in token.string:
            for offset, line in enumerate(token.string.splitlines()):
                yield token.start[0] + offset, line


def document_prose(text: str) -> Iterator[tuple[int, str]]:
    """Yield (line number, text) for every line outside of code fences, without inline code."""
    fenced = False
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith("```"):
            fenced = not fenced
        elif not fenced:
            yield number, re.sub(r"`[^`]*`|\]\([^)]*\)", "", line)


def files_with_prose() -> list[str]:
    """Return the paths of the project's own files that hold prose, relative to the root."""
    folders = ("model", "shards", "pipeline", "jobs", "tests", "docs", ".")
    found = {
        path.relative_to(ROOT).as_posix()
        for folder in folders
        for path in (ROOT / folder).glob("*.*" if folder == "." else "**/*.*")
        if path.suffix in {".py", ".md", ".yaml", ".sh", ".html", ".jinja"}
    }
    return sorted(
        found - {STYLE_GUIDE, "tests/test_prose.py", "tests/data/coco_ccby/ATTRIBUTION.md"}
    )


@pytest.mark.parametrize("name", files_with_prose())
def test_banned_words_do_not_occur(name):
    text = (ROOT / name).read_text()
    prose = python_prose(text) if name.endswith(".py") else document_prose(text)
    found = [
        f"{name}:{number}: {match[0]!r}, write: {instead}"
        for number, line in prose
        for pattern, (instead, _) in BANNED.items()
        if (match := re.search(pattern, line, re.IGNORECASE))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("pattern", BANNED)
def test_every_pattern_matches_its_example(pattern):
    assert re.search(pattern, BANNED[pattern][1], re.IGNORECASE)
