"""What the tests of the compared methods share."""

from pathlib import Path

from defectdiffu.data.folder import Sample, read_folder

SIZES = {"channels": 4, "max_channels": 16, "width": 16}  # of StyleGAN2


def samples_of(data: Path, *defects: str) -> list[Sample]:
    """The samples of tile with these defects."""
    return [s for s in read_folder(data) if s.product == "tile" and s.defect in defects]
