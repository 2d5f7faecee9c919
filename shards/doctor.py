"""The doctor: the defects of raw data, what the builder does about each, and how it reports them.

Every defect is a numbered finding with one verdict, the same in every source: `repaired` (the
sample is in the set, corrected as `done` says), `kept` (in the set with the same pixels and truth),
or `rejected` (not in the set). `findings.jsonl` of a set lists all findings: nothing is changed or
left out silently.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from shards import jsonl
from shards.errors import DataError

FINDINGS = "findings.jsonl"
REPAIRED, KEPT, REJECTED = "repaired", "kept", "rejected"


@dataclass(frozen=True, slots=True)
class Rule:
    """A kind of defect.

    Attributes:
        name: Its name.
        verdict: REPAIRED, KEPT, or REJECTED.
        done: What the builder does with the sample.
        fix: What the user can do.
    """

    name: str
    verdict: str
    done: str
    fix: str


_OUT = "the image is left out"
RULES = {
    1: Rule("undecodable image", REJECTED, _OUT, "download the file again"),
    2: Rule("truncated image", REJECTED, _OUT, "download the whole file"),
    3: Rule(
        "image size differs from annotation",
        REJECTED,
        _OUT,
        "use the image that was annotated, or correct the width and height in the annotation",
    ),
    4: Rule(
        "EXIF rotation",
        KEPT,
        "the truth applies to the image as displayed; if the truth of a JPEG fits only the pixels "
        "as stored, its orientation tag is set to 1",
        "decode with the orientation applied, as the training stream does, or rotate the pixels",
    ),
    5: Rule(
        "grayscale, CMYK, 16-bit or alpha",
        KEPT,
        "the bytes stay; decoders convert them to 8-bit RGB",
        "convert the image to 8-bit RGB yourself if decoders should not do it",
    ),
    6: Rule(
        "extension does not match the contents",
        KEPT,
        "the bytes stay; decoders look at the contents",
        "rename the file to match its contents",
    ),
    7: Rule("missing image file", REJECTED, _OUT, "add the file, or remove it from the annotation"),
    8: Rule("missing or unreadable truth", REJECTED, _OUT, "download the annotation file again"),
    9: Rule(
        "truth size differs from image",
        REJECTED,
        _OUT,
        "use image and truth of the same release, or scale the truth by nearest neighbor",
    ),
    10: Rule("id in PNG not in JSON", REJECTED, _OUT, "use PNG and JSON of the same release"),
    11: Rule("id in JSON not in PNG", REJECTED, _OUT, "use PNG and JSON of the same release"),
    12: Rule(
        "declared area differs much from the pixel count",
        KEPT,
        "the declared area stays",
        "correct the area; scores by object size depend on it",
    ),
    13: Rule(
        "category unknown",
        REJECTED,
        _OUT,
        "correct the category id, or add the category to the list of the data set",
    ),
    14: Rule(
        "label value outside the label space",
        REJECTED,
        _OUT,
        "correct the label map, or add the class to the list of the data set",
    ),
    15: Rule(
        "empty mask",
        KEPT,
        "the entry stays, without a pixel",
        "draw the mask, or remove the annotation",
    ),
    16: Rule(
        "duplicate annotation id",
        KEPT,
        "all annotations with that id stay",
        "give each its own id, or remove the copy",
    ),
    17: Rule(
        "duplicate image id or key",
        REJECTED,
        "all images with that id or key are left out",
        "give each its own id and name, or remove the copy",
    ),
    18: Rule(
        "same photograph in two splits",
        KEPT,
        "it stays in both",
        "remove it from one split: a score on images seen in training is too high",
    ),
    19: Rule(
        "polygon outside the image or with fewer than 3 points",
        REPAIRED,
        "the outside is cut off; a polygon with fewer than 3 points is left out",
        "correct the polygon",
    ),
    20: Rule("RLE of wrong size or damaged", REJECTED, _OUT, "write the run lengths again"),
    21: Rule(
        "thing overlap in panoptic",
        REPAIRED,
        "each such pixel takes the thing class of its instance, not of the semantic map",
        "decide in the truth to which thing the pixels belong",
    ),
    22: Rule(
        "JSON damaged",
        REJECTED,
        "the image of a damaged entry is left out; a file damaged elsewhere ends the build",
        "download the file again, or correct it at that byte",
    ),
    23: Rule(
        "name, format, or size that a shard cannot hold",
        REJECTED,
        _OUT,
        "rename the file, convert it to the format of the other images, or scale it down",
    ),
    24: Rule(
        "annotation of an unlisted image",
        REJECTED,
        "the annotation is left out",
        "correct image_id, or list the image",
    ),
}


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """A defect of a file.

    Attributes:
        file: The file, as the raw data set names it.
        code: The number of the defect in RULES.
        detail: What is wrong, with the value.
    """

    file: str
    code: int
    detail: str

    @property
    def rule(self) -> Rule:
        """The rule of the defect."""
        return RULES[self.code]

    def __str__(self) -> str:
        return str(self.to_error())

    def to_error(self) -> DataError:
        """Return the finding as an error."""
        what = f"{self.detail} (finding {self.code}, {self.rule.name})"
        return DataError(what, where=self.file, fix=self.rule.fix)


class Reject(DataError):
    """A finding that excludes a sample from the set, raised where the defect is found.

    Args:
        code: The number of the defect in RULES; its verdict is REJECTED.
        detail: What is wrong, with the value.
    """

    def __init__(self, code: int, detail: str) -> None:
        assert RULES[code].verdict == REJECTED, code
        super().__init__(f"{detail} (finding {code}, {RULES[code].name})")
        self.code, self.detail = code, detail

    def of(self, file: str) -> Finding:
        """Return the finding, for the file of the sample's image."""
        return Finding(file, self.code, self.detail)


@dataclass(slots=True)
class Doctor:
    """Collects the findings that do not reject a sample. For those that do, raise Reject.

    Attributes:
        file: The file of the sample's image.
        findings: The findings so far.
    """

    file: str
    findings: list[Finding] = field(default_factory=list)

    def note(self, code: int, detail: str) -> None:
        """Add a finding whose verdict is `kept` or `repaired`."""
        assert RULES[code].verdict != REJECTED, code
        self.findings.append(Finding(self.file, code, detail))


def refuse(findings: Iterable[Finding]) -> None:
    """Raise DataError for the first finding that rejects a sample, as `--strict` demands."""
    for finding in findings:
        if finding.rule.verdict == REJECTED:
            raise finding.to_error()


def totals(findings: Iterable[Finding]) -> dict[int, int]:
    """Return the number of findings by code, in order of the codes."""
    return dict(sorted(Counter(finding.code for finding in findings).items()))


def save_findings(folder: Path, findings: Iterable[Finding]) -> None:
    """Write `findings.jsonl` of a shard set, sorted, one line per finding."""
    jsonl.write_rows(folder / FINDINGS, map(_to_row, sorted(findings)))


def load_findings(folder: Path) -> list[Finding]:
    """Return the findings in `findings.jsonl` of a shard set."""
    rows = jsonl.rows(folder / FINDINGS)
    return [Finding(row["file"], row["code"], row["detail"]) for row in rows]


def report_findings(
    name: str,
    location: Path | str,
    findings: Collection[Finding],
    report: Callable[[str], None],
) -> None:
    """Report the number of findings by code, and the file that lists them.

    Args:
        name: The name of the set.
        location: The folder or URL of the set.
        findings: The findings.
        report: Receives each line.
    """
    for code, count in totals(findings).items():
        report(f"{name}: {count} x finding {code}, {RULES[code].name}: {RULES[code].verdict}")
    if findings:
        report(f"{name}: see {location}/{FINDINGS}")


def _to_row(finding: Finding) -> dict[str, str | int]:
    rule = finding.rule
    return {
        "file": finding.file,
        "code": finding.code,
        "name": rule.name,
        "verdict": rule.verdict,
        "detail": finding.detail,
        "fix": rule.fix,
    }
