"""The catalogue of models: `config.json` files of published models that come with the package, numbers only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.errors import InputError, nearest
from moiety.model.reader import read_model
from moiety.package_data import catalog_names, catalog_text

if TYPE_CHECKING:
    from moiety.model.model import Model


def catalog_models() -> tuple[str, ...]:
    """Return the names of the models in the catalogue, sorted."""
    return catalog_names("models", ".json")


def catalog_model_text(name: str) -> str:
    """Return the JSON file of a catalogue model, to show or to copy; raise InputError for an unknown name."""
    known = catalog_models()
    if name not in known:
        raise InputError("is not a model of the catalogue", field="model", value=name, remedy=nearest(name, known))
    return catalog_text("models", name, ".json")


def load_catalog_model(name: str) -> Model:
    """Return a model of the catalogue; raise InputError for an unknown name."""
    return read_model(catalog_model_text(name), name=name, source=f"catalogue model {name}")
