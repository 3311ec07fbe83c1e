"""The command line as a user sees it: what it prints, what it writes, its exit codes."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
import typer
from helpers import tiny_preset, write_folder
from PIL import Image

from defectdiffu import DefectDiffuPipeline, DefectDiffuTransformer, __version__, cli

ABLATIONS = ["--data", "DATA", "--val", "DATA", "--json", "record.json"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Trained by the command itself: a run's folder is what `generate` takes."""
    folder = tmp_path_factory.mktemp("cli")
    preset = tiny_preset(training={"steps": 4}, autoencoder={"steps": 4})
    (folder / "preset.json").write_text(json.dumps(preset.to_dict()))
    data = write_folder(folder / "data")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        arguments = ["--preset", folder / "preset.json", "--data", data, "--out", folder / "run"]
        patch.setattr(sys, "argv", ["defectdiffu", "train", *map(str, arguments)])
        cli.main()
    assert not stop.value.code
    return folder


def test_a_run_generates_good_images_that_pass_the_check(run, weights, tmp_path):
    code, out, _ = run("generate", "--weights", weights / "run", "--product", "tile", "--num", 2, "--out", tmp_path)
    assert code == 0
    assert "2 of 2 pairs" in out
    assert len(list((tmp_path / "tile").glob("*/good/*.png"))) == 2
    code, out, err = run("data", "check", tmp_path)
    assert (code, out) == (0, "")
    assert "0 problem(s)" in err


def test_the_version_is_printed(run):
    assert run("--version") == (0, f"defectdiffu {__version__}\n", "")


def test_help_says_what_the_program_does_and_every_option_has_help(run):
    code, out, _ = run("--help")
    assert code == 0
    assert "generate defect images with their masks" in " ".join(out.split())

    def options(command, path):
        for name, inner in getattr(command, "commands", {}).items():
            yield from options(inner, [*path, name])
        for parameter in command.params:
            if parameter.param_type_name == "option":
                yield " ".join([*path, parameter.name]), parameter.help

    missing = [name for name, text in options(typer.main.get_command(cli.app), []) if not text]
    assert not missing


def interrupt(rendering: psutil.Process) -> None:
    os.killpg(rendering.pid, signal.SIGINT)  # as a terminal does: to all of its processes


def kill_a_worker(rendering: psutil.Process) -> None:
    next(child for child in rendering.children() if "spawn_main" in " ".join(child.cmdline())).kill()


def all_end(processes: list[psutil.Process], seconds: int = 60) -> bool:
    """Whether they end in time; an orphan may stay in the list of processes after its end."""

    def runs(process: psutil.Process) -> bool:
        try:
            return process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    deadline = time.monotonic() + seconds
    while any(map(runs, processes)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not any(map(runs, processes))


STOPPED = "defectdiffu: stopped; what is finished stays, and the same command resumes"
KILLED = "defectdiffu: a worker was killed: run the same again, with fewer workers if there is too little memory"


@pytest.mark.parametrize(
    ("workers", "stop", "code", "message"),
    [(1, interrupt, 130, STOPPED), (2, interrupt, 130, STOPPED), (2, kill_a_worker, 2, KILLED)],
)
def test_a_stopped_rendering_ends_with_one_line_and_resumes(run, tmp_path, workers, stop, code, message):
    out = tmp_path / "out"
    arguments = ["data", "render", out, "--products", "screw", "--size", 32, "--per-pair", 2, "--good", 40]
    arguments = [*map(str, arguments), "--workers", str(workers)]
    process = psutil.Popen(
        [sys.executable, "-m", "defectdiffu", *arguments], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not list(out.rglob("*.png")):
        assert process.poll() is None
    children = process.children()
    stop(process)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert err.splitlines()[-1] == message
    assert "Traceback" not in err
    assert all_end(children)
    assert run(*arguments)[0] == 0
    files = [f for f in out.rglob("*") if f.is_file()]
    assert len(files) == 40 + 2 * 5 * 2 and {f.suffix for f in files} == {".png"}


def test_workers_end_when_the_command_is_killed(tmp_path):
    arguments = [sys.executable, "-m", "defectdiffu", "data", "render", str(tmp_path / "out"), "--workers", "2"]
    process = psutil.Popen(arguments, stderr=subprocess.DEVNULL)
    while not list(tmp_path.rglob("*.png")):
        assert process.poll() is None
    children = process.children()
    process.kill()
    process.wait()
    assert children and all_end(children)


def test_names_are_printed_safely(run, tmp_path):
    code, _, err = run("generate", "--product", "a\nb\x1b[31m", "--out", tmp_path / "out")
    assert code == 2
    assert len(err.splitlines()) == 1 and "\x1b" not in err


def test_pairs_are_generated_in_little_memory(run, weights, tmp_path):
    arguments = ["generate", "--weights", weights / "run", "--product", "tile", "--num", 3, "--out", tmp_path / "out"]
    code, out, _ = run(*arguments, "--batch-size", 2, "--full-precision", "--tiling")
    assert code == 0
    assert "3 of 3 pairs" in out


def test_running_out_of_gpu_memory_is_one_line_and_leaves_nothing(run, weights, tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")

    monkeypatch.setattr(DefectDiffuTransformer, "background", full)
    code, out, err = run("generate", "--weights", weights / "run", "--product", "tile", "--out", tmp_path / "out")
    line = err.strip().splitlines()[-1]
    assert (code, out) == (2, "")
    assert line.startswith("defectdiffu: out of GPU memory: sampling 4 at a time takes about ")
    assert "(--batch-size 1) saves " in line
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_the_same_training_command_resumes(run, weights):
    arguments = ["train", "--preset", weights / "preset.json", "--data", weights / "data"]
    before = (weights / "run" / "checkpoints" / "00000004.safetensors").stat().st_mtime_ns
    code, out, _ = run(*arguments, "--out", weights / "run")
    assert code == 0
    assert out.strip() == str(weights / "run")
    assert (weights / "run" / "checkpoints" / "00000004.safetensors").stat().st_mtime_ns == before


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(run, weights, tmp_path):
    arguments = ["train", "--preset", weights / "preset.json", "--data", weights / "data", "--out", tmp_path / "run"]
    code, out, _ = run(*arguments, "--steps", 3, "--dry-run")
    assert code == 0
    plan = json.loads(out)
    assert plan["counts"] == {p: {"crack": 3, "good": 4, "hole": 3} for p in ("hazelnut", "tile")}
    trained = DefectDiffuPipeline.from_pretrained(weights / "run")
    assert plan["parameters"]["transformer"] == trained.transformer.num_parameters()
    assert plan["parameters"]["autoencoder"] == trained.vae.num_parameters()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "--product", "tile", "--defect", "crak"], "unknown defect 'crak': did you mean crack?"),
        (
            ["generate", "--product", "hazlenut", "--defect", "crack"],
            "unknown product 'hazlenut': did you mean hazelnut?",
        ),
        (
            ["generate", "--product", "tile", "--guidance", "double"],
            "unknown guidance 'double': did you mean double_free?",
        ),
        (["train", "--preset", "tinny", "--data", "DATA"], "unknown preset 'tinny': did you mean tiny?"),
        (["train", "--preset", "tiny", "--data", "NOWHERE"], "NOWHERE"),
        (["evaluate", "ablations", *ABLATIONS, "--seeds", "0;1"], "seeds must be comma-separated whole numbers"),
        (["evaluate", "ablations", *ABLATIONS, "--variants", "one promt"], "unknown variant 'one promt'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run, weights, tmp_path, arguments, message):
    given = ["--weights", weights / "run"] if arguments[0] == "generate" else []
    arguments = [weights / "data" if a == "DATA" else a for a in arguments]
    code, out, err = run(*arguments, *given, "--out", tmp_path / "out")
    line = err.strip().splitlines()[-1]
    assert code == 2
    assert out == ""
    assert line.startswith("defectdiffu: ")
    assert message in line
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generat"], "No such command 'generat'. Did you mean 'generate'?"),
        (["generate", "--wd", 2], "No such option: --wd"),
        (["generate", "--product", "tile", "--out", "OUT", "--seed", -1], "'--seed'"),
        (["data", "check"], "folder"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(run, arguments, message):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("defectdiffu: ") and message.lower() in err.lower() and len(err.splitlines()) == 1


def test_a_group_alone_prints_its_help(run):
    code, out, err = run("data")
    assert code == 2 and "convert" in out + err and "defectdiffu: " not in err


def test_the_check_lists_every_problem_and_exits_with_1(run, tmp_path):
    folder = write_folder(tmp_path / "data", good=1, defective=2)
    (folder / "tile" / "ground_truth" / "crack" / "000_mask.png").unlink()
    Image.new("L", (32, 32)).save(folder / "tile" / "ground_truth" / "hole" / "001_mask.png")
    code, out, err = run("data", "check", folder)
    assert code == 1
    assert len(out.splitlines()) == 2
    assert "000.png" in out
    assert "001_mask.png" in out
    assert "2 problem(s)" in err


def test_warnings_are_listed_by_the_check_and_counted_by_training(run, weights, tmp_path):
    folder = write_folder(tmp_path / "data")
    mask = folder / "tile" / "ground_truth" / "crack" / "000_mask.png"
    Image.eval(Image.open(mask), lambda value: 255 - value).save(mask)
    code, out, err = run("data", "check", folder, "--size", 32)
    assert code == 0
    assert out.startswith(f"warning: {mask}: it marks 97%") and len(out.splitlines()) == 1
    assert "0 problem(s), 1 warning(s)" in err
    arguments = ["--preset", weights / "preset.json", "--data", folder, "--out", tmp_path / "run", "--dry-run"]
    code, out, err = run("train", *arguments)
    assert code == 0
    assert f"warning: mask of most of the picture (1), such as {mask}: it marks" in err


def test_a_folder_of_ones_own_is_converted_and_tiled(run, tmp_path):
    theirs = write_folder(tmp_path / "theirs", good=1, defective=1)
    (theirs / "tile" / "train" / "good").rename(theirs / "tile" / "train" / "OK")
    assert run("data", "convert", "visa", theirs, tmp_path / "out", "--invert")[0] == 2
    code, out, _ = run("data", "convert", "folder", theirs, tmp_path / "ours")
    assert code == 0
    assert json.loads(out)["pictures"]["tile"] == {"crack": 1, "good": 1, "hole": 1}
    code, out, _ = run("data", "tile", tmp_path / "ours", tmp_path / "tiles", "--size", 16, "--overlap", 4, "--good", 3)
    assert code == 0
    assert json.loads(out)["tiles"]["tile"]["good"] == 3
    assert run("data", "check", tmp_path / "tiles", "--size", 16)[0] == 0


def test_rendering_writes_a_set_that_passes_the_check(run, tmp_path):
    arguments = ["--products", "pill,tile", "--defects", "crack", "--per-pair", 1, "--size", 32]
    code, out, _ = run("data", "render", tmp_path / "set", *arguments)
    assert code == 0
    assert out.strip() == str(tmp_path / "set")
    assert run("data", "check", tmp_path / "set")[0] == 0


def test_the_benchmark_writes_its_json(run, weights, tmp_path):
    file = tmp_path / "speed.json"
    code, out, _ = run("benchmark", "--preset", weights / "preset.json", "--repeats", 1, "--json", file)
    assert code == 0
    assert json.loads(out) == json.loads(file.read_text())
    assert json.loads(out)["training_samples_per_second"] > 0
