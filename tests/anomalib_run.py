"""Trains a model of anomalib for one epoch on real and generated good pictures, and tests it on the real ones.

Not collected by pytest; needs `pip install "defectdiffu[anomalib]"`::

    defectdiffu data render runs/real --products hazelnut --size 64
    defectdiffu generate --product hazelnut --num 50 --out runs/generated
    python tests/anomalib_run.py runs/real runs/generated hazelnut

Both folders are read as anomalib's own `MVTecAD` reads MVTec AD. The backbone is not pretrained, so that nothing
is downloaded: the scores say that the folders fit, not how good a detector can be.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from anomalib.data import MVTecAD
from anomalib.engine import Engine
from anomalib.models import Padim


def join(real: Path, generated: Path, joined: Path) -> None:
    """Copy a product's real folder to `joined`, with the generated good pictures among those to train on."""
    shutil.copytree(real, joined)
    for picture in sorted((generated / "train" / "good").iterdir()):
        shutil.copyfile(picture, joined / "train" / "good" / f"generated_{picture.name}")


def run(real: Path, generated: Path, product: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        join(real / product, generated / product, root / "set" / product)
        data = MVTecAD(root=root / "set", category=product, train_batch_size=8, eval_batch_size=8, num_workers=0)
        data.setup()
        print(f"{len(data.train_data)} pictures to train on, {len(data.test_data)} to test on")
        engine = Engine(max_epochs=1, default_root_dir=root / "runs")
        model = Padim(pre_trained=False)
        engine.fit(model=model, datamodule=data)
        print(engine.test(model=model, datamodule=data))


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
