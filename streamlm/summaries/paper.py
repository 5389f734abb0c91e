"""The page that sets every table and figure of the paper beside ours, by its number."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from streamlm.config import SHARE_QUERIES
from streamlm.records.types import Record
from streamlm.summaries.escape import escape_markdown
from streamlm.summaries.main import ablation_rows, describe_setting
from streamlm.summaries.positions import position_summary
from streamlm.summaries.sink_mass import sink_token_rows
from streamlm.summaries.tables import Row, as_markdown
from streamlm.summaries.tasks import stream_eval_rows
from streamlm.summaries.twins import seeds_of, twin_sink_rows

SCALED, MISSING = "scaled down", "not here"
Records = Mapping[str, Sequence[Record]]  # by the name of what they are about


@dataclass(frozen=True, kw_only=True)
class Item:
    """One table or figure of the paper, and what stands for it here."""

    number: str
    shows: str
    status: str
    why: str  # what is smaller, or what stands in the way; {numbers} are filled in by `_facts`
    figure: str | None = None  # of ours
    records: str | None = None  # what it is about, if that is not named as the figure
    table: Callable[[Records], list[Row]] | None = None  # of ours
    theirs: list[Row] = field(default_factory=list)  # the numbers in the paper


def _row(model: str, columns: str, *perplexities: float) -> Row:
    return {"model": model, **dict(zip(columns.split(), map("{:.2f}".format, perplexities), strict=True))}


def _ablation(name: str) -> Callable[[Records], list[Row]]:
    """Return the table of one of the two ablations."""
    return lambda records: ablation_rows(records[name])


TRAINING = (
    "{twins} of {parameters} parameters that read bytes, {steps} steps each and {seeds} seeds, instead of "
    "models of 160 million on the Pile"
)
ASKED = "{model} instead of Llama-2-7B models for instructions, and {asked} questions at each distance"

# Numbers of the paper are those of arXiv:2309.17453v4.
ITEMS = (
    Item(
        number="Figure 1",
        shows="four ways to keep a cache: what a query sees, the cost, a perplexity",
        status=SCALED,
        why="{model} instead of Llama-2-13B, and texts of {tokens} tokens",
        figure="schemes",
    ),
    Item(
        number="Figure 2",
        shows="mean attention logits over 256 sentences of 16 tokens",
        status=SCALED,
        why="{model} instead of Llama-2-7B, and {sentences} sentences of {sentence_tokens} tokens of each "
        "text. Weights are shown as well",
        figure="attention_maps",
    ),
    Item(
        number="Table 1",
        shows="line feeds in the place of the first four tokens",
        status=SCALED,
        why="{model} instead of Llama-2-13B, and {tokens} tokens of each text instead of 65,000 of a book. "
        "Random tokens and BOS are tried as well",
        figure="sink_tokens",
        table=lambda records: sink_token_rows(records["sink_tokens"]),
        theirs=[
            {"kept": "0+1024", "sinks_are": "none", "perplexity": "5158.07"},
            {"kept": "4+1020", "sinks_are": "first tokens", "perplexity": "5.40"},
            {"kept": "4+1020", "sinks_are": "line feeds", "perplexity": "5.60"},
        ],
    ),
    Item(
        number="Figure 3",
        shows="log perplexity of four methods over 20,000 tokens",
        status=SCALED,
        why="{model} instead of several of 7 billion parameters and more, and {long_tokens} tokens of each "
        "text, with intervals. `paper.models` adds models",
        figure="methods_along",
    ),
    Item(
        number="Table 2",
        shows="the number of sinks",
        status=SCALED,
        why="{model} instead of the four below, and {tokens} tokens of each text instead of 400,000",
        figure="ablation_n_sink",
        table=_ablation("ablation_n_sink"),
        theirs=[
            _row("Falcon-7B, 2,048 tokens", "0 1 2 4 8", 17.90, 12.12, 12.12, 12.12, 12.12),
            _row("MPT-7B, 2,048 tokens", "0 1 2 4 8", 460.29, 14.99, 15.00, 14.99, 14.98),
            _row("Pythia-12B, 2,048 tokens", "0 1 2 4 8", 21.62, 11.95, 12.09, 12.09, 12.02),
            _row("Llama-2-7B, 4,096 tokens", "0 1 2 4 8", 3359.95, 11.88, 10.51, 9.59, 9.54),
        ],
    ),
    Item(
        number="Figure 4",
        shows="the cache and the positions in it (a drawing)",
        status=SCALED,
        why="The drawing is in [concepts](../docs/concepts.md). What the paper claims with it, that "
        "positions in the cache are to be used and not those in the text, is measured: nats of positions in "
        "the text minus those in the cache, with the same tokens seen",
        figure="positions",
        table=lambda records: position_summary(records["positions"]),
    ),
    Item(
        number="Table 3",
        shows="models trained as usual, with a zero sink, and with a learnable sink token",
        status=SCALED,
        why=TRAINING + ". Perplexities are per byte, {twin_capacity} bytes are kept instead of 1,024 tokens",
        figure="twin_sinks",
        records="twins",
        table=lambda records: twin_sink_rows(records["twins"]),
        theirs=[
            _row("as usual", "0+1024 1+1023 2+1022 4+1020", 27.87, 18.49, 18.05, 18.05),
            _row("zero sink", "0+1024 1+1023 2+1022 4+1020", 29214, 19.90, 18.27, 18.01),
            _row("learnable sink token", "0+1024 1+1023 2+1022 4+1020", 1235, 18.01, 18.01, 18.02),
        ],
    ),
    Item(
        number="Figure 5",
        shows="perplexity over four million tokens",
        status=SCALED,
        why="{model} instead of ten of 2.8 to 70 billion parameters, and {long_tokens} tokens of each text; "
        "`long_stream.max_eval_tokens` takes millions",
        figure="long_stream",
    ),
    Item(
        number="Figure 6",
        shows="their losses while trained",
        status=SCALED,
        why=TRAINING,
        figure="twin_losses",
        records="twins",
    ),
    Item(
        number="Table 4",
        shows="their accuracy in seven tasks",
        status=MISSING,
        why="Models that were trained for minutes can do none of them",
    ),
    Item(
        number="Figure 7",
        shows="their attention maps",
        status=SCALED,
        why=TRAINING + ". Weights instead of logits",
        figure="twin_maps",
        records="twins",
    ),
    Item(
        number="Table 5",
        shows="questions of ARC in one stream",
        status=MISSING,
        why="That task is not measured here yet",
    ),
    Item(
        number="Figure 8",
        shows="StreamEval, an example",
        status=SCALED,
        why=ASKED + ". A stream of ours begins like this:\n\n```text\n{example}\n```\n\n"
        "A question is a word again, after every {every} lines; its number is to follow",
    ),
    Item(
        number="Figure 9",
        shows="StreamEval, right answers of several methods",
        status=SCALED,
        why=ASKED + ". By distance and by cache size, instead of along the stream",
        figure="stream_eval",
    ),
    Item(
        number="Figure 10",
        shows="time and memory of a decoded token, against re-computation",
        status=SCALED,
        why="{model}, on the machine that the figure names, instead of Llama-2-7B and 13B on an A6000, "
        "where streaming was up to 22.2 times faster. Dense and window-only of the same size are timed too",
        figure="decoding_latency",
    ),
    Item(
        number="Table 6",
        shows="the size of the cache",
        status=SCALED,
        why="{model} instead of the four below, and {tokens} tokens of each text instead of 400,000",
        figure="ablation_window_size",
        table=_ablation("ablation_window_size"),
        theirs=[
            _row("Falcon-7B", "4+252 4+508 4+1020 4+2044", 13.61, 12.84, 12.34, 12.84),
            _row("MPT-7B", "4+252 4+508 4+1020 4+2044", 14.12, 14.25, 14.33, 14.99),
            _row("Pythia-12B", "4+252 4+508 4+1020 4+2044", 13.17, 12.52, 12.08, 12.09),
            _row("Llama-2-7B", "4+508 4+1020 4+2044 4+4092", 9.73, 9.32, 9.08, 9.59),
        ],
    ),
    Item(
        number="Appendix C",
        shows="StreamEval by the distance of the answer",
        status=SCALED,
        why=ASKED + ". There, 85.80 % are right 460 tokens back, and none past the cache",
        figure="stream_eval",
        table=lambda records: stream_eval_rows(records["stream_eval"]),
    ),
    Item(
        number="Appendix G",
        shows="how much attention the 4,096th token gives to the first",
        status=SCALED,
        why="{model} instead of Llama-2-7B, and the mean over the last {queries} tokens of {contexts} "
        "contexts of {context_tokens} instead of the last token of 256. With streaming, and along a stream",
        figure="sink_mass",
    ),
)


def paper_page(records: Records) -> str:
    """Return the page, in Markdown.

    Args:
        records: lists of records by name: those of both ablations, and of the figures that `snakemake paper`
            measures.
    """
    here, facts = [item for item in ITEMS if item.status != MISSING], _facts(records)
    lines = [
        "# The paper by number",
        "",
        "Every table and figure in the main text of *Efficient Streaming Language Models with Attention "
        "Sinks* ([arXiv:2309.17453](https://arxiv.org/abs/2309.17453)), two of its appendix, and what stands "
        f"for them here: {len(here)} of {len(ITEMS)}. *Scaled down* says what is smaller. `snakemake paper` "
        "measures all and writes this page from the records.",
        "",
        "| paper | shows | here |",
        "|---|---|---|",
        *(f"| {_link(item)} | {item.shows} | {item.status} |" for item in ITEMS),
        "",
    ]
    return "\n".join([*lines, *(line for item in ITEMS for line in _section(item, records, facts))])


def _facts(records: Records) -> dict[str, str]:
    """Return what the records say that the text of the page needs, by name."""
    maps, mass = records["attention_maps"][0]["sentences"], records["sink_mass"][0]["sizes"]
    (twins,), (asked,) = records["twins"], records["stream_eval"]
    counts = [at["asked"] for at in asked["rows"][0]["distances"]]
    seeds = seeds_of(twins)
    numbers = {**maps, **mass, "queries": SHARE_QUERIES, "steps": twins["training"]["steps"]}
    numbers |= {"parameters": twins["parameters"], "twin_capacity": twins["twins"][0]["rows"][0]["capacity"]}
    return {
        "model": escape_markdown(records["positions"][0]["model"]),
        "tokens": _counts(records["sink_tokens"]),
        "long_tokens": _counts(records["positions"]),
        "twins": f"{len(seeds)} models",
        "example": "\n".join(asked["example"].splitlines()[: 2 + asked["task"]["every"]]),
        "every": str(asked["task"]["every"]),
        "asked": " to ".join(dict.fromkeys(map(str, (min(counts), max(counts))))),
        "seeds": str(max(map(len, seeds.values()))),
        **{name: f"{number:,}" for name, number in numbers.items()},
    }


def _counts(records: Sequence[Record]) -> str:
    """Return how many tokens were read of each text."""
    return " / ".join(dict.fromkeys(f"{record['tokens']['count']:,}" for record in records))


def _link(item: Item) -> str:
    anchor = f"{item.number}: {item.shows}".lower()
    anchor = "".join(letter for letter in anchor if letter.isalnum() or letter in " -").replace(" ", "-")
    return f"[{item.number}](#{anchor})"


def _section(item: Item, records: Records, facts: Mapping[str, str]) -> list[str]:
    """Return the lines of one item."""
    why = item.why.format_map(facts)
    lines = [f"## {item.number}: {item.shows}", "", f"**{item.status.capitalize()}.** {why}.", ""]
    if item.figure is not None:
        lines += [f"![{item.figure}](figures/{item.figure}.png)", ""]
    if shown := records.get(item.records or item.figure or ""):
        lines += [f"{escape_markdown(describe_setting(shown[0]))}.", ""]
    if item.table is not None:
        lines += ["Here:" if item.theirs else "In numbers:", "", as_markdown(item.table(records)), ""]
    if item.theirs:
        lines += ["In the paper:", "", as_markdown(item.theirs), ""]
    return lines
