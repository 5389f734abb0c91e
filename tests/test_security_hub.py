"""What a hub, a mirror or a repository cannot do: write elsewhere, get the token, take all memory."""

import gzip
import io
import json
import time
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from changed_config import CONFIG, changed, report
from hub_files import PYTHIA, parquet
from hub_server import Hub, Lie
from huggingface_hub import HfFileSystem, constants, set_client_factory
from huggingface_hub.utils import _http

from streamlm import limits
from streamlm.sources import hub_client
from streamlm.sources.hub import model_snapshot, snapshot
from streamlm.sources.hub_texts import fetch_documents

TOKEN = "hf_secretsecretsecret"
TEXT = {
    "repo": "org/data", "revision": "main", "config": None, "split": "test", "column": "text",
    "format": "text", "rows": None,
}  # fmt: skip
STREAM = TEXT | {"rows": 1}
README = "README[.]md$"


@pytest.fixture
def files(tmp_path):
    """The repository of every test: a card, and a text in parquet."""
    return {"README.md": b"# Data", "test.parquet": parquet(text=["a text", "another"])}


@pytest.fixture
def hub(tmp_path, monkeypatch, files):
    """A hub, of which huggingface_hub in this process is a client, with a token and an empty cache."""
    with Hub() as hub:
        hub.add("datasets", "org/data", files)
        hub.add("models", "org/data", files)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        use(hub, monkeypatch)
        for name, value in {
            "HF_HUB_CACHE": str(tmp_path / "hf" / "hub"), "HF_HUB_OFFLINE": False,
            "HF_HUB_DOWNLOAD_TIMEOUT": 1, "HF_HUB_DISABLE_PROGRESS_BARS": True,
        }.items():  # fmt: skip
            monkeypatch.setattr(constants, name, value)
        yield hub
        HfFileSystem.clear_instance_cache()


def use(hub, monkeypatch, url=None):
    url = url or hub.url
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    HfFileSystem.clear_instance_cache()


def take(pattern="README.md", max_gb=1):
    return snapshot("org/data", "main", "model", [pattern], max_gb)


@contextmanager
def refused(match):
    """Expect one line that says why, with nothing in it that steers a terminal, and no token."""
    with pytest.raises(ValueError, match=match) as raised:
        yield
    line = str(raised.value)
    assert line.isprintable(), line
    assert TOKEN not in line
    assert len(line) < 1_500


def outside(tmp_path):
    return [path for path in tmp_path.rglob("*") if tmp_path / "hf" not in (path, *path.parents)]


@pytest.mark.parametrize(
    "etag",
    ["/{}/made", "../../../../made", '"../../../../made"', 'W/"../made"', "..", '""', "W..",
     "a/b", "C:\\made", "a" * 500, 'a", "b'],
)  # fmt: skip
@pytest.mark.parametrize("header", ["ETag", "X-Linked-Etag"])
def test_etag_that_is_a_path_is_refused_and_nothing_is_written_elsewhere(hub, tmp_path, header, etag):
    hub.lies.append(Lie(README, {header: etag.format(str(tmp_path)[1:])}))
    with refused(
        "cannot fetch org/data at main from .*it names the ETag .*not plain letters and digits; do not trust"
    ):
        take()
    assert outside(tmp_path) == []
    assert not [*(tmp_path / "hf").rglob("*made*")]


def test_etag_of_a_local_file_does_not_make_it_a_file_of_the_hub(hub, tmp_path):
    (tmp_path / "private").write_text("private")
    hub.lies.append(Lie(README, {"ETag": f'"{tmp_path / "private"}"'}))
    with refused("it names the ETag"):
        take()
    assert not [path for path in (tmp_path / "hf").rglob("*") if path.resolve() == tmp_path / "private"]


@pytest.mark.parametrize(
    "etag", ['"5f3e-1a2b"', 'W/"d41d8cd98f00b204e9800998ecf8427e-12"', "W/abc.gz", '"Zm9vYmFy+w=="']
)
def test_plain_etag_of_a_mirror_is_taken(hub, etag):
    hub.lies.append(Lie(README, {"ETag": etag}))
    assert (take() / "README.md").read_bytes() == b"# Data"


@pytest.mark.parametrize(
    "commit", ["../../../../made", "/made", "main", "C0FFEE" + 34 * "0", "", 40 * "0" + "/.."]
)
@pytest.mark.parametrize("status", [None, 404])
def test_commit_of_a_file_is_forty_digits_or_refused(hub, tmp_path, commit, status):
    headers = {"X-Repo-Commit": commit} | ({"X-Error-Code": "EntryNotFound"} if status else {})
    hub.lies.append(Lie(README, headers, status=status))
    with refused("it names the commit .*, which is not 40 hexadecimal digits"):
        take()
    assert outside(tmp_path) == []


@pytest.mark.parametrize("sha", ["../../../../made", "/made", "main", 5, ["a"], 41 * "0"])
def test_commit_of_a_listing_is_forty_digits_or_refused(hub, tmp_path, sha):
    hub.lies.append(Lie("/revision/", body=json.dumps({"id": "org/data", "sha": sha}).encode()))
    with refused("names the commit .*, which is not 40 hexadecimal digits"):
        take()
    assert outside(tmp_path) == []


@pytest.mark.parametrize(
    "name",
    [
        "../README.md",
        "/README.md",
        "a/../../README.md",
        ".git/README.md",
        "a//README.md",
        "a\0README.md",
        "",
        5,
    ],
)
@pytest.mark.parametrize("source", [TEXT, STREAM], ids=["fetched", "streamed"])
def test_name_in_a_listing_that_git_cannot_hold_is_refused(hub, tmp_path, name, source):
    entry = {"type": "file", "oid": 40 * "0", "size": 1, "path": name}
    hub.lies.append(Lie("/tree/", body=json.dumps([entry]).encode()))
    with refused("names the file .*, which git cannot hold"):
        fetch_documents(source)
    assert outside(tmp_path) == []


def test_odd_names_that_are_not_taken_disturb_nobody(hub, files):
    odd = {
        "back\\slash.png": b"",
        "Icon\r": b"",
        "C:x": b"",
        "\x1b[31m.py": b"",
        "x" * 2000: b"",
        "readme.MD": b"",
    }
    hub.add("models", "org/data", files | odd)
    assert [file.name for file in take().iterdir()] == ["README.md"]


@pytest.mark.parametrize("name", ["test-a::b.parquet", "test-\x1b[31m.parquet", "test-\\..\\a.parquet"])
@pytest.mark.parametrize("rows", [None, 1])
def test_name_that_leads_out_of_a_text_is_refused(hub, files, name, rows):
    hub.add("datasets", "org/data", {"README.md": b"", name: files["test.parquet"]})
    with refused("org/data has a file .*whose name leads out of it|Invalid filename"):
        fetch_documents(TEXT | {"rows": rows})


def test_token_goes_to_the_endpoint_alone(hub, files):
    with Hub() as other:
        other.add("datasets", "org/data", files, branch="c0ffee" + 34 * "0")
        tree = "/api/datasets/org/data/tree/" + other.repos["datasets", "org/data"].commit
        hub.lies += [
            Lie("/tree/", {"Link": f'<{other.url}{tree}?recursive=true>; rel="next"'}),
            Lie("test[.]parquet$", {"Location": other.url + "/cdn/" + "0" * 64}),
            Lie(README, {"Location": f"http://localhost:{hub.port}/{README}"}, status=302),
        ]
        with refused("cannot fetch"):
            fetch_documents(TEXT)
        hub.lies.pop()
        with refused("cannot fetch"):
            fetch_documents(TEXT)
        with refused("cannot fetch"):
            fetch_documents(STREAM)
    assert "/cdn/" + 64 * "0" in [path for _, path in other.asked]
    assert tree in [path for _, path in other.asked]
    assert {*other.tokens} == {None}
    assert f"Bearer {TOKEN}" in hub.tokens


def test_token_does_not_go_to_another_port_host_or_scheme():
    fetch = hub_client._Fetch(max_gb=1, bytes_left=1)
    for url, kept in {
        "https://hub.example/a": True, "https://HUB.example:443/a": True, "http://hub.example/a": False,
        "https://hub.example:8443/a": False, "https://hub.example.evil/a": False,
        "https://hub.example@evil/a": False,
    }.items():  # fmt: skip
        request = hub_client.http.Request("GET", url, headers={"Authorization": "Bearer x"})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(constants, "ENDPOINT", "https://hub.example")
            fetch.check_request(request)
        assert ("Authorization" in request.headers) == kept, url


@pytest.mark.parametrize("source", [TEXT, STREAM], ids=["fetched", "streamed"])
def test_large_file_comes_from_another_host_without_the_token(hub, source):
    assert fetch_documents(source)[0][0].text == "a text"
    by_path = dict(zip([path for _, path in hub.asked], hub.tokens, strict=True))
    assert {token for path, token in by_path.items() if "/cdn/" in path} == {None}
    assert {token for path, token in by_path.items() if "/org/data" in path} == {f"Bearer {TOKEN}"}


def test_relative_redirect_on_the_hub_is_followed_with_the_token(hub):
    hub.lies.append(Lie("/old/resolve/", {"Location": "/org/data/resolve/main/README.md"}, b"", 307))
    hub.add("models", "org/old", hub.repos["models", "org/data"].files)
    assert (snapshot("org/old", "main", "model", ["README.md"], 1) / "README.md").read_bytes() == b"# Data"
    assert {token for (_, path), token in zip(hub.asked, hub.tokens, strict=True) if "/org/" in path} == {
        f"Bearer {TOKEN}"
    }


def test_hash_and_address_of_xet_are_not_used(hub):
    hub.lies.append(Lie(README, {"X-Xet-Hash": "../../made", "X-Xet-Refresh-Route": "http://localhost:1/x"}))
    assert (take() / "README.md").read_bytes() == b"# Data"


def test_client_of_the_process_is_its_own_again_after_a_fetch(hub):
    made = []

    def factory():
        made.append(_http.default_client_factory())
        return made[-1]

    set_client_factory(factory)
    try:
        take()
        assert _http._GLOBAL_CLIENT_FACTORY is factory
        assert made  # a proxy or certificate that the user set counts for our fetch too
        assert len(_http.get_session().event_hooks["response"]) == 0
        assert constants.HF_HUB_DISABLE_XET is False
        with refused("404"):
            snapshot("org/none", "main", "model", ["README.md"], 1)
        assert _http._GLOBAL_CLIENT_FACTORY is factory
    finally:
        set_client_factory(_http.default_client_factory)


@pytest.mark.parametrize("revision", ["../../../made", "a/../../../../made", "/made", "a//b", "x\x1b[31m"])
def test_revision_that_is_a_path_is_refused(hub, tmp_path, revision):
    with pytest.raises(ValueError, match="is not a revision of org/data; use a branch, tag or commit"):
        snapshot("org/data", revision, "model", ["README.md"], 1)
    assert hub.asked == []


@pytest.mark.parametrize(
    ("source", "key"),
    [
        ({"revision": "a/../../x"}, "revision"),
        ({"gguf": "../../x.gguf"}, "gguf"),
        ({"gguf": "/x.gguf"}, "gguf"),
        ({"max_gb": 0}, "max_gb"),
        ({"max_gb": "all"}, "max_gb"),
    ],
)
def test_config_names_no_path_outside_of_a_repository(source, key):
    model = {"title": "M", "source": {"kind": "hub", "repo": "org/name", "revision": "main"} | source}
    assert any(
        line.startswith(f"models.m.source.{key}: ") for line in report(changed(CONFIG, {"models/m": model}))
    )


CARDS = {
    "data_dir: {up}": "names .*outside of it",
    "data_dir: /{path}": "names .*outside of it",
    "data_dir: [a]": "configs of its card are not sections",
    "data_files: /{path}/test.parquet": "no split 'test'",
    "data_files: [{{split: test, path: /{path}/*}}]": "names .*outside of it",
    "data_files: [{{split: test, path: '{up}/*'}}]": "names .*outside of it",
    "data_files: [{{split: test, path: ['a', '{up}/*']}}]": "names .*outside of it",
    "data_files: {{test: '{up}/*'}}": "names .*outside of it",
    "data_files: [{{split: test, path: 'file:///{path}/test.parquet'}}]": "names .*outside of it",
    "data_files: [{{split: test, path: 'https://x/y.parquet'}}]": "names .*outside of it",
    "data_files: [{{split: test, path: 'hf://datasets/a/b/y.parquet'}}]": "names .*outside of it",
    "data_files: [{{split: test, path: 'zip://a.parquet::/{path}/z'}}]": "names .*outside of it",
    "data_files: [{{split: test, path: 'a::/{path}/test.parquet'}}]": "names .*outside of it",
    "data_files: [{{split: test, path: ''}}]": "names .*outside of it",
    "data_files: [{{split: test, path: '**/**/**/**/a*.parquet'}}]": "with more than",
    'data_files: [{{split: test, path: "a\\e[31m"}}]': "names .*outside of it",
    "data_files: [{{split: test, path: 5}}]": "not a split and a path each",
    "data_files: [{{split: [a], path: a}}]": "not a split and a path each",
    "data_files: [{{path: a}}]": "not a split and a path each",
    "data_files: [a, {{b: c}}]": "not a split and a path each",
    "data_files: 5": "not a split and a path each",
}


@pytest.mark.parametrize("entry", CARDS)
@pytest.mark.parametrize("rows", [None, 1])
def test_card_of_a_text_cannot_leave_its_repository(hub, tmp_path, entry, rows):
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "test.parquet").write_bytes(parquet(text=["private"]))
    path = f"{tmp_path}/private"[1:]
    card = f"---\nconfigs:\n- config_name: a\n  {entry.format(path=path, up='../' * 20 + path)}\n---\n"
    hub.add("datasets", "org/data", {"README.md": card.encode(), "test.parquet": parquet(text=["public"])})
    with refused(CARDS[entry]):
        fetch_documents(TEXT | {"rows": rows})


@pytest.mark.parametrize(
    ("card", "match"),
    [
        (b"---\nconfigs: 5\n---\n", "configs of its card are not sections"),
        (b"---\nconfigs: [5]\n---\n", "configs of its card are not sections"),
        (b"---\nconfigs: [{config_name: [a]}]\n---\n", "configs of its card are not sections"),
        (b"---\nconfigs: [\n---\n", "its card cannot be read"),
        (b"---\n" + 5_000 * b"[" + b"\n---\n", "its card cannot be read"),
        (b"---\n[a]\n---\n", "its card cannot be read"),
        (b"\xff\xfe", "its card cannot be read"),
        (b"---\n" + b"\n" * 300_000, None),
        (b"#" * (limits.HUB_CARD_BYTES + 1), "its card has more than"),
    ],
)  # fmt: skip
def test_damaged_card_is_one_line(hub, files, card, match):
    hub.add("datasets", "org/data", files | {"README.md": card})
    if match is None:
        assert fetch_documents(TEXT)[0][0].text == "a text"
        return
    with refused(match):
        fetch_documents(TEXT)


def test_pattern_that_is_slow_to_match_takes_no_time(hub):
    card = (
        "---\nconfigs:\n- config_name: a\n  data_files: [{split: test, path: '" + "a*" * 99 + "z*'}]\n---\n"
    )
    names = {"a" * n + ".parquet": b"" for n in range(200, 220)}
    hub.add("datasets", "org/data", {"README.md": card.encode()} | names)
    start = time.monotonic()
    for rows in (None, 1):
        with refused("has no parquet for config None"):
            fetch_documents(TEXT | {"rows": rows})
    assert time.monotonic() - start < 20


def test_honest_card_is_read_in_every_form(hub, files):
    for data_files in (
        "[{split: test, path: 'data/x-*'}]", "{test: data/x-*}", "[{split: test, path: [data/x-a.parquet]}]",
        "[{split: test, path: 'data/**'}]",
    ):  # fmt: skip
        card = f"---\nconfigs:\n- config_name: 2020\n  data_files: {data_files}\n---\n"
        more = {"data/x-a.parquet": parquet(text=["in data"]), "data/x-run.py": b"raise SystemExit"}
        hub.add(
            "datasets",
            "org/data",
            files | {"README.md": card.encode()} | more,
            commit=(data_files[1:9].encode().hex() + 40 * "0")[:40],
        )
        for rows in (None, 1):
            assert fetch_documents(TEXT | {"config": "2020", "rows": rows})[0][0].text == "in data"
    assert not any(path.endswith(".py") for _, path in hub.asked)


def endless(piece=bytes(2**16)):
    while True:
        yield piece


def slow():
    while True:
        time.sleep(0.2)
        yield b" "


@pytest.mark.parametrize("source", [TEXT, STREAM], ids=["fetched", "streamed"])
def test_listing_that_goes_on_for_ever_ends(hub, monkeypatch, source):
    monkeypatch.setattr(limits, "HUB_LISTING_REQUESTS", 20)
    following = f"{hub.url}/api/datasets/org/data/tree/main?again"
    hub.lies.append(Lie("/tree/", {"Link": f'<{following}>; rel="next"'}))
    with refused("its listing has no end after 20 requests"):
        fetch_documents(source)


def test_listing_of_too_many_files_is_refused(hub, monkeypatch):
    monkeypatch.setattr(limits, "HUB_LISTING_ENTRIES", 20)
    entry = {"type": "file", "oid": 40 * "0", "size": 1, "path": "a"}
    hub.lies.append(Lie("/tree/", body=json.dumps([entry] * 30).encode()))
    with refused("its listing has more than 20 entries"):
        take()


def test_listing_does_not_go_on_at_what_is_no_listing(hub):
    hub.lies.append(Lie("/tree/", {"Link": f'<{hub.url}/org/data/resolve/main/README.md>; rel="next"'}))
    with refused("its listing goes on at .*, which is no listing"):
        take()


@pytest.mark.parametrize("path", ["/tree/", "/revision/"])
def test_body_of_a_listing_that_never_ends_is_refused(hub, monkeypatch, path):
    monkeypatch.setattr(limits, "HUB_LISTING_BYTES", 10**6)
    hub.lies.append(Lie(path, body=endless))
    with refused("it sends more than the 1,000,000 bytes expected of /api/"):
        take()
    assert hub.sent < 10**7


def test_body_of_an_error_that_never_ends_is_refused(hub):
    hub.lies.append(Lie(README, body=endless, status=403, methods=("GET",)))
    with refused("it sends more than the 1,048,576 bytes expected of /org/data/resolve"):
        take()


@pytest.mark.parametrize("source", [TEXT, STREAM], ids=["fetched", "streamed"])
def test_file_that_is_longer_than_announced_is_refused(hub, source):
    hub.lies.append(Lie("/cdn/", body=endless, methods=("GET",)))
    with refused("it sends more than the [0-9,]+ bytes expected of /cdn/"):
        fetch_documents(source)
    assert hub.sent < 10**8


def test_file_of_unknown_length_that_never_ends_is_refused(hub):
    hub.lies += [
        Lie(README, body=endless, methods=("GET",)),
        Lie(README, {"X-Linked-Size": "?"}, methods=("HEAD",)),
    ]
    with refused("is larger than what may still come, and at most 0.01 GB are fetched; raise max_gb"):
        take(max_gb=0.01)


def test_model_larger_than_max_gb_is_refused_before_it_is_fetched(hub):
    hub.lies.append(Lie(README, {"X-Linked-Size": str(300 * 10**9)}, methods=("HEAD",)))
    with refused("has 300.0 GB, and at most 200 GB are fetched; raise max_gb of the source in the config"):
        take(max_gb=limits.HUB_MODEL_GB)
    assert ("GET", "/org/data/resolve/main/README.md") not in hub.asked


def test_files_count_together_for_max_gb(hub):
    hub.add(
        "models", "org/data", {f"model-{n}.bin.safetensors": bytes(400_000) + b"%d" % n for n in range(4)}
    )
    with refused("at most 0.001 GB are fetched"):
        take("model-*.safetensors", max_gb=0.001)
    hub.add(
        "models",
        "org/data",
        {f"model-{n}.bin.safetensors": bytes(400_000) + b"%d" % n for n in range(2)},
        40 * "1",
    )
    assert len([*take("model-*.safetensors", max_gb=0.001).iterdir()]) == 2


@pytest.mark.parametrize("path", ["/revision/", README])
def test_body_that_trickles_is_given_up(hub, monkeypatch, path):
    monkeypatch.setattr(limits, "HUB_PATIENCE_S", 1)
    hub.lies.append(Lie(path, body=slow, methods=("GET",)))
    with refused("came at less than 1,000 bytes per second; try again"):
        take()


def test_wait_of_hours_that_a_hub_asks_for_is_refused(hub):
    for headers in ({"Retry-After": "99999999"}, {"Retry-After": "0", "RateLimit": '"api";r=0;t=99999999'}):
        hub.lies = [Lie(README, headers, status=429)]
        with refused("429 Too Many Requests: it asks to wait longer than 600 s; try again later"):
            take()


def one_group(texts):
    """Return a parquet file of a single row group, in pages of about a megabyte."""
    file = io.BytesIO()
    pq.write_table(
        pa.table({"text": texts, "other": texts}), file,
        compression="none", use_dictionary=False, write_batch_size=10,
    )  # fmt: skip
    return file.getvalue()


def test_rows_bound_what_is_streamed_of_a_huge_row_group(hub):
    file = one_group([f"{n:09}" * 3_000 for n in range(1_500)])  # two columns of 40 MB each
    hub.add("datasets", "org/data", {"test.parquet": file})
    assert fetch_documents(STREAM)[0][0].text.startswith("000000000")
    assert hub.sent < len(file) / 4


def test_row_without_an_end_is_not_streamed_beyond_max_gb(hub):
    hub.add("datasets", "org/data", {"test.parquet": one_group(["endless " * 4_000_000])})
    with refused("at most 0.01 GB are fetched"):
        fetch_documents(STREAM | {"max_gb": 0.01})


def test_text_that_a_small_file_grows_to_is_bounded(hub):
    hub.add("datasets", "org/data", {"test.parquet": parquet(text=["x"])})
    file = io.BytesIO()
    pq.write_table(pa.table({"text": ["x" * 10**6] * 1_000}), file, compression="zstd")
    assert len(file.getvalue()) < 10**5
    hub.add("datasets", "org/data", {"test.parquet": file.getvalue()})
    with refused("its text has more than 0.1 GB; take fewer rows, or raise max_gb"):
        fetch_documents(TEXT | {"max_gb": 0.1})


@pytest.mark.parametrize(
    ("body", "match"),
    [
        (b"<html>log in</html>", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"", "is not JSON"),
        (b'"text"', "is a listing of something else than files"),
        (b"5", "is a listing of something else than files"),
        (b'["a", "b"]', "is a listing of something else than files"),
        (b"[[]]", "is a listing of something else than files"),
        (b'[{"type": "file", "path": "README.md", "size": "large", "oid": 5}]', "has the size 'large'"),
        (b'[{"type": "file"}]', "cannot fetch"),
        (b'[{"type": "file", "path": "README.md", "size": 1, "oid": 5, "lfs": [1]}]', "cannot fetch"),
        (b'{"sha": "\\u001b[31m"}', "names the commit"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/tree/", "/revision/"])
def test_answer_that_is_no_listing_is_one_line(hub, path, body, match):
    if path == "/revision/" and body.startswith(b'[{"type'):
        match = "cannot fetch"
    hub.lies.append(Lie(path, body=body))
    with refused(match):
        take()


def test_compressed_answer_is_refused_before_it_is_unpacked(hub):
    hub.lies.append(Lie("/tree/", {"Content-Encoding": "gzip"}, gzip.compress(bytes(10**8))))
    with refused("it sends a compressed answer, which was not asked for"):
        take()


@pytest.mark.parametrize("charset", ["bz2", "nonsense", "utf-7", "unicode_escape"])
def test_charset_of_an_error_is_not_used(hub, charset):
    hub.lies.append(Lie(README, {"Content-Type": f"text/plain; charset={charset}"}, b"\\x1b[31m \xff", 403))
    with refused("403 Forbidden for /org/data/resolve"):
        take()


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 418, 451])
def test_error_with_escapes_is_one_harmless_line(hub, status):
    red = "\x1b[31m\x9b2J\u202e\r\n"
    error = json.dumps({"error": red, "errors": [{"message": red}], "error_description": TOKEN}).encode()
    hub.lies.append(
        Lie("/api/|/resolve/", {"X-Request-Id": "\x9b31m", "X-Error-Message": "\x9b31m"}, error, status)
    )
    for read in (take, lambda: fetch_documents(STREAM)):
        with refused(f"cannot fetch org/data at main from {hub.url}: {status}"):
            read()


def test_warning_of_a_hub_is_not_shown(hub, capfd):
    hub.lies.append(Lie("", {"X-HF-Warning": "x; \x9b31m pay here"}))
    take()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("header", ["ETag", "X-Repo-Commit"])
def test_file_without_its_headers_is_one_line(hub, header, monkeypatch):
    monkeypatch.setattr("hub_server.Handler.send_header", without(header))
    with refused("cannot fetch org/data at main from"):
        take()


def without(header):
    from hub_server import Handler

    send = Handler.send_header
    return lambda self, name, value: None if name == header else send(self, name, value)


def test_token_that_no_header_can_hold_is_not_shown(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_s\xe9cret_secret")
    with pytest.raises(ValueError, match="cannot fetch org/data at main from") as raised:
        take()
    assert "cret" not in str(raised.value)


def test_token_that_a_hub_sends_back_is_not_shown(hub):
    hub.lies.append(Lie("/revision/", {"Location": f"/{TOKEN}/%1b[31m"}, b"", 302))
    with refused(r"404 Not Found for /\[HF_TOKEN\]/\\x1b\[31m"):
        take()


def test_password_in_the_address_of_a_mirror_is_not_shown(hub, monkeypatch):
    use(hub, monkeypatch, hub.url.replace("http://", "http://me:password@"))
    hub.lies.append(Lie("/revision/", status=404))
    with refused(f"from {hub.url}: 404"):
        take()


@pytest.mark.parametrize(
    "config", [b"[]", b"5", b"{", b"[" * 100_000, b'{"model_type": ["a"]}', b" " * 2**21 + b"{}"]
)
def test_config_of_a_model_that_is_no_config_is_one_line(hub, pythia, config):
    hub.add("models", "org/data", pythia | {"config.json": config})
    with refused("config.json of org/data cannot be read: |is a model of type"):
        model_snapshot("org/data", "main")


def test_only_what_a_model_needs_is_fetched(hub, pythia):
    more = {
        "modeling.py": b"", "pytorch_model.bin": b"", "model.pkl": b"", "tf_model.h5": b"",
        "code/model.safetensors": b"", "tokenizer.py": b"", ".gitattributes": b"",
    }  # fmt: skip
    hub.add("models", PYTHIA["repo"], pythia | more)
    folder = model_snapshot(PYTHIA["repo"], "main")
    assert {file.name for file in folder.iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip
    assert not {path.rpartition("/resolve/")[2].partition("/")[2] for _, path in hub.asked} & more.keys()


@pytest.mark.parametrize(
    "endpoint", ["https://hub.example", "https://hub.example/artifactory/api/huggingfaceml/repo/"]
)
def test_file_is_none_of_the_hubs_own_answers_wherever_its_endpoint_and_folder_are(monkeypatch, endpoint):
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    for path, is_listing in (
        ("/api/models/org/name", True), ("/org/name/resolve/main/api/models/x.parquet", False),
        ("/org/name/resolve/main/model.safetensors", False),
    ):  # fmt: skip
        path = hub_client._path(hub_client.http.URL(endpoint.rstrip("/") + path))
        assert bool(hub_client._LISTING.match(path)) == is_listing
        assert bool(hub_client._OTHER_API.match(path)) == is_listing
