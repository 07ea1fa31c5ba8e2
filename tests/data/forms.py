"""The same images in every form: folder, CSV, parquet, tar shards, zip."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path

from deepcait.data import open_folder

SPLITS = ("train", "test")


def add_to_tar(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def write_parquet(path: Path, images: list[tuple[str, bytes]], labels: list, names: list[str] | None, group: int = 100):
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"img": [{"bytes": data, "path": name} for name, data in images], "label": labels})
    if names is not None:
        features = {"img": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, path, row_group_size=group)


def write_forms(root: Path, out: Path, *, per_shard: int = 150) -> dict[str, str]:
    """Write the class folders below root in all forms; returns the data SPEC of each."""
    out.mkdir()
    rows = []
    (out / "parquet").mkdir()
    (out / "tar").mkdir()
    with zipfile.ZipFile(out / "pictures.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        for split in SPLITS:
            (out / split).symlink_to(root / split)
            source = open_folder(root, split)
            images = [(name, source.read(index).data) for index, name in enumerate(source.names)]
            write_parquet(
                out / "parquet" / f"{split}-00000-of-00001.parquet", images, source.labels, source.classes, group=100
            )
            for start in range(0, len(images), per_shard):
                with tarfile.open(out / "tar" / f"{split}-{start // per_shard:03d}.tar", "w") as shard:
                    for (name, data), label in zip(
                        images[start : start + per_shard], source.labels[start : start + per_shard], strict=True
                    ):
                        add_to_tar(shard, name, data)
                        add_to_tar(shard, f"{name.removesuffix('.png')}.cls", str(label).encode())
            for name, data in images:
                packed.writestr(f"{split}/{name}", data)
                rows.append(f"{split}/{name},{name.split('/')[0]},{split}")
    # Another order than the folder's, so that nothing rests on it.
    (out / "pictures.csv").write_text("path,label,split\n" + "\n".join(reversed(rows)) + "\n")
    return {
        "folder": str(root),
        "csv": str(out / "pictures.csv"),
        "parquet": str(out / "parquet"),
        "tar": str(out / "tar"),
        "zip": str(out / "pictures.zip"),
    }
