import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.bundle.manifest import MANIFEST, Manifest, bundle_id_of
from service.bundle.verify import hash_file, read_manifest, resolve, verify
from service.errors import (
    BundleError,
    BundleMismatch,
    BundleNotFound,
    FileCorrupt,
    FileMissing,
    FileUnlisted,
    ManifestInvalid,
    SchemaVersionUnknown,
)


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))


def reseal(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the manifest and give it a bundle_id that fits, as a careful forger would."""
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    manifest["bundle_id"] = bundle_id_of(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def claim_rows(n_rows: int) -> Callable[[dict[str, Any]], None]:
    """A change that claims this many labels everywhere."""

    def change(manifest: dict[str, Any]) -> None:
        manifest["labels"]["n_labels"] = manifest["index"]["n_rows"] = n_rows

    return change


def refused(folder: Path, error: type[BundleError], *words: str) -> None:
    with pytest.raises(error) as refusal:
        verify(folder)
    for word in words:
        assert word in refusal.value.detail


def test_sealed_bundle_verifies(tiny_bundle: Path) -> None:
    assert verify(tiny_bundle).name == "tiny"


def test_tampered_byte_is_refused(bundle: Path) -> None:
    path = bundle / "encoder.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    refused(bundle, FileCorrupt, "encoder.onnx", "SHA-256")


def test_wrong_size_is_refused_before_hashing(bundle: Path) -> None:
    with (bundle / "labels.jsonl").open("ab") as file:
        file.write(b"x")
    refused(bundle, FileCorrupt, "labels.jsonl", "bytes")


def test_missing_file_is_refused(bundle: Path) -> None:
    (bundle / "tokenizer.json").unlink()
    refused(bundle, FileMissing, "tokenizer.json")


@pytest.mark.parametrize("name", ["extra.pkl", ".hidden"])
def test_unlisted_file_is_refused(bundle: Path, name: str) -> None:
    (bundle / name).write_bytes(b"")
    refused(bundle, FileUnlisted, name)


def test_symbolic_link_is_refused(bundle: Path, tmp_path: Path) -> None:
    path = bundle / "encoder.onnx"
    path.rename(tmp_path / "outside.onnx")
    path.symlink_to(tmp_path / "outside.onnx")
    refused(bundle, FileCorrupt, "encoder.onnx", "plain file")


def test_folder_in_place_of_a_file_is_refused(bundle: Path) -> None:
    (bundle / "encoder.onnx").unlink()
    (bundle / "encoder.onnx").mkdir()
    refused(bundle, FileCorrupt, "encoder.onnx", "plain file")


@pytest.mark.parametrize("name", ["encoder.onnx", "labels.jsonl"])
def test_a_named_pipe_is_refused_without_waiting_for_a_writer(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    os.mkfifo(bundle / name)
    refused(bundle, FileCorrupt, name, "plain file")


def test_a_device_in_place_of_a_file_is_refused(bundle: Path) -> None:
    (bundle / "encoder.onnx").unlink()
    (bundle / "encoder.onnx").symlink_to("/dev/zero")
    refused(bundle, FileCorrupt, "encoder.onnx", "plain file")


def test_a_linked_manifest_is_refused(bundle: Path, tmp_path: Path) -> None:
    (bundle / MANIFEST).rename(tmp_path / "outside.json")
    (bundle / MANIFEST).symlink_to(tmp_path / "outside.json")
    refused(bundle, ManifestInvalid, MANIFEST, "plain file")


def test_a_file_that_grows_while_it_is_read_is_read_to_its_stated_end_only() -> None:
    # /dev/zero never ends; a growing file looks the same to whoever reads it
    with pytest.raises(FileCorrupt, match="plain file"):
        hash_file(Path("/dev/zero"))


def test_hashing_stops_one_step_past_the_stated_size(tmp_path: Path) -> None:
    path = tmp_path / "growing"
    path.write_bytes(bytes(5 << 20))
    assert hash_file(path, max_bytes=10).bytes == 1 << 20


def test_a_folder_that_may_not_be_listed_is_a_bundle_error(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> list[str]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", refuse)
    refused(bundle, BundleNotFound, "Permission denied")


def test_large_file_pointer_is_refused(bundle: Path) -> None:
    # what a clone without large-file support leaves behind
    (bundle / "encoder.onnx").write_text("version https://git-lfs.github.com/spec/v1\n")
    refused(bundle, FileCorrupt, "encoder.onnx")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "expected a JSON object, found list"),
        (b'"text"', "expected a JSON object, found str"),
    ],
)
def test_manifest_that_is_not_a_json_object_is_refused(
    bundle: Path, content: bytes, words: str
) -> None:
    (bundle / MANIFEST).write_bytes(content)
    refused(bundle, ManifestInvalid, MANIFEST, words)


def test_absent_manifest_is_refused(bundle: Path) -> None:
    (bundle / MANIFEST).unlink()
    refused(bundle, BundleNotFound, MANIFEST)


def test_huge_manifest_is_refused_unread(bundle: Path) -> None:
    with (bundle / MANIFEST).open("ab") as file:
        file.truncate((16 << 20) + 1)
    refused(bundle, ManifestInvalid, MANIFEST, "bytes")


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_unknown_schema_version_is_refused_first(bundle: Path, version: Any) -> None:
    reseal(bundle, lambda manifest: manifest.update(schema_version=version, surprise=1))
    refused(bundle, SchemaVersionUnknown, MANIFEST, repr(version))


def test_manifest_changed_after_sealing_is_refused(bundle: Path) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["name"] = "other"
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    refused(bundle, ManifestInvalid, MANIFEST, "changed after sealing")


REFERENCE_OF_ONE_BIN = {
    "split": "validation",
    "n_queries": 9,
    "top_score": {"bounds": [0.5], "counts": [9]},
    "query_tokens": {"bounds": [8.0], "counts": [9, 0]},
}


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda m: m.update(surprise=1), "surprise"),
        (lambda m: m.pop("parity"), "parity"),
        (lambda m: m.update(reference=REFERENCE_OF_ONE_BIN), "reference.top_score"),
        (lambda m: m["encoder"].update(dim="16"), "encoder.dim"),
        (lambda m: m["operating_points"][1].update(p_at_1=None), "operating_points.1.p_at_1"),
        (lambda m: m["files"].update({"../evil": {"sha256": "0" * 64, "bytes": 0}}), "../evil"),
        (lambda m: m["files"].update({MANIFEST: {"sha256": "0" * 64, "bytes": 0}}), MANIFEST),
        (lambda m: m["tokenizer"].update(file="elsewhere.json"), "elsewhere.json"),
        (lambda m: m["tokenizer"].update(max_tokens=2**40), "tokenizer.max_tokens"),
        (lambda m: m["tokenizer"].update(max_tokens=0), "tokenizer.max_tokens"),
        (lambda m: m["encoder"].update(dim=2**31), "encoder.dim"),
        (lambda m: m["encoder"].update(dim=-1), "encoder.dim"),
        (lambda m: m["index"].update(n_rows=2**40), "index.n_rows"),
        (lambda m: m["labels"].update(files=[]), "labels.files"),
        (lambda m: m["defaults"].update(k=0), "defaults.k"),
        (lambda m: m["operating_points"][0]["params"].update(ef_search=-1), "ef_search"),
        (lambda m: m["operating_points"][0]["params"].update(ef_search=2**30), "ef_search"),
        (lambda m: m["files"]["encoder.onnx"].update(bytes=-1), "files.encoder.onnx.bytes"),
        (lambda m: m["files"]["encoder.onnx"].update(sha256="x"), "files.encoder.onnx.sha256"),
        (lambda m: m["files"].update({"a\nb": {"sha256": "0" * 64, "bytes": 0}}), "a\\nb"),
        (lambda m: m["files"].update({"a/../b": {"sha256": "0" * 64, "bytes": 0}}), "a/../b"),
        (lambda m: m["files"].update({".hidden": {"sha256": "0" * 64, "bytes": 0}}), ".hidden"),
    ],
)
def test_manifest_off_its_schema_is_refused_with_the_place(
    bundle: Path, change: Callable[[dict[str, Any]], Any], place: str
) -> None:
    reseal(bundle, change)
    refused(bundle, ManifestInvalid, MANIFEST, place)


@pytest.mark.parametrize(
    ("change", "values"),
    [
        (lambda m: m["labels"].update(n_labels=49), ("49", "50")),
        (lambda m: m["defaults"].update(effort="warp"), ("warp", "balanced")),
        (lambda m: m["golden"][0]["scores"].pop(), ("4 scores", "5 labels")),
        (lambda m: m["golden"][0].update(label_ids=[], scores=[]), ("0 labels", "0 scores")),
        (claim_rows(10**6), ("32000000 bytes", "its files have")),
        (claim_rows(1000), ("32000 bytes", "its files have")),
        (lambda m: m["operating_points"].append(m["operating_points"][0]), ("twice", "fast")),
    ],
)
def test_parts_that_disagree_are_refused_with_both_values(
    bundle: Path, change: Callable[[dict[str, Any]], Any], values: tuple[str, str]
) -> None:
    reseal(bundle, change)
    refused(bundle, BundleMismatch, MANIFEST, *values)


def test_a_manifest_without_a_memory_needs_no_such_field(tiny_bundle: Path) -> None:
    assert "memory" not in json.loads((tiny_bundle / MANIFEST).read_text())
    assert read_manifest(tiny_bundle).memory is None


def test_sealed_bundle_with_a_memory_verifies(tiny_memory_bundle: Path) -> None:
    memory = verify(tiny_memory_bundle).memory
    assert memory is not None
    assert memory.n_rows == 40


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda m: m["memory"].update(weight=-0.1), "memory.weight"),
        (lambda m: m["memory"].update(weight=1.0), "memory.weight"),
        (lambda m: m["memory"].update(temperature=0.0), "memory.temperature"),
        (lambda m: m["memory"].update(neighbours=0), "memory.neighbours"),
        (lambda m: m["memory"].update(depth=0), "memory.depth"),
        (lambda m: m["memory"]["files"].pop(), "memory.files"),
        (lambda m: m["memory"]["files"].__setitem__(2, "gone.npy"), "gone.npy"),
        (lambda m: m["memory"].update(surprise=1), "memory.surprise"),
    ],
)
def test_memory_off_its_schema_is_refused_with_the_place(
    tiny_memory_bundle: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any], place: str
) -> None:
    folder = Path(shutil.copytree(tiny_memory_bundle, tmp_path / "copy"))
    reseal(folder, change)
    refused(folder, ManifestInvalid, MANIFEST, place)


def test_bundle_id_ignores_layout_and_order_of_the_file(tiny_bundle: Path) -> None:
    raw = json.loads((tiny_bundle / MANIFEST).read_text())
    shuffled = dict(sorted(raw.items(), reverse=True))
    assert bundle_id_of(shuffled) == raw["bundle_id"]


def test_manifest_survives_a_round_trip(tiny_bundle: Path) -> None:
    manifest = read_manifest(tiny_bundle)
    assert Manifest.model_validate(manifest.model_dump()) == manifest


def test_folder_of_bundles_resolves_through_its_pointer(tiny_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "v1")
    (tmp_path / "CURRENT").write_text("v1\n")
    assert resolve(tmp_path) == tmp_path / "v1"
    assert resolve(tiny_bundle) == tiny_bundle


@pytest.mark.parametrize("pointer", [None, "", "gone", "../outside", "a/b", "x" * 999])
def test_pointer_that_leads_nowhere_is_refused(tmp_path: Path, pointer: str | None) -> None:
    if pointer is not None:
        (tmp_path / "CURRENT").write_text(pointer)
    with pytest.raises(BundleNotFound, match="CURRENT"):
        resolve(tmp_path)
