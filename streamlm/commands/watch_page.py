"""A page that shows a text as a cache reads it, with a slider over its tokens."""

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from streamlm.characters import without_steering
from streamlm.config import StreamConfig

if TYPE_CHECKING:
    from streamlm.generate.watching import WatchedToken

MARK = '<meta name="generator" content="streamlm watch">'
STYLE = """
body { font: 16px/1.6 sans-serif; max-width: 50em; margin: 2em auto; padding: 0 1em; color: #000; }
h1 { font-size: 1.3em; }
#text { white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid #767676; padding: 0.8em; }
.sink { font-weight: bold; border: 1px solid #000; }
.forgotten { color: #707070; text-decoration: line-through; }
.newest { text-decoration: underline; }
input { width: 100%; }
td { padding-right: 2em; }
"""
# The darkest grey is 0.45: black on it has a contrast of 6.
SCRIPT = """
const data = JSON.parse(document.getElementById("data").textContent);
const at = document.getElementById("at");
function write(id, text) { document.getElementById(id).textContent = text; }
function percent(share) { return (100 * share).toFixed(1) + " %"; }
function drawn(token, share) {
  const span = document.createElement("span");
  span.textContent = data.texts[token];
  if (share === undefined) {
    span.className = "forgotten";
    return span;
  }
  if (token < data.n_sink) { span.className = "sink"; }
  span.style.backgroundColor = "rgba(0, 0, 0, " + (0.45 * Math.sqrt(share)).toFixed(3) + ")";
  span.title = "token " + token + ": " + percent(share);
  return span;
}
function show() {
  const step = Number(at.value), kept = data.kept[step], shares = data.shares[step];
  const share_of = new Map(kept.map((token, i) => [token, shares[i]]));
  const spans = data.texts.slice(0, step + 1).map((_, token) => drawn(token, share_of.get(token)));
  spans[step].classList.add("newest");
  document.getElementById("text").replaceChildren(...spans);
  const best = shares.indexOf(Math.max(...shares));
  const totals = data.totals[step].map(percent);
  write("position", step + " of " + (data.texts.length - 1));
  write("sinks", totals[0]);
  write("window", totals[1]);
  write("none", totals[2]);
  const word = JSON.stringify(data.texts[kept[best]]);
  write("most", percent(shares[best]) + ": " + word + " (token " + kept[best] + ")");
}
at.addEventListener("input", show);
show();
"""
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
{mark}
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; \
script-src 'sha256-{script_hash}'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
<p>{about}</p>
<noscript><p>This page needs JavaScript.</p></noscript>
<p><label for="at">token <span id="position"></span></label>
<input id="at" type="range" min="0" max="{last}" value="{last}" autocomplete="off"></p>
<p>The attention of this token:</p>
<table>
<tr><td>on the sinks</td><td id="sinks"></td></tr>
<tr><td>on the window</td><td id="window"></td></tr>
<tr><td>on no token</td><td id="none"></td></tr>
<tr><td>most on one token</td><td id="most"></td></tr>
</table>
<div id="text"></div>
<p><span class="sink">sink</span>, window, <span class="forgotten">forgotten</span>; the newest token is
<span class="newest">underlined</span>. The darker a token, the more of the newest token's attention it
gets.</p>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""


def watch_page(
    tokens: "Sequence[WatchedToken]", texts: Sequence[str], cfg: StreamConfig, *, dataset: str, about: str
) -> str:
    """Return the page, which needs no other file.

    Args:
        tokens: of a stream, from its first on.
        texts: of these tokens.
        cfg: what the cache keeps.
        dataset: the true name of the text.
        about: what reads what, and what the shares are a mean of, in sentences.
    """
    data = {
        "n_sink": cfg.n_sink,
        "texts": [without_steering(text) for text in texts],
        "kept": [token.kept.tolist() for token in tokens],
        "shares": [[_rounded(share) for share in token.shares.tolist()] for token in tokens],
        # Summed here: many tokens may have a share of 0.01 % each.
        "totals": [[_rounded(total) for total in token.totals(cfg)] for token in tokens],
    }
    return PAGE.format(
        mark=MARK,
        script_hash=base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode(),
        style=STYLE,
        title=html.escape(f"What {cfg} keeps of {dataset}"),
        about=html.escape(about),
        last=len(tokens) - 1,
        data=_json(data),
        script=SCRIPT,
    )


def _rounded(share: float) -> float:
    """Return a share to four digits, however small it is."""
    return float(f"{share:.4g}")


def _json(data: Any) -> str:
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")  # a text must not end the script
