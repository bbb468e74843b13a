"""tools/adapter_table.py, on the records of a study."""

from tools.adapter_table import Cost, table

CLAIMED = {"value": -0.05, "over_images": [-0.08, -0.02], "over_seeds": [-0.09, -0.01], "verdict": "lower"}
OPEN = CLAIMED | {"value": 0.02, "over_images": [-0.01, 0.05], "verdict": "no difference can be claimed"}


def test_a_table_shows_costs_beside_those_of_the_baseline_and_claims_in_bold():
    scores = [
        {"setting": "full", "x": 300, "mean": 0.5},
        {"setting": "few", "x": 300, "mean": 0.52, "minus_baseline": OPEN},
        {"setting": "full", "x": 900, "mean": 0.7},
        {"setting": "few", "x": 900, "mean": 0.65, "minus_baseline": CLAIMED},
    ]
    lines = table(scores, {"full": Cost(1000, 1000, 8000.0), "few": Cost(20, 1020, 2000.0)}, "full")
    assert lines[0] == "| setting | trained weights | share | memory beyond weights | with 300 | with 900 |"
    assert lines[2:] == [
        "| full | 1,000 | 100.00% | 1.00 of full | 0.500 | 0.700 |",
        "| few | 20 | 1.96% | 0.25 of full | 0.520, +0.020 (-0.010 to +0.050) | 0.650, **-0.050** (-0.080 to -0.020) |",
    ]
