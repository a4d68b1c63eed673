"""Makes a data set of Debian's or Ubuntu's packages: from a package's text to related packages.

`make_dataset` reads apt's index through models.data.apt_index. The other functions read nothing.
Points and labels are both packages (set `data.own_item`). python-debian, the parser of Debian's own
tools, parses paragraphs and relations.
"""

import hashlib
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_array

from models.data.apt_index import description_lines, package_lines
from models.data.dataset import Dataset, LabelCatalogue, Points
from models.data.formats import open_dataset, write_dataset
from models.errors import AptError, DataError
from service.atomic import staging_folder, sync

if TYPE_CHECKING:
    from debian.deb822 import Packages

log = logging.getLogger(__name__)

RELATIONS = ("depends", "pre-depends", "recommends", "suggests", "enhances")
# The limits are choices; each trades the size of the data set for its cleanness.
MAX_SOURCES = 500  # more source packages than this name libc6 and the like: it says nothing of them
MAX_TARGETS = 100  # a package that names more (med-bio) is a list of packages, not related to them
MIN_POINTS = 2  # points that a label needs, one of them a training point
POINT_CHARS, LABEL_CHARS = 1200, 600  # the start of a description says most; the files stay small
TEST_SHARE = 0.2

_AUXILIARY_SECTIONS = ("oldlibs", "debug")
_AUXILIARY_ENDINGS = ("-dbg", "-dbgsym")
_AUXILIARY_WORDS = ("transitional", "dummy package", "(dummy)")


@dataclass(frozen=True, slots=True)
class Package:
    """A binary package; `targets` are the names in its relations, virtual ones included."""

    name: str
    source: str
    section: str
    summary: str
    text: str
    targets: frozenset[str]

    @property
    def title(self) -> str:
        """Name and short description, in the form of `apt-cache search`."""
        return f"{self.name} - {self.summary}"

    @property
    def is_auxiliary(self) -> bool:
        """Whether it serves upgrades or debugging only; such a package is no point and no label."""
        return (
            self.section.rpartition("/")[2] in _AUXILIARY_SECTIONS
            or self.name.endswith(_AUXILIARY_ENDINGS)
            or any(word in self.summary.casefold() for word in _AUXILIARY_WORDS)
        )


def make_dataset(out: Path, limit_points: int | None = None) -> Dataset:
    """Make the data set from this machine's apt index in the folder `out`, and open it.

    The folder appears whole or not at all. It must be empty or not exist yet. `limit_points` is the
    size of a sample. Raises AptError and DataError.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DataError(out, None, "a folder that is empty or not there yet", "something else")
    packages = read_packages(package_lines(), read_descriptions(description_lines()))
    if not packages:
        raise AptError("apt's lists are empty: run `apt-get update` as root, then this again")
    log.info("%d packages in apt's index", len(packages))
    dataset = related_packages(packages, limit_points)
    out = out.resolve()
    with staging_folder(out.parent) as folder:
        write_dataset(folder, dataset)
        os.rename(folder, out)
    sync(out.parent)
    return open_dataset(out)


def read_packages(lines: Iterable[bytes], descriptions: Mapping[str, str]) -> dict[str, Package]:
    """Parse a Packages list into packages by name; of several architectures the first one counts.

    The long description stands in the paragraph itself, or in `descriptions` under its MD5. Raises
    AptError where python-debian is not installed.
    """
    packages: dict[str, Package] = {}
    for paragraph in _paragraphs(lines):
        name = paragraph["package"]
        if name in packages:
            continue
        summary, _, text = paragraph.get("description", "").partition("\n")
        groups = [group for field in RELATIONS for group in paragraph.relations[field] or ()]
        packages[name] = Package(
            name=name,
            source=paragraph.source or name,
            section=paragraph.get("section", ""),
            summary=summary.strip(),
            text=_one_line(text or descriptions.get(paragraph.get("description-md5", ""), "")),
            targets=frozenset(alternative["name"] for group in groups for alternative in group),
        )
    return packages


def read_descriptions(lines: Iterable[bytes]) -> dict[str, str]:
    """Parse English translation lists into long descriptions, by the MD5 that Packages lists give.

    Raises AptError where python-debian is not installed.
    """
    return {
        paragraph["description-md5"]: paragraph["description-en"].partition("\n")[2]
        for paragraph in _paragraphs(lines)
    }


def related_packages(packages: Mapping[str, Package], limit_points: int | None = None) -> Dataset:
    """Make points, labels and the split, all in the order of the names; `sha256` stays empty.

    `limit_points` is the size of a sample of the points, drawn first. Raises AptError where no
    label has enough points.
    """
    targets = _targets(packages)
    if limit_points is not None:
        sample = sorted(targets, key=lambda name: _share(f"sample {name}"))[:limit_points]
        targets = {name: targets[name] for name in sample}
    tests = {name for name in targets if in_test(packages[name].source)}
    counts = Counter(target for related in targets.values() for target in related)
    in_training = {
        target for name, related in targets.items() if name not in tests for target in related
    }
    labels = sorted(name for name in in_training if counts[name] >= MIN_POINTS)
    if not labels:
        raise AptError(
            f"no package is named by {MIN_POINTS} others: is `main` among apt's sources, "
            "or --limit-points too low?"
        )
    rows = {name: row for row, name in enumerate(labels)}
    label_rows = {
        name: sorted(rows[target] for target in targets[name] if target in rows)
        for name in sorted(targets)
    }
    train, test = (
        {name: rows for name, rows in label_rows.items() if (name in tests) is is_test}
        for is_test in (False, True)
    )
    return Dataset(
        name="debian",
        train=_points(packages, train, len(labels)),
        test=_points(packages, test, len(labels)) if test else None,
        labels=LabelCatalogue(
            uids=labels,
            titles=[packages[name].title for name in labels],
            contents=[packages[name].text[:LABEL_CHARS] for name in labels],
        ),
        train_filter=None,
        test_filter=None,
        sha256="",
    )


def in_test(source: str) -> bool:
    """Whether a source package's points are test points; libfoo1 and libfoo-dev stay together.

    >>> in_test("bash"), in_test("vim")
    (False, True)
    """
    return _share(source) < TEST_SHARE


def _targets(packages: Mapping[str, Package]) -> dict[str, set[str]]:
    """The related packages of each package that has some; rare labels are still among them."""
    sources: defaultdict[str, set[str]] = defaultdict(set)
    for package in packages.values():
        for target in package.targets:
            sources[target].add(package.source)
    eligible = {
        name
        for name, package in packages.items()
        if not package.is_auxiliary and len(sources[name]) <= MAX_SOURCES
    }
    targets = {
        name: {
            target
            for target in package.targets & eligible
            if packages[target].source != package.source
        }
        for name, package in packages.items()
        if not package.is_auxiliary
    }
    return {name: related for name, related in targets.items() if 0 < len(related) <= MAX_TARGETS}


def _points(
    packages: Mapping[str, Package], label_rows: Mapping[str, list[int]], n_labels: int
) -> Points:
    """The packages that have a label, as points."""
    labelled = {name: rows for name, rows in label_rows.items() if rows}
    columns = np.array([row for rows in labelled.values() for row in rows], np.int64)
    ends = np.cumsum([0, *map(len, labelled.values())])
    ones = np.ones(len(columns), np.float32)
    return Points(
        uids=list(labelled),
        titles=[packages[name].title for name in labelled],
        contents=[packages[name].text[:POINT_CHARS] for name in labelled],
        labels=csr_array((ones, columns, ends), shape=(len(labelled), n_labels)),
    )


def _paragraphs(lines: Iterable[bytes]) -> "Iterator[Packages]":
    try:
        from debian.deb822 import Packages
    except ImportError as exc:
        raise AptError(
            "to read apt's lists python-debian must be installed: pip install 'astrolabe[debian]'"
        ) from exc
    return Packages.iter_paragraphs(lines, use_apt_pkg=False)


def _one_line(text: str) -> str:
    """A long description as one line. Debian writes a blank line as a blank and a full stop."""
    lines = (line for line in text.split("\n") if line != " .")
    return " ".join(" ".join(lines).split())


def _share(name: str) -> float:
    """Hash a name to a number in [0, 1), the same on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
