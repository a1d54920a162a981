"""Every ablation table of the paper has its experiment, at paper size and at a size for CPUs, that fills its rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.experiment import Experiment, load_experiment
from pipeline.report.paper.printed import printed_table
from yolov7.spec.graph import plan_rep_convs

FOLDER = Path(__file__).parents[2] / "experiments"
TABLES = ("table3", "table4", "table5", "table6", "table7", "table8")


def experiments(pattern: str) -> list[Experiment]:
    return [load_experiment(path) for path in sorted(FOLDER.glob(f"{pattern}.yaml"))]


def printed_variants(table: str) -> set[str]:
    return {row.variant for row in printed_table(table).rows if row.variant}


@pytest.mark.parametrize("table", TABLES)
def test_at_paper_size_every_printed_row_has_its_variant(table: str) -> None:
    found = {name for params in experiments(f"{table}*") for name in params.variants}
    assert printed_variants(table) <= found
    assert all(name.startswith(f"{table}-") for name in found)


@pytest.mark.parametrize("table", TABLES)
def test_for_cpus_the_same_comparison_on_embedded_data_with_several_seeds(table: str) -> None:
    (params,) = experiments(f"demo-{table}")
    assert params.data.format == "synthetic"
    assert len(params.seeds) >= 3
    wanted = {name for name in printed_variants(table) if not name.startswith("table5-w6")}
    assert wanted <= set(params.variants)
    compared = {
        (variant.spec.model_dump_json(), variant.train.model_dump_json()) for name, variant in params.variants.items()
    }
    assert len(compared) == len(params.variants)


@pytest.mark.parametrize("name", ["table6", "demo-table6"])
def test_the_variants_of_table_6_differ_in_what_the_auxiliary_head_learns_from(name: str) -> None:
    (params,) = experiments(name)
    heads = {key: bool(variant.spec.head.taps) for key, variant in params.variants.items()}
    assert heads.pop("table6-base") is False
    assert all(heads.values())
    guidance = {key: params.variant(key).train.loss.auxiliary for key in heads}
    assert guidance == {
        "table6-independent": "independent",
        "table6-lead": "lead_guided",
        "table6-coarse-to-fine": "coarse_to_fine",
    }


@pytest.mark.parametrize("name", ["table8", "demo-table8"])
def test_the_partial_head_of_table_8_taps_single_branches(name: str) -> None:
    (params,) = experiments(name)
    taps = {key: variant.spec.head.taps for key, variant in params.variants.items()}
    assert taps["table8-base"] == ()
    assert not any("." in tap for tap in taps["table8-aux"])
    assert taps["table8-partial"][:2] == ("n3.2", "n4.2")


@pytest.mark.parametrize("name", ["table5", "table5-csp", "demo-table5"])
def test_rep_convs_of_table_5_meet_an_addition_unless_the_dark_block_is_reversed(name: str) -> None:
    (params,) = experiments(name)
    for key, variant in params.variants.items():
        places = [place for row in plan_rep_convs(variant.spec).values() for place in row]
        assert bool(places) == key.endswith(("-repcsp", "-reprcsp"))
        assert all(place.identity == key.endswith("-reprcsp") for place in places)
