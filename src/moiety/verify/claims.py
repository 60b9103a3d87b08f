"""Claims: what somebody says a deployment achieves, read from a YAML file, to be compared with what is computed."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Literal

from pydantic import Field

from moiety.package_data import catalog_names, catalog_text
from moiety.records import Record
from moiety.verify.interval import Interval
from moiety.verify.quantities import QUANTITIES, Aspect
from moiety.yaml_text import Fields

VariantName = Literal["baseline", "original", "enhanced"]
VARIANTS: tuple[VariantName, ...] = ("baseline", "original", "enhanced")
Bound = Literal["equal", "at_most", "at_least"]
Means = Literal["placement", "all_to_all", "checkpointing", "everything"]
MEANS: tuple[Means, ...] = ("placement", "all_to_all", "checkpointing", "everything")
BOUNDS: tuple[Bound, ...] = ("equal", "at_most", "at_least")

FILE_FIELDS = ("name", "model", "cluster", "workload", "strategy", "source", "claims")
CLAIM_FIELDS = (
    "id", "quantity", "value", "unit", "precision", "bound", "of", "over", "tier", "by", "text", "stated_in"
)  # fmt: skip
_LARGEST = 1e30


class Claim(Record):
    """One figure, in the unit it was written in, and what it is a figure of."""

    id: Annotated[str, Field(min_length=1, max_length=100)]
    quantity: str
    value: float
    unit: str
    precision: Annotated[float, Field(ge=0)]
    """How far the true value may lie from the written one, in the same unit: half of its last digit, 0 for counts."""
    bound: Bound = "equal"
    of: VariantName | None = None
    over: VariantName | None = None
    """The variant it is compared with."""
    tier: str | None = None
    by: Means | None = None
    """What is said to bring it about."""
    text: str
    stated_in: tuple[str, ...] = ()

    @property
    def scale(self) -> float:
        """Size of the unit in base units."""
        return QUANTITIES[self.quantity].units[self.unit]

    @property
    def interval(self) -> Interval:
        """The values in base units that the figure may stand for."""
        return Interval(self.value - self.precision, self.value, self.value + self.precision) * self.scale

    @property
    def number(self) -> float:
        """The value in base units."""
        return self.value * self.scale

    @property
    def shown(self) -> str:
        """The figure as people write it."""
        sign = {"equal": "", "at_most": "at most ", "at_least": "at least "}[self.bound]
        gap = "" if self.unit in {"%", "x"} else " "
        return f"{sign}{self.value:,.12g}{gap}{self.unit}"

    def in_unit(self, number: float) -> float:
        """Return a number in base units in the claim's own unit."""
        return number / self.scale


class ClaimSet(Record):
    """The claims about one deployment. Names that are given must be those of the plan they are compared with."""

    name: str
    model: str | None = None
    cluster: str | None = None
    workload: str | None = None
    strategy: str
    """The strategy that the claims are about, e.g. `ep64_tp2`."""
    source: str = ""
    claims: Annotated[tuple[Claim, ...], Field(min_length=1)]


def catalog_claims() -> tuple[str, ...]:
    """Return the names of the claim sets of the catalogue, sorted."""
    return catalog_names("claims")


def load_claims(name: str) -> ClaimSet:
    """Return a claim set of the catalogue; `name` is one of `catalog_claims()`."""
    return read_claims(catalog_text("claims", name), source=f"catalogue claims {name}")


def claims_about(model: str, cluster: str, workload: str) -> ClaimSet | None:
    """Return the catalogue's claim set about just this model, cluster and workload; None: there is none."""
    for name in catalog_claims():
        claims = load_claims(name)
        if (claims.model, claims.cluster, claims.workload) == (model, cluster, workload):
            return claims
    return None


def read_claims(text: str, *, source: str) -> ClaimSet:
    """Return the claims of a YAML text; raise InputError with file, line and path of the first field that is wrong."""
    fields = Fields.parse(text, source=source, what="claims", known=FILE_FIELDS)
    entries = fields.mappings("claims", CLAIM_FIELDS)
    claims = tuple(_claim(entry) for entry in entries)
    seen: set[str] = set()
    for entry, claim in zip(entries, claims, strict=True):
        if claim.id in seen:
            raise entry.error("id", "is given twice", "give every claim an id of its own")
        seen.add(claim.id)
    return ClaimSet(
        name=fields.text("name"),
        model=fields.text("model") if fields.has("model") else None,
        cluster=fields.text("cluster") if fields.has("cluster") else None,
        workload=fields.text("workload") if fields.has("workload") else None,
        strategy=fields.text("strategy"),
        source=fields.text("source", ""),
        claims=claims,
    )


def written_precision(value: float) -> float:
    """Return half of the last digit that a number is written with: 0.05 for 12.3, 0.5 for 4500."""
    exponent = Decimal(repr(float(value))).normalize().as_tuple().exponent
    return 0.5 * 10.0 ** min(exponent if isinstance(exponent, int) else 0, 0)


def _claim(entry: Fields) -> Claim:
    name = entry.choice("quantity", tuple(QUANTITIES))
    quantity = QUANTITIES[name]
    unit = entry.choice("unit", tuple(quantity.units))
    value = entry.number("value", -_LARGEST, _LARGEST)
    if value < 0 and not name.endswith(("_change", "_reduction")):
        raise entry.error("value", "must not be negative")
    for aspect in ("of", "over", "tier", "by"):
        _check_aspect(entry, name, aspect)
    return entry.build(
        Claim,
        {
            "id": entry.text("id"),
            "quantity": name,
            "value": value,
            "unit": unit,
            "precision": entry.number("precision", 0, _LARGEST, 0.0 if quantity.is_count else written_precision(value)),
            "bound": entry.choice("bound", BOUNDS) if entry.has("bound") else "equal",
            "of": entry.choice("of", VARIANTS) if entry.has("of") else None,
            "over": entry.choice("over", VARIANTS) if entry.has("over") else None,
            "tier": entry.text("tier") if entry.has("tier") else None,
            "by": entry.choice("by", MEANS) if entry.has("by") else None,
            "text": entry.text("text"),
            "stated_in": entry.texts("stated_in"),
        },
    )


def _check_aspect(entry: Fields, name: str, aspect: Aspect) -> None:
    quantity = QUANTITIES[name]
    if aspect in quantity.needs and not entry.has(aspect):
        raise entry.error(aspect, f"is missing; a claim about {name} needs it")
    if entry.has(aspect) and aspect not in quantity.needs + quantity.may:
        raise entry.error(aspect, f"says nothing about {name}", "leave it out")
