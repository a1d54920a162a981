"""The paper's tables as printed, read from the CSV files beside this module. Imports no torch."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
TITLES = {
    "table1": "Table 1: comparison of baseline object detectors",
    "table2": "Table 2: comparison of state-of-the-art real-time object detectors",
    "table3": "Table 3: ablation of model scaling",
    "table4": "Table 4: ablation of planned RepConv in concatenation-based models",
    "table5": "Table 5: ablation of planned RepConv in residual models",
    "table6": "Table 6: ablation of the auxiliary head and its label assignment",
    "table7": "Table 7: ablation of the constraint on auxiliary labels",
    "table8": "Table 8: ablation of the partial auxiliary head",
    "table9": "Table 9: more comparison, batch 1, without NMS",
    "table10": "Table 10: settings of evaluation",
}
LABELS = {
    "params_m": "#Param (M)",
    "gflops": "FLOPs (G)",
    "fps_v100": "FPS (V100)",
    "fps": "FPS",
    "ap_val": "AP val",
    "ap50_val": "AP50 val",
    "ap75_val": "AP75 val",
    "aps_val": "APs val",
    "apm_val": "APm val",
    "apl_val": "APl val",
    "ap_test": "AP test",
    "ap50_test": "AP50 test",
    "ap75_test": "AP75 test",
    "aps_test": "APs test",
    "apm_test": "APm test",
    "apl_test": "APl test",
}
_OWN_FILES = ("table1", "table2", "table9")  # the other tables share the file ablations.csv


@dataclass(frozen=True)
class PrintedRow:
    """One row of a table.

    Attributes:
        model: The model as the paper names it.
        size: The image size in pixels.
        figures: The printed digits by quantity; empty for a dash.
        variant: The name of the variant that fills the row, if the spec alone does not identify the row.
        note: A remark on the row.
        is_external: Whether there is no spec of the model, so that only an external variant can fill the row.
    """

    model: str
    size: int | None
    figures: Mapping[str, str]
    variant: str = ""
    note: str = ""
    is_external: bool = False


@dataclass(frozen=True)
class PrintedTable:
    """One table of the paper.

    Attributes:
        name: A key of `TITLES`.
        quantities: Its columns.
        rows: Its rows in order.
    """

    name: str
    quantities: tuple[str, ...]
    rows: tuple[PrintedRow, ...]

    @property
    def title(self) -> str:
        """Its number and what it compares, such as `Table 3: ablation of model scaling`."""
        return TITLES[self.name]


@dataclass(frozen=True)
class PrintedChange:
    """One improvement row of Table 1.

    Attributes:
        new: The new model and its image size.
        old: The old model and its image size.
        figures: The changes by quantity as printed, such as `-43%`, `+0.4` or `=`.
    """

    new: tuple[str, int]
    old: tuple[str, int]
    figures: Mapping[str, str]


def printed_table(name: str) -> PrintedTable:
    """Read a table of the paper.

    Args:
        name: A key of `TITLES`.

    Returns:
        The table.
    """
    lines = read_csv(name) if name in _OWN_FILES else list(_ablation_lines(name))
    quantities = tuple(q for q in lines[0] if q in LABELS and any(line[q] for line in lines))
    return PrintedTable(name, quantities, tuple(_row(line, quantities) for line in lines))


def printed_changes() -> tuple[PrintedChange, ...]:
    """Read the improvement rows of Table 1.

    Returns:
        The rows in order.
    """
    return tuple(
        PrintedChange(
            new=(line["new"], int(line["new_size"])),
            old=(line["old"], int(line["old_size"])),
            figures={quantity: line[quantity] for quantity in line if quantity in LABELS},
        )
        for line in read_csv("table1_improvement")
    )


def value_of(printed: str) -> float:
    """Return a printed figure as a number.

    Args:
        printed: The figure; one figure of the paper has the unit G behind it.

    Returns:
        The number.
    """
    return float(printed.rstrip("G"))


def round_as(printed: str, value: float) -> str:
    """Round a number to the decimals of a printed figure.

    Args:
        printed: The figure.
        value: The number.

    Returns:
        The rounded number as text.
    """
    return f"{value:.{decimals(printed)}f}"


def decimals(printed: str) -> int:
    """Count the decimals of a printed figure.

    Args:
        printed: The figure.

    Returns:
        The number of digits behind the point.
    """
    return sum(letter.isdigit() for letter in printed.partition(".")[2])


def read_csv(name: str) -> list[dict[str, str]]:
    """Read a CSV file beside this module.

    Args:
        name: The file's name without its suffix.

    Returns:
        One mapping from column to text per line.
    """
    with (FOLDER / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _ablation_lines(name: str) -> Iterator[dict[str, str]]:
    for line in read_csv("ablations"):
        if f"table{line['table']}" == name:
            yield line | {"model": line["row"]}


def _row(line: Mapping[str, str], quantities: Sequence[str]) -> PrintedRow:
    gpu = line.get("fps_gpu", "")
    return PrintedRow(
        model=line["model"],
        size=int(line["size"]) if line["size"] else None,
        figures={quantity: line[quantity] for quantity in quantities},
        variant=line.get("variant", "") or line.get("external", ""),
        is_external=bool(line.get("external")),
        note=line.get("note", "") or ("" if gpu in ("", "V100") else f"FPS on {gpu}"),
    )
