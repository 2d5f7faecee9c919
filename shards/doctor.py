"""The doctor: what can be wrong with raw data, what becomes of it, and how that is told.

Every defect is a numbered finding with one verdict, whatever the source: `repaired` (the sample is
in the set, put right as `done` says), `kept` (in the set as it is) or `rejected` (not in the set).
A set's findings are in its `findings.jsonl`: nothing is changed or left out in silence.
"""

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from shards.errors import DataError
from shards.files import whole_file

FINDINGS = "findings.jsonl"
REPAIRED, KEPT, REJECTED = "repaired", "kept", "rejected"


@dataclass(frozen=True, slots=True)
class Rule:
    """A defect: its name, its verdict, what the builder does with it, and the user's fix."""

    name: str
    verdict: str
    done: str
    fix: str


_OUT = "the image is left out"
RULES = {
    1: Rule("undecodable image", REJECTED, _OUT, "get the file anew"),
    2: Rule("truncated image", REJECTED, _OUT, "get the whole file"),
    3: Rule(
        "image size differs from annotation",
        REJECTED,
        _OUT,
        "get the image that was annotated, or correct its width and height",
    ),
    4: Rule(
        "EXIF rotation",
        KEPT,
        "the truth is that of the image as shown; a JPEG whose truth fits only the pixels as "
        "stored has its orientation tag set to 1",
        "decode with the orientation applied, as our stream does, or turn the pixels yourself",
    ),
    5: Rule(
        "grayscale, CMYK, 16-bit or alpha",
        KEPT,
        "the bytes stay, decoders make 8-bit RGB of them",
        "convert the image to 8-bit RGB, if decoders should not",
    ),
    6: Rule(
        "extension that lies",
        KEPT,
        "the bytes stay, decoders go by contents",
        "rename the file after its contents",
    ),
    7: Rule("missing image file", REJECTED, _OUT, "add the file, or take it out of the annotation"),
    8: Rule("missing or unreadable truth", REJECTED, _OUT, "get the file of the truth anew"),
    9: Rule(
        "truth size differs from image",
        REJECTED,
        _OUT,
        "get image and truth of one release, or scale the truth by nearest neighbor",
    ),
    10: Rule("id in PNG not in JSON", REJECTED, _OUT, "get PNG and JSON of one release"),
    11: Rule("id in JSON not in PNG", REJECTED, _OUT, "get PNG and JSON of one release"),
    12: Rule(
        "declared area far from pixels",
        KEPT,
        "the declared area stays",
        "correct the area, on which scores by size depend",
    ),
    13: Rule(
        "category unknown",
        REJECTED,
        _OUT,
        "correct the category id, or add the category to the list",
    ),
    14: Rule(
        "label value outside the label space",
        REJECTED,
        _OUT,
        "correct the label map, or add the class to the list",
    ),
    15: Rule(
        "empty mask",
        KEPT,
        "the entry stays, without a pixel",
        "draw the mask, or take the annotation out",
    ),
    16: Rule(
        "duplicate annotation id",
        KEPT,
        "all annotations of that id stay",
        "give each its own id, or take the copy out",
    ),
    17: Rule(
        "duplicate image id or key",
        REJECTED,
        "all images of that id or key are left out",
        "give each its own id and name, or take the copy out",
    ),
    18: Rule(
        "same photograph in two splits",
        KEPT,
        "it stays in both",
        "take it out of one: a score on images seen in training is too good",
    ),
    19: Rule(
        "polygon outside the image or of under 3 points",
        REPAIRED,
        "what is outside is cut off, a polygon of under 3 points is left out",
        "correct the polygon",
    ),
    20: Rule("RLE of wrong size or broken", REJECTED, _OUT, "write the run lengths anew"),
    21: Rule(
        "thing overlap in panoptic",
        REPAIRED,
        "each pixel goes to the thing whose instance it is",
        "decide in the truth to which thing the pixels belong",
    ),
    22: Rule(
        "JSON damaged",
        REJECTED,
        "the image of a damaged entry is left out; a file damaged elsewhere ends the build",
        "get the file anew, or correct it at that byte",
    ),
}


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """A defect of `file`, named as in the raw data set; `code` is its number in RULES."""

    file: str
    code: int
    detail: str

    @property
    def rule(self) -> Rule:
        """What RULES says of it."""
        return RULES[self.code]

    def __str__(self) -> str:
        return (
            f"{self.file}: {self.detail} (finding {self.code}, {self.rule.name}); {self.rule.fix}"
        )


class Reject(DataError):
    """The finding for which a sample is left out, raised where it is found."""

    def __init__(self, code: int, detail: str) -> None:
        assert RULES[code].verdict == REJECTED, code
        super().__init__(f"{detail} (finding {code}, {RULES[code].name})")
        self.code, self.detail = code, detail

    def of(self, file: str) -> Finding:
        """The finding, of the file with the sample's image."""
        return Finding(file, self.code, self.detail)


@dataclass(slots=True)
class Doctor:
    """Notes what is found in one sample and does not reject it; for what does, raise Reject."""

    file: str
    findings: list[Finding] = field(default_factory=list)

    def note(self, code: int, detail: str) -> None:
        """Add a finding whose verdict is `kept` or `repaired`."""
        assert RULES[code].verdict != REJECTED, code
        self.findings.append(Finding(self.file, code, detail))


def refuse(findings: Iterable[Finding]) -> None:
    """Raise DataError for the first finding that rejects, if there is one: `--strict`."""
    for finding in findings:
        if finding.rule.verdict == REJECTED:
            raise DataError(str(finding))


def totals(findings: Iterable[Finding]) -> dict[int, int]:
    """How many findings there are of each code, in order."""
    return dict(sorted(Counter(finding.code for finding in findings).items()))


def save_findings(folder: Path, findings: Iterable[Finding]) -> None:
    """Write `findings.jsonl` of a shard set, sorted, a line for each."""
    with whole_file(folder / FINDINGS) as file:
        for finding in sorted(findings):
            rule = finding.rule
            line = {
                "file": finding.file,
                "code": finding.code,
                "name": rule.name,
                "verdict": rule.verdict,
                "detail": finding.detail,
                "fix": rule.fix,
            }
            file.write(json.dumps(line).encode() + b"\n")


def load_findings(folder: Path) -> list[Finding]:
    """The findings of a shard set, read from its `findings.jsonl`."""
    lines = [json.loads(line) for line in (folder / FINDINGS).read_bytes().splitlines()]
    return [Finding(line["file"], line["code"], line["detail"]) for line in lines]


def report_findings(
    name: str, place: Path | str, findings: Collection[Finding], report: Callable[[str], None]
) -> None:
    """Say how many findings of each code the set `name` has, and where they are listed."""
    for code, count in totals(findings).items():
        report(f"{name}: {count} x finding {code}, {RULES[code].name}: {RULES[code].verdict}")
    if findings:
        report(f"{name}: see {place}/{FINDINGS}")
