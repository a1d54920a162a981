"""The comparison of #Param and FLOPs with the paper, which needs no artifacts."""

from __future__ import annotations

import json

from pipeline.report.paper.check import check_lines, compare_counts


def check_tables(*, as_json: bool) -> bool:
    """Print every computed #Param and FLOPs beside the printed one.

    Args:
        as_json: Whether to print JSON.

    Returns:
        Whether no figure differs from the printed one, apart from those that are listed as errata.
    """
    comparisons = compare_counts()
    if as_json:
        print(json.dumps([comparison.model_dump() for comparison in comparisons], indent=1))
    else:
        print("\n".join(check_lines(comparisons)))
    return not any(comparison.differs for comparison in comparisons)
