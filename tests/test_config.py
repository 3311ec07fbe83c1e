import json

import pytest
from pydantic import ValidationError

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
    with pytest.raises(ValidationError):
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
        ({"training": {"steps": 1.5}}, r"training\.steps is 1\.5: it should be a valid integer"),
        ({"training": {"steps": "many"}}, "training.steps is 'many': it should be a valid integer"),
        ({"training": {"compile": 1}}, "training.compile is 1: it should be a valid boolean"),
        ({"training": {"steps": True}}, "training.steps is True: it should be a valid integer"),
        ({"training": 3}, "training is 3: it should be a valid dictionary"),
        ({"text": {"pretrained": 3}}, "text.pretrained is 3: it should be a valid string"),
        ({"image_size": None}, "image_size is None: it should be a valid integer"),
        ({"image_size": {"width": 3}}, "image_size is {'width': 3}: it should be a valid integer"),
        # Ranges: what cannot be meant is refused before anything is built.
        ({"training": {"batch_size": 0}}, "training.batch_size is 0: it should be greater than or equal to 1"),
        ({"training": {"batch_size": -4}}, "training.batch_size is -4"),
        ({"training": {"steps": -1}}, "training.steps is -1"),
        ({"training": {"learning_rate": float("nan")}}, "training.learning_rate is nan: it should be a finite number"),
        ({"training": {"learning_rate": -1}}, "training.learning_rate is -1: it should be greater than 0"),
        ({"training": {"checkpoint_every": 0}}, "training.checkpoint_every is 0"),
        ({"training": {"seed": -1}}, "training.seed is -1"),
        ({"training": {"seed": 2**70}}, "training.seed is 1180591620717411303424: it should be less than or equal to"),
        ({"training": {"ema_decay": 2}}, "training.ema_decay is 2: it should be less than"),
        ({"training": {"p1": 1.5}}, "training.p1 is 1.5: it should be less than or equal to 1"),
        ({"image_size": -1}, "image_size is -1"),
        ({"image_size": 65}, r"preset: image_size 65 is not a multiple of 8 \(autoencoder"),
        ({"image_size": 100_000}, "image_size is 100000: it should be less than or equal to 16384"),
        ({"autoencoder": {"downsample": 3}}, "autoencoder.downsample is 3: it should be 1, 2, 4, 8, 16 or 32"),
        ({"model": {"width": 0}}, "model.width is 0"),
        ({"model": {"width": 10**9}}, "model.width is 1000000000"),
        ({"model": {"width": 100, "heads": 3}}, "model: width 100 is not a multiple of heads 3"),
        ({"model": {"defect_blocks": -8}}, "model.defect_blocks is -8"),
        ({"model": {"patch_size": 0}}, "model.patch_size is 0"),
        ({"model": {"prediction": "noize"}}, "model.prediction is 'noize': it should be 'noise' or 'velocity'"),
        ({"text": {"heads": 3}}, "text: width 64 is not a multiple of heads 3"),
        ({"text": {"layers": 0}}, "text.layers is 0"),
        ({"sampling": {"w_d": 1e30}}, r"sampling.w_d is 1e\+30"),
        ({"sampling": {"guidance": "free"}}, "sampling.guidance is 'free'"),
        ({"training": {"steps": -1, "batch_size": 0}}, "steps is -1.*; training.batch_size is 0"),
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


def test_a_base_that_is_no_name_is_refused(tmp_path):
    file = tmp_path / "preset.json"
    file.write_text('{"base": 3}')
    with pytest.raises(InputError, match="has the base 3: it must be the name of a preset"):
        load_preset(str(file))


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
