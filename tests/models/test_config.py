"""The training configuration: what is refused and how it is said."""

import re
from pathlib import Path

import pytest

from models.config import load_config
from models.errors import ConfigError

MINIMAL = 'seed = 3\n[data]\npath = "d"\n[encoder]\nsource = "scratch"\n'


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "tiny.toml"
    file.write_text(MINIMAL)
    return file


def test_name_is_the_file_name_unless_given(path):
    assert load_config(path).name == "tiny"
    assert load_config(path, ["name=other"]).name == "other"


def test_a_byte_order_mark_is_left_out_and_another_encoding_named(path):
    path.write_text(MINIMAL, encoding="utf-8-sig")
    assert load_config(path).seed == 3
    path.write_text(MINIMAL, encoding="utf-16")
    with pytest.raises(ConfigError, match="is not UTF-8: invalid start byte"):
        load_config(path)


def test_overrides_win_and_keep_their_types(path):
    config = load_config(path, ["train.epochs=7", "train.label_lr=0.5", "method.label_rows=false"])
    assert (config.train.epochs, config.train.label_lr) == (7, 0.5)
    assert config.method.label_rows is False


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train.epoch=7", "unknown key train.epoch"),
        ("train.epochs=seven", "train.epochs: .*integer"),
        ("train.epochs=0", "train.epochs: .*greater than or equal to 1"),
        ("train.epochs=1.5", "train.epochs: .*integer"),
        ("method.dropout=1.0", "method.dropout"),
        ("train.epochs", "expected key.subkey=value"),
        ("seed.x=1", "seed is not a section"),
        ("train.epochs=1", "leaves none of train.epochs"),
        ("index.recall_fast=0.9999", "must rise"),
        ("encoder.kind=lstm", "encoder.kind: .*'bag', 'transformer' or 'bag.transformer'"),
        ("encoder.max_tokens=3", "encoder.max_tokens"),
        ("method.kind=renee", "method.kind: .*'full-bce'"),
        ("method.weights=none", "method.weights: .*'self-normalised'"),
        ("method.weight_cap=0", "method.weight_cap"),
        ("method.score_scale=inf", "method.score_scale: .*finite"),
        ("train.schedule=step", "train.schedule: .*'cosine'"),
        ("train.accumulate=0", "train.accumulate"),
        ("train.precision=fp8", "train.precision: .*'bf16'"),
        ("encoder.frosen=true", "unknown key encoder.frosen"),
        ("name=a/b", "name"),
    ],
)
def test_a_wrong_override_is_named(path, override, sentence):
    with pytest.raises(ConfigError, match=sentence):
        load_config(path, [override])


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["data.fields=title|content"], "and 0 encoder.field_tokens do not go together: give one"),
        (["data.fields=title|content", "encoder.field_tokens=[8]"], "1 encoder.field_tokens"),
        (["encoder.field_tokens=[8, 16]"], "data.fields title and 2 encoder.field_tokens"),
        (["data.label_fields=title|content"], "which has no views"),
        (["method.label_cooccurrence=0.5", "method.label_rows=false"], "is for label rows"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(path, overrides, sentence):
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        load_config(path, overrides)


def test_views_have_a_length_each(path):
    given = load_config(path, ["data.fields=title|content", "encoder.field_tokens=[8, 16]"])
    assert given.data.views == ["title", "content"]
    assert given.encoder.limits == [8, 16]
    assert load_config(path, []).encoder.limits == [64]


@pytest.mark.parametrize(
    "overrides",
    [
        ["method.hard_negatives=0"],
        ["method.kind=full-bce"],
        ["method.kind=full-bce", "train.epochs=1"],
    ],
)
def test_hard_only_needs_a_method_that_mines(path, overrides):
    with pytest.raises(ConfigError, match="leaves no negatives at all without hard ones"):
        load_config(path, ["method.hard_only=true", *overrides])
    assert load_config(path, ["method.hard_only=true"]).method.hard_only


def test_a_softmax_needs_a_loss_that_samples(path):
    with pytest.raises(ConfigError, match="full-bce has no softmax"):
        load_config(path, ["method.softmax_share=0.5", "method.kind=full-bce"])


@pytest.mark.parametrize("setting", ["method.kind=full-bce", "method.hard_negatives=0"])
def test_one_epoch_is_enough_where_nothing_is_mined(path, setting):
    assert load_config(path, ["train.epochs=1", setting]).train.epochs == 1


def test_a_missing_file_and_broken_toml_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml cannot be read"):
        load_config(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("seed = = 3")
    with pytest.raises(ConfigError, match=r"bad\.toml is not TOML"):
        load_config(tmp_path / "bad.toml")


def test_every_key_is_documented(path):
    page = (Path(__file__).resolve().parents[2] / "docs" / "training.md").read_text()
    for section, value in load_config(path).model_dump().items():
        for key in value if isinstance(value, dict) else [None]:
            name = f"{section}.{key}" if key else section
            assert f"`{name}`" in page, name


def test_digest_follows_the_content_not_the_spelling(path):
    assert load_config(path, ["train.epochs=9"]).digest != load_config(path).digest
    assert load_config(path, ["seed=3"]).digest == load_config(path).digest
