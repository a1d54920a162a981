"""The paper's tables as they are printed, read from the CSV files beside this module. Imports no torch."""

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
_OWN_FILES = ("table1", "table2", "table9")  # the others share one


@dataclass(frozen=True)
class PrintedRow:
    """One row of a table. `figures`: by quantity, the very digits printed, empty for a dash."""

    model: str
    size: int | None  # pixels
    figures: Mapping[str, str]
    variant: str = ""  # the name of the variant that fills it where its spec alone does not tell
    note: str = ""


@dataclass(frozen=True)
class PrintedTable:
    """One table of the paper."""

    name: str
    quantities: tuple[str, ...]
    rows: tuple[PrintedRow, ...]

    @property
    def title(self) -> str:
        """Its number and what it compares."""
        return TITLES[self.name]


@dataclass(frozen=True)
class PrintedChange:
    """One of Table 1's improvement rows; `figures`: by quantity, as printed (`-43%`, `+0.4`, `=`)."""

    new: tuple[str, int]  # model and size
    old: tuple[str, int]
    figures: Mapping[str, str]


def printed_table(name: str) -> PrintedTable:
    """The table of this name, a key of `TITLES`."""
    lines = read_csv(name) if name in _OWN_FILES else list(_ablation_lines(name))
    quantities = tuple(q for q in lines[0] if q in LABELS and any(line[q] for line in lines))
    return PrintedTable(name, quantities, tuple(_row(line, quantities) for line in lines))


def printed_changes() -> tuple[PrintedChange, ...]:
    """Table 1's improvement rows, in order."""
    return tuple(
        PrintedChange(
            new=(line["new"], int(line["new_size"])),
            old=(line["old"], int(line["old_size"])),
            figures={quantity: line[quantity] for quantity in line if quantity in LABELS},
        )
        for line in read_csv("table1_improvement")
    )


def value_of(printed: str) -> float:
    """The number that is printed, without the unit that one of them has."""
    return float(printed.rstrip("G"))


def round_as(printed: str, value: float) -> str:
    """The value with as many decimals as what is printed."""
    return f"{value:.{decimals(printed)}f}"


def decimals(printed: str) -> int:
    """Digits behind the point."""
    return sum(letter.isdigit() for letter in printed.partition(".")[2])


def read_csv(name: str) -> list[dict[str, str]]:
    """The lines of a file beside this module."""
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
        variant=line.get("variant", ""),
        note=line.get("note", "") or ("" if gpu in ("", "V100") else f"FPS on {gpu}"),
    )
