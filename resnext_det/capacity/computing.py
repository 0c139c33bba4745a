"""How this machine computes convolutions soonest, as far as networks have met them."""

from ..machine import cache_folder
from ..models.measured import PARTS, MeasuredRegrouping, rows
from .table import Column, Table


def regrouping_table() -> Table:
    """What MODEL.REGROUP "auto" has measured and chosen here, a row a layer's shape."""
    measured = MeasuredRegrouping(cache_folder())
    return Table(
        title=f"Regrouping, measured and kept in {measured.path}",
        columns=(Column("layer"), *(Column(f"{part}, ms") for part in PARTS)),
        rows=tuple(rows(measured.known)),
        notes=(
            '"4: 1.04 of 1.98" is four groups as one, beside the plain convolution\'s time; "-" is '
            "the plain convolution, where nothing was clearly faster",
        ),
    )
