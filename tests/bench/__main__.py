"""All benchmarks as one table of ratios, kept as JSON: python -m tests.bench [--output PATH] [--repeats N]"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from tests.bench import bench_loss, bench_nms


def main() -> None:
    """Prints each case when it is measured."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("--output", type=Path, default=Path("artifacts/bench.json"))
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(f"{'case':74s} {'plain':>10s} {'ours':>10s} {'ratio':>7s}")
    cases = []
    for bench in (bench_loss, bench_nms):
        for row in bench.rows(repeats=options.repeats):
            print(f"{row.case:74s} {row.plain * 1e3:8.1f}ms {row.ours * 1e3:8.1f}ms {row.ratio:6.1f}x", flush=True)
            cases.append({"case": row.case, "plain_s": row.plain, "ours_s": row.ours, "ratio": row.ratio})
    options.output.parent.mkdir(parents=True, exist_ok=True)
    content = {"torch": torch.__version__, "threads": torch.get_num_threads(), "cases": cases}
    options.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"kept in {options.output}")


if __name__ == "__main__":
    main()
