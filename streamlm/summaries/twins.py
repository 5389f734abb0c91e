"""Twins that were trained with and without a sink: what they lose with fewer sinks, and where they look."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from streamlm.config import TWINS
from streamlm.records.paper import TwinsRecord
from streamlm.records.types import Record
from streamlm.summaries.main import check_comparable
from streamlm.summaries.tables import CHANGE, Row, spread


def collect_twins(records: Sequence[Record]) -> TwinsRecord:
    """Return the record of all twins, from that of each."""
    check_comparable(records)
    first = records[0]
    shared = ("model", "trained_length", "dataset", "protocol", "confidence", "environment", "contexts")
    return {
        **{key: first[key] for key in shared},  # type: ignore[typeddict-item]
        "training": first["training"]["training"],
        "shape": first["training"]["shape"],
        "parameters": first["training"]["parameters"],
        "tokens": first["tokens"],
        "twins": [
            {
                "twin": record["twin"],
                "seed": record["seed"],
                "part": record["training"]["part"],
                "training_nats": record["training"]["nll_nats"],
                "rows": record["rows"],
                "layers": record["layers"],
            }
            for record in records
        ],
    }


def seeds_of(record: Record) -> dict[str, list[Record]]:
    """Return the results of each twin, one for each seed, in the order of `TWINS`."""
    found = {twin: [result for result in record["twins"] if result["twin"] == twin] for twin in TWINS}
    return {twin: results for twin, results in found.items() if results}


def over_seeds(name: str, values: Sequence[float]) -> Row:
    """Return the mean over seeds as a column, with the lowest and the highest seed as its ends."""
    return spread(name, float(np.mean(values)), [min(values), max(values)])


def twin_sink_rows(records: Sequence[Record]) -> list[Row]:
    """Return perplexity per byte by twin and number of sinks: over seeds, and its paired change.

    The interval of the change spans the intervals of all seeds.
    """
    return [
        {"trained": TWINS[twin], "kept": f"{row['n_sink']}+{row['window_size']}"}
        | {"sinks": row["n_sink"], "window": row["window_size"]}
        | over_seeds("perplexity_per_byte", [row["common"]["perplexity"] for row in rows])
        | _change([row["common"] for row in rows])
        for record in records
        for twin, results in seeds_of(record).items()
        for rows in zip(*(result["rows"] for result in results), strict=True)
        for row in rows[:1]
    ]


def _change(seeds: Sequence[Any]) -> Row:
    lows, highs = zip(*(common[f"{CHANGE}_interval"] for common in seeds), strict=True)
    mean = float(np.mean([common[CHANGE] for common in seeds]))
    return spread("change_to_most_sinks_percent", mean, [min(lows), max(highs)])


def twin_loss_rows(records: Sequence[Record]) -> list[Row]:
    """Return the loss while training, by twin: over seeds."""
    return [
        {"trained": TWINS[twin], "steps": (i + 1) * results[0]["part"]} | over_seeds("loss_nats", losses)
        for record in records
        for twin, results in seeds_of(record).items()
        for i, losses in enumerate(zip(*(result["training_nats"] for result in results), strict=True))
    ]


def twin_map_rows(records: Sequence[Record]) -> list[Row]:
    """Return the shares of the first token and of the zero sink, by twin and layer: over seeds."""
    return [
        {"trained": TWINS[twin], "layer": layers[0]["layer"]}
        | over_seeds("first_token_percent", [100 * layer["first_token"] for layer in layers])
        | over_seeds("zero_sink_percent", [100 * layer["zero_sink"] for layer in layers])
        for record in records
        for twin, results in seeds_of(record).items()
        for layers in zip(*(result["layers"] for result in results), strict=True)
    ]
