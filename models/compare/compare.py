"""Compares Astrolabe and its peers on one data set: checks, measures, and writes all outputs.

All checks come before the first training, so that a mistake costs no hour. bench.py measures the
systems, and skips those that an earlier comparison has measured.
"""

import datetime
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from models.compare.bench import Bench, check_bundle, check_same
from models.compare.charts import write_charts
from models.compare.exam import Exam
from models.compare.peers.registry import make_peer
from models.compare.record import Comparison, Provenance, open_comparison
from models.compare.table import check_markers, write_between_markers, write_table
from models.config import Config, DataConfig, Fields
from models.data.filters import with_own_items
from models.data.prepare import load_config_with_data
from models.data.tables.table import open_data
from models.errors import ComparisonError
from models.index.efforts import machine
from models.runs import code_revision
from service.atomic import staging_folder
from service.bundle.verify import read_manifest, resolve

log = logging.getLogger(__name__)

# A and B of the propensity model (Jain et al., 2016, "Extreme Multi-label Loss Functions"). The
# paper takes these values for data sets other than Wikipedia and Amazon.
DEFAULT_PROPENSITY = (0.55, 1.5)


@dataclass(frozen=True, slots=True)
class Request:
    """The systems to compare, their data, and the places of the outputs.

    None means the first configuration's value, or the default where it has none. `own_item` leaves
    every point's own label out of all predictions, as `data.own_item` of a configuration does.
    """

    data: Path | None = None
    fields: Fields | None = None
    own_item: bool = False
    propensity: tuple[float, float] | None = None
    configs: tuple[Path, ...] = ()
    bundles: tuple[Path, ...] = ()
    peers: tuple[str, ...] = ()
    var: Path = Path("var")
    out: Path | None = None
    into: Path | None = None
    name: str | None = None
    again: bool = False
    command: str = "python -m models compare"


def compare(request: Request) -> Comparison:
    """Measure the systems of the request that have no row yet, then write all outputs.

    Raises ModelsError.
    """
    configs = [load_config_with_data(path) for path in request.configs]
    data = _data(request, configs)
    exam = _open_exam(request, configs, data)
    name = request.name or exam.dataset.name
    out = request.out or request.var / "compare" / name
    _check_page_and_packages(request, name)
    _check_same_data(request, configs, exam, data)
    comparison = open_comparison(out, exam.subject)
    bench = Bench(exam, comparison, out, request.var, request.again, _provenance(request.command))
    for peer in request.peers:
        bench.add_peer(peer)
    for folder in request.bundles:
        bench.add_bundle(folder)
    for config in configs:
        bench.add_config(config)
    comparison = bench.comparison
    if not comparison.rows:
        raise ComparisonError("nothing to compare: name --config, --bundle or --peers")
    comparison = comparison.with_differences(exam.groups)
    comparison.save(out)
    write_table(comparison, out)
    write_charts(comparison, out)
    if request.into is not None:
        write_between_markers(comparison, request.into, name)
    log.info("%s holds the comparison", out)
    return comparison


def _data(request: Request, configs: Sequence[Config]) -> DataConfig:
    if request.data is not None:
        return DataConfig(path=str(request.data))
    if not configs:
        raise ComparisonError("name the data: --data FOLDER, or a --config that has it")
    return configs[0].data


def _open_exam(request: Request, configs: Sequence[Config], data: DataConfig) -> Exam:
    fields: Fields = request.fields or (configs[0].data.fields if configs else "title")
    a, b = request.propensity or DEFAULT_PROPENSITY
    if request.propensity is None and configs:
        a, b = configs[0].metrics.propensity_a, configs[0].metrics.propensity_b
    dataset = open_data(data)
    if request.own_item or any(config.data.own_item for config in configs):
        dataset = with_own_items(dataset)
    return Exam(dataset, fields, a, b)


def _check_page_and_packages(request: Request, name: str) -> None:
    """Raise ModelsError where a page lacks markers or a package is not installed."""
    if request.into is not None:
        check_markers(request.into, name)
    for peer in request.peers:
        with staging_folder(request.var) as folder:
            make_peer(peer, folder)


def _check_same_data(
    request: Request, configs: Sequence[Config], exam: Exam, data: DataConfig
) -> None:
    """Raise ComparisonError where a bundle or a configuration is on other data or text."""
    for bundle in request.bundles:
        check_bundle(exam, read_manifest(resolve(bundle)))
    hashes = {(data.path, data.table): exam.dataset.sha256}
    for config in configs:
        place = config.data.path, config.data.table
        if place not in hashes:
            hashes[place] = open_data(config.data).sha256
        check_same(exam, f"configuration {config.name}", hashes[place], config.data.fields)


def _provenance(command: str) -> Provenance:
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return Provenance(command, machine(), today, code_revision())
