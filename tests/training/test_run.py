import json
import os
import re
import resource
import shutil
import signal
import socket
from hashlib import sha256
from pathlib import Path
from pkgutil import resolve_name

import pytest
import safetensors.torch
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from helpers import in_another_process, processes, tiny_preset, write_folder
from PIL import Image

from defectdiffu import DefectDiffuPipeline, InputError
from defectdiffu.config import Preset
from defectdiffu.data.folder import read_folder
from defectdiffu.files import load_tensors, locked
from defectdiffu.training import building
from defectdiffu.training import run as training
from defectdiffu.training.checkpoints import load_newest_checkpoint, save_checkpoint
from defectdiffu.training.denoiser import Denoiser
from defectdiffu.training.loop import read_log
from defectdiffu.training.run import fingerprint, train

# ---------------------------------------------------------------------------------------------------------------------
# A whole run


def contents(run: Path) -> dict[str, str]:
    """Every file with weights in a run and its digest; hidden ones are temporary."""
    files = {str(file.relative_to(run)): file for file in run.rglob("*.safetensors")}
    return {name: sha256(f.read_bytes()).hexdigest() for name, f in files.items() if not name.startswith(".")}


def log(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def train_tiny(data: Path, run: Path) -> None:
    train(tiny_preset(), [data], run)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> Path:
    """A run that was never killed."""
    run = tmp_path_factory.mktemp("finished") / "run"
    train_tiny(data, run)
    return run


def test_a_run_is_a_pipeline_to_generate_with(finished):
    pipe = DefectDiffuPipeline.from_pretrained(finished)
    assert pipe.pairs == {"hazelnut": ["crack", "hole"], "tile": ["crack", "hole"]}
    assert pipe(product="tile", defect="hole").images[0].size == (32, 32)
    assert {entry["stage"] for entry in log(finished)} == {"autoencoder", "transformer"}
    assert log(finished)[-1]["step"] == 12
    assert not list(finished.rglob("*.part"))
    (grid,) = (finished / "samples").iterdir()
    assert Image.open(grid).size == (4 * 32, 2 * 32)


def test_latents_are_scaled_to_unit_deviation(finished):
    (file,) = (finished / "cache").iterdir()
    tensors, _ = load_tensors(file)
    assert float(tensors["image"][:, 0].float().square().mean().sqrt()) == pytest.approx(1, abs=0.02)


def test_watched_pictures_are_not_trained_on(finished, data, tmp_path):
    """Validation pictures do not change the weights, and their losses are in the log."""
    train(tiny_preset(), [data], tmp_path / "run", val=write_folder(tmp_path / "val", good=1, defective=1))
    last = log(tmp_path / "run")[-1]
    assert set(last["val"]) >= {"noise", "defect", "mask"}
    newest = [load_newest_checkpoint(run / "checkpoints")[0] for run in (finished, tmp_path / "run")]
    assert newest[0].keys() == newest[1].keys()
    assert all(torch.equal(v, newest[1][k]) for k, v in newest[0].items())


def test_good_pictures_alone_train_a_model_of_good_pictures(tmp_path, capsys):
    folder = write_folder(tmp_path / "data", good=4, defective=0)
    run = train(tiny_preset(), [folder], tmp_path / "run")
    assert "good pictures only" in capsys.readouterr().err
    pipe = DefectDiffuPipeline.from_pretrained(run)
    assert len(pipe(product="tile").images) == 1
    with pytest.raises(InputError, match="unknown defect"):
        pipe(product="tile", defect="crack")


@pytest.mark.parametrize(
    ("place", "message"),
    [("tile/test/Good", "'Good' and 'good'"), ("industry/train/good", "'industry'"), ("Tile/train/good", "'Tile'")],
)
def test_names_are_checked_before_anything_is_trained(tmp_path, place, message):
    folder = write_folder(tmp_path / "data")
    shutil.copytree(folder / "tile" / ("test/hole" if "test" in place else "train/good"), folder / place)
    if "test" in place:
        shutil.copytree(folder / "tile" / "ground_truth" / "hole", folder / "tile" / "ground_truth" / "Good")
    with pytest.raises(InputError, match=message):
        train(tiny_preset(), [folder], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_steps_are_planned_by_the_rate_and_the_plan_is_kept(data, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "seconds_per_step", lambda *arguments: 0.05)
    preset = tiny_preset(training={"minutes": 0.5})
    run = train(preset, [data], tmp_path / "run")
    plan = json.loads((run / "plan.json").read_text())
    assert 1 <= plan["steps"] <= 0.5 * 60 / 0.05
    assert plan["samples"] == plan["steps"] * preset.training.batch_size
    assert log(run)[-1]["step"] == plan["steps"]
    monkeypatch.setattr(training, "seconds_per_step", lambda *arguments: 1 / 0)
    train(preset, [data], run)
    assert json.loads((run / "plan.json").read_text()) == plan


# ---------------------------------------------------------------------------------------------------------------------
# Killed and resumed


def kill_at_call(function: str, count: int) -> None:
    """Let this process be killed, as by a power cut, when `function` is called for the `count`-th time."""
    place, _, name = function.rpartition(".")
    owner, calls = resolve_name(place), 0
    original = getattr(owner, name)

    def wrapper(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, name, wrapper)


def killed_in_a_checkpoint(data: Path, run: Path) -> None:
    """Half of the file is written."""

    def half(tensors, path, metadata):
        original(tensors, path, metadata)
        os.truncate(path, path.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    original, safetensors.torch.save_file = safetensors.torch.save_file, half
    train_tiny(data, run)


def killed(data: Path, run: Path, function: str, count: int) -> None:
    kill_at_call(function, count)
    train_tiny(data, run)


def out_of_disk(data: Path, run: Path, largest: int) -> None:
    """No file may grow beyond `largest` bytes: the error is a clear message, not the writer's traceback."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    with pytest.raises(InputError, match=r"could not write .*free some space and run the same command again"):
        train_tiny(data, run)


def test_a_killed_run_ends_in_the_same_weights(finished, data, tmp_path):
    """The same call repeated, killed each time at a later point, and at last not killed."""
    run = tmp_path / "run"

    def dies(function: str, count: int) -> None:
        assert in_another_process(killed, data, run, function, count) == -signal.SIGKILL
        assert not (run / "model_index.json").exists()

    dies("torch.optim.AdamW.step", 7)  # the autoencoder's, after its checkpoint of step 4
    assert load_newest_checkpoint(run / "autoencoder-checkpoints")[1]["step"] == 4
    assert in_another_process(killed_in_a_checkpoint, data, run) == -signal.SIGKILL
    assert load_newest_checkpoint(run / "autoencoder-checkpoints")[1]["step"] == 4
    dies("os.fsync", 1)  # written, not renamed
    assert load_newest_checkpoint(run / "autoencoder-checkpoints")[1]["step"] == 4
    dies("defectdiffu.autoencoder.PatchAutoencoder.save_pretrained", 1)  # trained, not saved
    dies("defectdiffu.training.latents.save_tensors", 1)  # saved, the cache not begun
    dies("defectdiffu.training.latents.save_tensors", 2)  # its batches are there, it is not
    dies("torch.optim.AdamW.step", 3)  # the transformer's, before any checkpoint
    dies("torch.optim.AdamW.step", 10)
    assert load_newest_checkpoint(run / "checkpoints")[1]["step"] == 8
    largest = next((finished / "checkpoints").iterdir()).stat().st_size // 2
    assert in_another_process(out_of_disk, data, run, largest) == 0
    assert load_newest_checkpoint(run / "checkpoints")[1]["step"] == 8
    dies("defectdiffu.DefectDiffuPipeline.save_pretrained", 1)
    dies("pathlib.Path.replace", 5)  # half of the pipeline is in place
    assert in_another_process(train_tiny, data, run) == 0
    assert contents(run) == contents(finished)
    assert not list((run / "checkpoints").glob(".*"))


def test_the_same_call_on_a_finished_run_changes_nothing(finished, data):
    before = contents(finished)
    assert in_another_process(train_tiny, data, finished) == 0
    assert contents(finished) == before


# ---------------------------------------------------------------------------------------------------------------------
# Several processes


def member(rank: int, count: int, port: int, settings: dict, data: Path, run: Path, kill_at: int) -> None:
    """One of `count` processes that train together, as launchers start them; the first may be killed in a step."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "ACCELERATE_USE_CPU": "true"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    training.precision = lambda: "no"  # what is compared is the sharing of a batch, not the rounding of half precision
    if rank == 0 and kill_at:
        kill_at_call("torch.optim.AdamW.step", kill_at)
    train(Preset.from_dict(settings), [data], run)
    assert PartialState().num_processes == count


def together(count: int, preset: Preset, data: Path, run: Path, kill_at: int = 0) -> list[int]:
    """Train in `count` processes; returns their exit codes."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    arguments = (count, port, preset.to_dict(), data, run, kill_at)
    members = [processes.Process(target=member, args=(rank, *arguments)) for rank in range(count)]
    for process in members:
        process.start()
    for process in members:
        process.join()
    return [process.exitcode for process in members]


def assert_same_steps(a: Path, b: Path) -> None:
    """The same losses; and the same weights, except where Adam enlarges rounding in gradients that are almost zero."""
    one, two = log(a), log(b)
    assert [(e["stage"], e["step"]) for e in one] == [(e["stage"], e["step"]) for e in two]
    for x, y in zip(one, two, strict=True):
        assert x["loss"] == pytest.approx(y["loss"], rel=1e-3)
    first, second = (load_newest_checkpoint(run / "checkpoints")[0] for run in (a, b))
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert value.shape == second[key].shape
        if key.startswith(("model.", "ema.")):  # twelve steps of 0.001
            assert float((value - second[key]).abs().mean()) < 2e-4, key


def test_two_processes_take_the_steps_of_one(data, tmp_path):
    preset = tiny_preset(autoencoder={"batch_size": 14})  # and two masks: equal shares
    assert together(1, preset, data, tmp_path / "one") == [0]
    assert together(2, preset, data, tmp_path / "two") == [0, 0]
    assert_same_steps(tmp_path / "one", tmp_path / "two")


def test_two_processes_are_killed_and_go_on(finished, data, tmp_path):
    preset = tiny_preset(
        autoencoder={"pretrained": str(finished / "autoencoder")},
        training={"sample_every": 6, "accumulate": 2, "gradient_checkpointing": True},
    )
    assert together(1, preset, data, tmp_path / "one") == [0]
    assert together(2, preset, data, tmp_path / "whole") == [0, 0]
    assert_same_steps(tmp_path / "one", tmp_path / "whole")
    codes = together(2, preset, data, tmp_path / "killed", kill_at=10)
    assert codes[0] == -signal.SIGKILL
    assert codes[1] != 0
    assert load_newest_checkpoint(tmp_path / "killed" / "checkpoints")[1]["step"] == 8
    assert together(2, preset, data, tmp_path / "killed") == [0, 0]
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert DefectDiffuPipeline.from_pretrained(tmp_path / "killed")("tile", "hole").images[0].size == (32, 32)


# ---------------------------------------------------------------------------------------------------------------------
# Small memory


@pytest.fixture
def full_precision(monkeypatch):
    """accelerate keeps one state per process, so it is reset before and after."""
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr(training, "precision", lambda: "no")
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def trained(data: Path, run: Path, **settings) -> dict[str, torch.Tensor]:
    """The last checkpoint of a run in full precision; the autoencoder is the first run's."""
    home = run.parent / "autoencoder"
    pretrained = {"pretrained": str(home)} if home.exists() else {}
    train(tiny_preset(autoencoder=pretrained, training=settings), [data], run)
    if not home.exists():
        shutil.copytree(run / "autoencoder", home)
    return load_newest_checkpoint(run / "checkpoints")[0]


@pytest.mark.usefixtures("full_precision")
def test_settings_that_save_memory_change_nothing_else(data, tmp_path):
    plain = trained(data, tmp_path / "plain", batch_size=16)
    for i, settings in enumerate(
        [{"accumulate": 2}, {"accumulate": 4}, {"gradient_checkpointing": True}, {"average_on_cpu": True}]
    ):
        saving = trained(data, tmp_path / str(i), batch_size=16, **settings)
        for key, value in plain.items():
            if key.startswith(("model.", "ema.")):
                # Adam divides by the gradient's size, so that rounding can move a weight by a share of a step of 0.001.
                difference = (value - saving[key]).abs().mean()
                assert difference < (1e-5 if "accumulate" in settings else 1e-6), (settings, key)


def test_running_out_of_gpu_memory_says_what_saves_how_much(data, tmp_path, monkeypatch):
    def full(self, batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")

    monkeypatch.setattr(Denoiser, "forward", full)
    vae = {"pretrained": "tiny", "latent_channels": 8}
    with pytest.raises(InputError, match=r"out of GPU memory: this training takes about .* GB as computed") as caught:
        train(tiny_preset(autoencoder=vae), [data], tmp_path / "run")
    for setting in ("gradient_checkpointing: true", "average_on_cpu: true", "accumulate: 4"):
        assert re.search(rf"{setting} saves [0-9.e-]+ GB", str(caught.value))


def test_a_run_from_before_a_setting_came_goes_on(finished, tmp_path):
    settings = json.loads((finished / "config.json").read_text())
    del settings["training"]["accumulate"]
    (tmp_path / "config.json").write_text(json.dumps(settings))
    training.claim(tmp_path, tiny_preset())
    with pytest.raises(InputError, match=r"training\.accumulate: 1 there, 2 asked"):
        training.claim(tmp_path, tiny_preset(training={"accumulate": 2}))


# ---------------------------------------------------------------------------------------------------------------------
# Bad input


def test_an_empty_folder_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: the folder is empty"):
        train(tiny_preset(), [tmp_path / "empty"], tmp_path / "run")
    with pytest.raises(InputError, match="nowhere: there is no such folder"):
        train(tiny_preset(), [tmp_path / "nowhere"], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_few_pictures_lower_the_batch(tmp_path, capsys):
    data = write_folder(tmp_path / "few", good=1, defective=1)
    train(tiny_preset(training={"batch_size": 64, "steps": 1}), [data], tmp_path / "run")
    assert "6 pictures in 2 versions: training.batch_size is lowered from 64 to 12" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "config.json").read_text())["training"]["batch_size"] == 64


def test_pictures_that_cannot_fill_a_batch_are_counted(tmp_path):
    data = write_folder(tmp_path / "few", good=1, defective=1)
    with pytest.raises(InputError, match="6 pictures in 2 versions are fewer than 16 parts of a batch"):
        train(tiny_preset(training={"batch_size": 64, "accumulate": 16}), [data], tmp_path / "run")


def test_a_run_begun_with_other_pictures_is_left_alone(tmp_path):
    one, other = (fingerprint(read_folder(write_folder(tmp_path / n, 1, 1))) for n in ("one", "other"))
    assert one == other  # the same names and bytes at another place
    Image.new("RGB", (32, 32), 7).save(next((tmp_path / "other").rglob("test/crack/*.png")))
    other = fingerprint(read_folder(tmp_path / "other"))
    training.claim(tmp_path / "run", tiny_preset(), one)
    training.claim(tmp_path / "run", tiny_preset(), one)
    with pytest.raises(InputError, match=r"run was begun with other pictures \(6 there, 6 asked\)"):
        training.claim(tmp_path / "run", tiny_preset(), other)


def test_damaged_settings_of_a_run_are_named(tmp_path):
    training.claim(tmp_path / "run", tiny_preset())
    (tmp_path / "run" / "config.json").write_text('{"name": "ti')
    with pytest.raises(InputError, match=r"config\.json is damaged"):
        training.claim(tmp_path / "run", tiny_preset())


def test_two_calls_do_not_train_in_one_folder(data, tmp_path):
    with locked(tmp_path / "elsewhere", "trains"):
        training.claim(tmp_path / "run", tiny_preset())
    with locked(tmp_path / "run", "trains"), pytest.raises(InputError, match="another process trains in"):
        train(tiny_preset(), [data], tmp_path / "run")


def test_a_log_line_that_a_kill_cut_off_is_dropped(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"stage": "a", "step": 1}\n{"stage": "a", "st')
    assert read_log(tmp_path / "log.jsonl") == [{"stage": "a", "step": 1}]


def test_a_checkpoint_of_another_model_is_named(finished, data, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    save_checkpoint(run / "checkpoints", 99, {"model.other": torch.zeros(1)}, {})
    with pytest.raises(InputError, match="holds a checkpoint of another model"):
        train_tiny(data, run)


def test_a_damaged_cache_is_named(finished, data, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    (file,) = (run / "cache").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match=r"latents-.*damaged .*: remove it"):
        train_tiny(data, run)


def test_a_run_begun_with_other_settings_is_left_alone(finished, data):
    before = contents(finished)
    with pytest.raises(InputError, match=r"other settings \(training\.steps: 12 there, 13 asked\).*another --out"):
        train(tiny_preset(training={"steps": 13}), [data], finished)
    assert contents(finished) == before


def test_what_is_no_run_is_left_alone(data, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("folder", "file"):
        with pytest.raises(InputError, match=f"{name} exists and is not a training run"):
            train(tiny_preset(), [data], tmp_path / name)
    assert (tmp_path / "file").read_text() == "mine"
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["thesis.txt"]


def test_an_empty_out_is_taken(data, tmp_path):
    training.claim(tmp_path, tiny_preset())
    training.claim(tmp_path, tiny_preset())
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


# ---------------------------------------------------------------------------------------------------------------------
# Beginning from other weights


def test_a_run_can_begin_from_another(finished, tmp_path):
    folder = write_folder(tmp_path / "data")
    (folder / "tile" / "test" / "crack").rename(folder / "tile" / "test" / "long_cut")  # one name is new
    (folder / "tile" / "ground_truth" / "crack").rename(folder / "tile" / "ground_truth" / "long_cut")
    begin = DefectDiffuPipeline.from_pretrained(finished)
    vae = begin.vae
    preset = tiny_preset(start_from=str(finished))
    pipe = building.build_pipeline(preset, vae, {"tile": ["hole", "long_cut"], "hazelnut": ["hole"]})
    for key, value in begin.transformer.state_dict().items():
        torch.testing.assert_close(pipe.transformer.state_dict()[key], value, msg=key)
    a, b = begin.encoder(["A photo of hole tile"]), pipe.encoder(["A photo of hole tile"])
    torch.testing.assert_close(a.pooled, b.pooled, atol=1e-5, rtol=0)  # the same words mean the same
    training.train(preset, [folder], tmp_path / "run")
    assert not (tmp_path / "run" / "autoencoder-checkpoints").exists()
    assert DefectDiffuPipeline.from_pretrained(tmp_path / "run").pairs["tile"] == ["hole", "long_cut"]


def test_weights_of_another_size_are_no_beginning(finished):
    preset = tiny_preset(start_from=str(finished), model={"width": 64})
    with pytest.raises(InputError, match="another size"):
        building.build_pipeline(preset, DefectDiffuPipeline.from_pretrained(finished).vae, {"tile": ["hole"]})
