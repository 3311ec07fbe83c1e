import dataclasses
import json

import pytest

from defectdiffu import PRESETS, InputError
from defectdiffu.config import Preset, load_preset


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_json(name):
    values = json.loads(json.dumps(PRESETS[name].to_dict()))
    assert Preset.from_dict(values) == PRESETS[name]
    assert PRESETS[name].name == name


@pytest.mark.parametrize(("name", "latent", "blocks"), [("tiny", 16, 8), ("book", 32, 12), ("paper", 64, 28)])
def test_presets_are_the_designed_ones(name, latent, blocks):
    preset = PRESETS[name]
    assert preset.latent_size == latent
    assert preset.model.background_blocks + preset.model.defect_blocks + preset.model.fusion_blocks == blocks
    assert preset.loss.alpha == 0.001


def test_the_papers_loss_weights_are_in_its_preset():
    assert PRESETS["paper"].loss.mask_weight == 0.2


def test_presets_are_frozen(preset):
    with pytest.raises(dataclasses.FrozenInstanceError):
        preset.image_size = 1


def test_replace_changes_what_it_names_and_nothing_else():
    preset = PRESETS["tiny"].replace(training={"steps": 7}, image_size=128)
    assert (preset.training.steps, preset.image_size) == (7, 128)
    assert preset.training.batch_size == PRESETS["tiny"].training.batch_size
    assert PRESETS["tiny"].training.steps != 7


def test_whole_numbers_are_good_floats():
    value = PRESETS["tiny"].replace(training={"learning_rate": 1}).training.learning_rate
    assert (value, type(value)) == (1.0, float)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainin": {}}, "unknown preset key 'trainin': did you mean training"),
        ({"training": {"stepz": 3}}, "unknown training key 'stepz': did you mean steps"),
        ({"training": {"steps": 1.5}}, "training key 'steps' must be int, not 1.5"),
        ({"training": {"steps": "many"}}, "training key 'steps' must be int, not 'many'"),
        ({"training": {"compile": 1}}, "training key 'compile' must be bool, not 1"),
        ({"training": {"steps": True}}, "training key 'steps' must be int, not True"),
        ({"training": 3}, "'training' must be an object of named settings, not 3"),
        ({"text": {"pretrained": 3}}, "text key 'pretrained' must be str or null, not 3"),
        ({"image_size": None}, "preset key 'image_size' must be int, not None"),
    ],
)
def test_bad_settings_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        PRESETS["tiny"].replace(**changes)


def test_a_preset_needs_its_size():
    with pytest.raises(InputError, match="preset lacks image_size"):
        Preset.from_dict({"name": "mine"})


def test_load_preset_by_name_and_from_a_file(tmp_path):
    assert load_preset("book") is PRESETS["book"]
    file = tmp_path / "mine.json"
    file.write_text('{"base": "book", "training": {"steps": 5}}')
    assert load_preset(str(file)) == PRESETS["book"].replace(training={"steps": 5})
    file.write_text(json.dumps(PRESETS["paper"].to_dict()))
    assert load_preset(str(file)) == PRESETS["paper"]


def test_a_preset_that_is_its_own_base_is_refused(tmp_path):
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    one.write_text(json.dumps({"base": str(other)}))
    other.write_text(json.dumps({"base": str(one)}))
    with pytest.raises(InputError, match="its own base"):
        load_preset(str(one))


def test_load_preset_names_what_it_cannot_read(tmp_path):
    with pytest.raises(InputError, match="unknown preset 'boook': did you mean book"):
        load_preset("boook")
    with pytest.raises(InputError, match=r"cannot read the preset .*none\.json"):
        load_preset(str(tmp_path / "none.json"))
    file = tmp_path / "bad.json"
    for text in ("{", "[1]", '{"base": "tiny", "image_size": "big"}'):
        file.write_text(text)
        with pytest.raises(InputError):
            load_preset(str(file))
