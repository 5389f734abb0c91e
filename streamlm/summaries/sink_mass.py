"""What sinks are worth beside how much attention they get; and the rows of the tables about sinks."""

from collections.abc import Sequence

from streamlm.records.types import Record
from streamlm.summaries.tables import CHANGE, Row, percent, with_interval


def collect_sink_mass(mass: Record, ablation: Record) -> Record:
    """Return the record of one text's sink mass with the ablation of the number of sinks on that text."""
    return {**mass, "ablation": [row for row in ablation["rows"] if row["dataset"] == mass["dataset"]]}


def sink_mass_rows(records: Sequence[Record]) -> list[Row]:
    """Return what `plot_sink_mass` draws: shares by layer and along a stream, and what sinks are worth."""
    return [row for record in records for row in (*_by_layer(record), *_along(record), *_ablation(record))]


def _by_layer(record: Record) -> list[Row]:
    """Return the share of each layer on the first token, and on the other first tokens together."""
    return [
        {"text": record["dataset"], "method": method, "layer": layer}
        | percent("share_percent", shares["share"][0], shares["share_interval"][0])
        | {"others_percent": 100 * sum(shares["share"][1:])}
        for method, layers in record["methods"].items()
        for layer, shares in enumerate(layers)
    ]


def _along(record: Record) -> list[Row]:
    along = record["along"]
    points = zip(along["tokens_seen"], along["share"], along["share_interval"], strict=True)
    return [
        {"text": record["dataset"], "method": "streaming", "layer": "all", "seen_tokens": seen}
        | percent("share_percent", share, interval)
        for seen, share, interval in points
    ]


def _ablation(record: Record) -> list[Row]:
    return [
        {"text": record["dataset"], "sinks": row["n_sink"], "capacity": row["capacity"]}
        | with_interval("change_percent", row["common"], CHANGE)
        for row in record["ablation"]
    ]


def attention_map_rows(records: Sequence[Record]) -> list[Row]:
    """Return the share of the first token in every layer, of `measure_attention_maps` records."""
    return [
        {"text": record["dataset"], "layer": layer["layer"]}
        | percent("first_token_percent", layer["first_token"], layer["first_token_interval"])
        for record in records
        for layer in record["layers"]
    ]


def sink_token_rows(records: Sequence[Record]) -> list[Row]:
    """Return the table of what sinks are, of `measure_sink_tokens` records."""
    return [
        {
            "text": record["dataset"],
            "sinks_are": row["sinks"],
            "kept": f"{row['n_sink']}+{row['window_size']}",
        }
        | {"sinks": row["n_sink"], "window": row["window_size"]}
        | with_interval("perplexity", row["common"])
        | with_interval("change_to_first_tokens_percent", None if not i else row["common"], CHANGE)
        for record in records
        for i, row in enumerate(record["rows"])
    ]
