import errno
import resource

import pytest
import torch
from helpers import in_another_process
from safetensors import SafetensorError

from defectdiffu import InputError
from defectdiffu.files import load_tensors, save_tensors, write_atomically
from defectdiffu.training.checkpoints import (
    load_newest_checkpoint,
    load_optimizer_tensors,
    optimizer_tensors,
    save_checkpoint,
)


def state(step: int, size: int = 100) -> dict[str, torch.Tensor]:
    return {"a": torch.full((size,), float(step)), "b": torch.arange(step)}


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_is_loaded_and_the_oldest_go(tmp_path):
    assert load_newest_checkpoint(tmp_path) is None
    for step in (5, 20, 100):
        save_checkpoint(tmp_path, step, state(step), {"note": "n"})
    tensors, metadata = load_newest_checkpoint(tmp_path)
    assert metadata == {"step": 100, "note": "n"}
    assert float(tensors["a"][0]) == 100
    assert len(names(tmp_path)) == 2


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_checkpoint_is_never_picked_up(tmp_path, share):
    save_checkpoint(tmp_path, 1, state(1), {})
    save_checkpoint(tmp_path, 2, state(2), {})
    newest = tmp_path / names(tmp_path)[-1]
    content = newest.read_bytes()
    newest.write_bytes(content[: int(share * len(content))])
    with pytest.raises(SafetensorError):
        load_tensors(newest)
    assert load_newest_checkpoint(tmp_path)[1]["step"] == 1


def test_a_part_is_never_picked_up(tmp_path):
    """A temporary file of a killed process, here even a complete one."""

    class Killed(BaseException):
        pass

    def write(path):
        save_tensors(path, state(9), {"step": 9})
        path.rename(path.with_name(path.name + ".kept"))  # the clean-up that a kill would not have done
        raise Killed

    save_checkpoint(tmp_path, 1, state(1), {})
    with pytest.raises(Killed):
        write_atomically(tmp_path / "00000009.safetensors", write)
    (kept,) = [tmp_path / name for name in names(tmp_path) if name.endswith(".kept")]
    kept.rename(kept.with_suffix(""))
    assert len(names(tmp_path)) == 2
    assert load_newest_checkpoint(tmp_path)[1]["step"] == 1


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("No space left on device")]
)
def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch, error):
    save_checkpoint(tmp_path, 1, state(1), {})

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(InputError, match=r"could not write .*No space left.*free some space"):
        save_checkpoint(tmp_path, 2, state(2), {})
    with pytest.raises(InputError):  # the same name again: the old file stays
        save_checkpoint(tmp_path, 1, state(2), {})
    assert len(names(tmp_path)) == 1
    tensors, metadata = load_newest_checkpoint(tmp_path)
    assert metadata["step"] == 1
    assert float(tensors["a"][0]) == 1


def save_under_a_limit(folder, report) -> None:
    """No file may grow beyond 64 KB; runs in another process, since the limit cannot be lifted again."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
    try:
        save_checkpoint(folder, 2, state(2, size=100_000), {})
    except InputError as error:
        report.write_text(str(error))


def test_a_real_write_that_fails_leaves_what_was_there(tmp_path):
    folder, report = tmp_path / "run", tmp_path / "report"
    save_checkpoint(folder, 1, state(1), {})
    assert in_another_process(save_under_a_limit, folder, report) == 0
    assert "could not write" in report.read_text()
    assert len(names(folder)) == 1
    assert load_newest_checkpoint(folder)[1]["step"] == 1


def test_what_a_kill_left_is_cleared_away(tmp_path):
    (tmp_path / ".00000001.safetensors.123.part").write_bytes(b"half")
    save_checkpoint(tmp_path, 2, state(2), {})
    assert names(tmp_path) == ["00000002.safetensors"]


def test_an_optimiser_goes_on_from_its_tensors():
    def steps(parameters, optimizer, gradients):
        for gradient in gradients:
            for parameter, value in zip(parameters, gradient, strict=True):
                parameter.grad = value.clone()
            optimizer.step()

    gradients = torch.randn(6, 2, 4)
    ones = [torch.nn.Parameter(torch.zeros(4)) for _ in range(2)]
    first = torch.optim.AdamW(ones, 0.1)
    steps(ones, first, gradients[:3])
    twos = [torch.nn.Parameter(p.detach().clone()) for p in ones]
    groups = [{"params": twos[1:]}, {"params": twos[:1]}]
    second = torch.optim.AdamW(groups, 0.1)  # in other groups, and in another order
    load_optimizer_tensors(second, twos, {k: v.clone() for k, v in optimizer_tensors(first, ones).items()})
    steps(ones, first, gradients[3:])
    steps(twos, second, gradients[3:])
    assert all(map(torch.equal, ones, twos))
