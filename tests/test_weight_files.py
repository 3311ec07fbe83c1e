import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from defectdiffu import DefectDiffuPipeline, InputError


def index(**changes):
    """Change entries of model_index.json; None removes one."""

    def change(folder):
        file = folder / "model_index.json"
        values = json.loads(file.read_text()) | changes
        file.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))

    return change


def config(part, **changes):
    def change(folder):
        file = folder / part / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def text(name, content):
    return lambda folder: (folder / name).write_text(content)


def tensors(part, edit):
    def change(folder):
        (file,) = (folder / part).glob("*.safetensors")
        save_file({k: v.contiguous() for k, v in edit(load_file(file)).items()}, file, {"format": "pt"})

    return change


def first(values, edit):
    name = next(iter(values))
    return values | {name: edit(values[name])}


def replaced(name, make):
    def change(folder):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        make(path)

    return change


WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (text("model_index.json", "[1, 2]"), "model_index.json must be an object with names, not list"),
        (text("model_index.json", "{}"), "model_index.json must be an object with names"),
        (text("model_index.json", ""), "model_index.json cannot be read .it is damaged"),
        (text("model_index.json", "[" * 100_000), "model_index.json cannot be read"),
        (replaced("model_index.json", lambda p: p.mkdir()), "model_index.json cannot be read .Is a directory"),
        (index(vae=None), "vae is None, not a class of defectdiffu.autoencoder or diffusers"),
        (index(transformer=["os", "system"]), r"transformer is \['os', 'system'\], not a class of"),
        (index(transformer=["defectdiffu.model", "Nothing"]), "does not have defectdiffu.model.Nothing"),
        (index(transformer=["defectdiffu.model", "nn"]), "does not have defectdiffu.model.nn"),
        (index(vae=["diffusers", "UNet2DModel"]), "does not have diffusers.UNet2DModel"),
        (index(scheduler="DDPM"), "scheduler is 'DDPM'"),
        (index(scheduler=["diffusers", "KarrasVeScheduler"]), "unknown scheduler .*'KarrasVeScheduler'"),
        (index(scheduler=["diffusers", "UNet2DModel"]), "unknown scheduler .*'UNet2DModel'"),
        (index(tokenizer=["transformers", "Nothing"]), "Nothing is no tokenizer of transformers"),
        (index(text_encoder=["transformers", "pipeline"]), "does not have transformers.pipeline"),
        (index(w_d="strong"), "model_index.json: w_d is 'strong': it should be a valid number"),
        (index(w_p=1e30), "w_p is 1e.30: it should be less than or equal to 100"),
        (index(num_inference_steps=0.5), "num_inference_steps is 0.5"),
        (index(guidance=["x"]), "guidance is .'x'.: it should be 'double_free', "),
        (index(text_encoder=["mine", "Encoder"]), "text_encoder is .*not a class of transformers"),
        (replaced("transformer/config.json", lambda p: None), "transformer: config.json cannot be read .No such file"),
        (replaced("tokenizer", lambda p: None), "tokenizer: tokenizer_config.json cannot be read"),
        (replaced("scheduler", lambda p: p.write_text("x")), "scheduler: scheduler_config.json cannot be read"),
        (config("transformer", width=2**40), "width is 1099511627776, more than 1000000"),
        (config("transformer", background_blocks=10**5), "background_blocks is 100000, more than 512"),
        (config("text_encoder", vocab_size=2**40), "vocab_size is 1099511627776"),
        (config("transformer", width=64), r"transformer: .* has shape .*its configuration needs"),
        (config("transformer", width=33), "describes no DefectDiffuTransformer"),
        (config("transformer", trained_on=["tile"]), "trained_on must name the defects of each product"),
        (config("transformer", trained_on={"tile": [1]}), "trained_on must name the defects of each product"),
        (config("text_encoder", hidden_size=32), r"text_encoder: its configuration needs a tensor of shape"),
        (config("text_encoder", hidden_act="jump"), "describes no CLIPTextModel: 'jump'"),
        (replaced("tokenizer/tokenizer.json", lambda p: None), "weights in .* cannot be loaded .ValueError"),
        (text("tokenizer/tokenizer.json", "{"), "weights in .* cannot be loaded"),
        (config("vae", channels=64), r"vae: .* has shape .*its configuration needs"),
        (config("vae", latent_channels="many"), "describes no PatchAutoencoder"),
        (tensors("transformer", lambda v: first(v, lambda t: t[:1])), "has shape"),
        (tensors("vae", lambda v: dict(list(v.items())[1:])), r"vae lacks 1 tensor"),
        (tensors("transformer", lambda v: {k: t for k, t in v.items() if k != "final.bias"}), r"lacks 1 .*final\.bias"),
        (tensors("transformer", lambda v: v | {"surplus": torch.zeros(1)}), "has unknown 1 tensor.*surplus"),
        (tensors("text_encoder", lambda v: first(v, lambda t: t * float("nan"))), "text_encoder.*not finite numbers"),
        (tensors("transformer", lambda v: first(v, lambda t: t * float("nan"))), "transformer.*not finite numbers"),
        (replaced(WEIGHTS, lambda p: p.mkdir()), "not a regular file"),
        (replaced(WEIGHTS, lambda p: p.symlink_to("nowhere")), "not a regular file"),
        (replaced(WEIGHTS, lambda p: p.write_bytes(b"")), "damaged or cut short"),
        (replaced(WEIGHTS, lambda p: p.write_bytes(b"\xff" * 64)), "damaged or cut short"),
    ],
)
def test_bad_weights_are_one_line(copy, change, message):
    change(copy)
    with pytest.raises(InputError, match=message) as error:
        DefectDiffuPipeline.from_pretrained(copy)
    assert "\n" not in str(error.value)


def test_code_beside_the_weights_is_never_run(copy, tmp_path):
    ran = tmp_path / "ran"
    for name in ("pipeline.py", "transformer/model.py", "mine.py"):
        (copy / name).write_text(f"open({str(ran)!r}, 'w')")
    DefectDiffuPipeline.from_pretrained(copy)
    index(text_encoder=["mine", "Encoder"])(copy)
    with pytest.raises(InputError):
        DefectDiffuPipeline.from_pretrained(copy)
    assert not ran.exists()


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_a_pickle_is_refused(copy, part):
    (file,) = (copy / part).glob("*.safetensors")
    file.unlink()
    torch.save({}, copy / part / "diffusion_pytorch_model.bin")
    with pytest.raises(InputError, match=r"diffusion_pytorch_model\.bin is a pickle"):
        DefectDiffuPipeline.from_pretrained(copy)


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_truncated_weights_are_named(copy, part):
    (file,) = (copy / part).glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=f"{part}.*damaged or cut short"):
        DefectDiffuPipeline.from_pretrained(copy)


@pytest.mark.skipif(os.getuid() == 0, reason="root reads everything")
def test_no_permission_is_said(copy):
    (copy / "model_index.json").chmod(0)
    with pytest.raises(InputError, match="Permission denied"):
        DefectDiffuPipeline.from_pretrained(copy)


def test_a_file_is_not_a_folder_of_weights(tmp_path):
    file = tmp_path / "weights.safetensors"
    save_file({"a": torch.zeros(1)}, file)
    with pytest.raises(InputError, match=r"no weights .*neither a folder nor shipped"):
        DefectDiffuPipeline.from_pretrained(file)
