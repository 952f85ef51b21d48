import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from cohort_tasks import summary_of
from PIL import Image

from cellvit.errors import OutputError
from cellvit.inference.cohort.report import picture_uri, write_report
from cellvit.inference.cohort.run import SlideOutcome
from cellvit.io.format import readable_duration as duration

VOID = {"meta", "img", "br", "input", "rect"}


class Page(HTMLParser):
    """Collects the elements of a page and refuses tags that do not match."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.path, self.source = path, path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID or (tag == "rect" and not self.get_starttag_text().endswith("/>")):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        for tag in self.open:
            self.text.setdefault(tag, []).append(data)

    def all(self, tag, **attributes):
        return [found for name, found in self.found if name == tag and attributes.items() <= found.items()]


def make(folder: Path, name: str, *, error=None, pictures=True, nuclei=100, extra=None, trace=None, **changes):
    out = folder / "out" / name
    out.mkdir(parents=True)
    if pictures:
        Image.fromarray(np.full((500, 1000, 3), 200, np.uint8)).save(out / "overlay.png")
    summary = None if error else summary_of(name, nuclei=nuclei, **changes)
    return SlideOutcome(folder / name, out, summary, error, 2.0, "cpu", extra or {}, trace)


def report(folder: Path, *outcomes, title="Nuclei") -> Page:
    (folder / "out").mkdir(exist_ok=True)
    path = folder / "out" / "report.html"
    write_report(outcomes, path, title=title)
    return Page(path)


def test_the_page_has_totals_a_row_per_slide_and_its_types(tmp_path):
    page = report(tmp_path, make(tmp_path, "a.svs", nuclei=3000), make(tmp_path, "b.svs", nuclei=1000))
    facts = dict(zip(page.text["dt"], page.text["dd"], strict=True))
    assert facts == {
        **{"slides done": "2", "nuclei": "4,000", "tissue": "4.0 mm²", "nuclei per mm²": "1,000"},
        **{"computing time": "3 s"},
    }
    names = [cell["data-value"] for cell in page.all("td", **{"class": "name"}) if "data-value" in cell]
    assert names == ["a.svs", "b.svs"]
    assert [cell.get("data-value") for cell in page.all("td", **{"data-label": "nuclei"})] == ["3000", "1000", "4000"]
    # red half, green half, in the bar of each row, of the sum and of the foot
    fills = [(rect["fill"], rect["width"]) for rect in page.all("rect") if "x" in rect]
    assert fills == [("#ff0000", "50.000"), ("#22dd4d", "50.000")] * 4
    assert "Neoplastic 50.0 %" in page.text["p"]


def test_failed_slides_come_first_with_their_error_and_what_to_do(tmp_path):
    page = report(
        tmp_path,
        make(tmp_path, "a.svs"),
        make(tmp_path, "b.svs", error="slide 'b.svs' is broken; copy it again"),
        make(tmp_path, "c.svs", error="RuntimeError: odd", trace="Traceback: <here>"),
    )
    assert page.source.index("2 slides failed") < page.source.index("slides done")
    text = "".join(page.text["section"])
    assert "slide 'b.svs' is broken; copy it again" in text
    assert "then run the same command again: slides that are done are kept" in text
    assert "".join(page.text["pre"]) == "Traceback: <here>"
    assert len(page.all("details")) == 1
    assert "1 slide failed" in report(tmp_path, make(tmp_path, "d.svs", error="no")).source


def test_names_cannot_break_out_of_the_page(tmp_path):
    hostile = "\"><img src=x onerror='alert(1)'>&.svs"
    outcome = make(tmp_path, hostile, extra={"<i>k</i>": "<script>v</script>"}, warnings=["<b>w</b>"])
    outcome.summary["model"]["name"] = "<u>model</u>"
    outcome.summary["files"] = {"<em>": "javascript:alert(1)"}
    failed = make(tmp_path, "x.svs", error="<b>e</b>", trace="</pre><script>t</script>")
    page = report(tmp_path, outcome, failed, title="</title><script>title</script>")
    assert len(page.all("script")) == 1
    assert [image["src"][:22] for image in page.all("img")] == ["data:image/jpeg;base64"]
    assert not [tag for tag, _ in page.found if tag in ("i", "u", "em")]
    assert "</title><script>title</script>" in "".join(page.text["h1"])
    assert not [link for link in page.all("a") if link["href"].startswith("javascript:")]
    assert hostile in "".join(page.text["a"])


def test_nothing_is_loaded_from_elsewhere(tmp_path):
    page = report(tmp_path, make(tmp_path, "a.svs"), make(tmp_path, "b.svs", error="no"))
    assert not re.findall(r"https?://|@import|url\(|<link", page.source)
    addresses = [value for _, found in page.found for key, value in found.items() if key in ("src", "srcset", "action")]
    assert all(value.startswith("data:") for value in addresses)
    (policy,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy["content"].startswith("default-src 'none'; img-src data:;")


def test_links_lead_to_the_files_from_where_the_page_is(tmp_path):
    outcome = make(tmp_path, "ä, slide #1%.svs")
    for name in ("nuclei.parquet", "tissue.png", "summary.json"):
        (outcome.out / name).touch()
    page = report(tmp_path, outcome)
    targets = [page.path.parent / unquote(link["href"]) for link in page.all("a")]
    assert {target.name for target in targets} == {
        *("ä, slide #1%.svs", "overlay.png", "nuclei.parquet", "tissue.png", "summary.json"),
    }
    assert all(target.exists() for target in targets)


def test_pictures_are_small_jpegs(tmp_path):
    page = report(tmp_path, make(tmp_path, "a.svs"), make(tmp_path, "b.svs", pictures=False))
    (image,) = page.all("img")
    kind, _, data = image["src"].partition(",")
    assert kind == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        assert (picture.format, picture.size) == ("JPEG", (320, 160))


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA"])
def test_a_picture_of_any_kind_is_shown_and_a_damaged_one_is_not(tmp_path, mode):
    Image.new(mode, (40, 30)).save(tmp_path / "tissue.png")
    assert picture_uri(tmp_path, side=320).startswith("data:image/jpeg;base64,")
    whole = (tmp_path / "tissue.png").read_bytes()
    for damaged in (b"", b"no picture", whole[: len(whole) // 2]):
        (tmp_path / "overlay.png").write_bytes(damaged)
        assert picture_uri(tmp_path, side=320) is not None  # the other one
        (tmp_path / "tissue.png").write_bytes(damaged)
        assert picture_uri(tmp_path, side=320) is None
        (tmp_path / "tissue.png").write_bytes(whole)


def test_a_page_without_slides_and_one_with_bare_summaries(tmp_path):
    assert "There are no slides." in report(tmp_path).source
    bare = SlideOutcome(tmp_path / "a.svs", tmp_path / "a", {}, None, 2.0, "cpu")
    page = report(tmp_path, bare)
    assert page.all("td", **{"data-label": "nuclei"})[0] == {"class": "number", "data-label": "nuclei"}
    empty = report(tmp_path, make(tmp_path, "b.svs", nuclei=0, tissue={"area_mm2": 0.0}))
    assert "NaN" not in empty.source


def test_a_page_of_many_slides_stays_small(tmp_path):
    base = make(tmp_path, "a.svs")
    many = [SlideOutcome(tmp_path / f"{i}.svs", base.out, base.summary, None, 2.0, "cpu") for i in range(500)]
    page = report(tmp_path, *many)
    assert len(page.all("tr")) == 502
    assert page.path.stat().st_size < 10e6
    with Image.open(io.BytesIO(base64.b64decode(page.all("img")[0]["src"].partition(",")[2]))) as picture:
        assert max(picture.size) == 200


def test_a_page_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(OutputError, match="create it first"):
        write_report([], tmp_path / "none" / "report.html", title="Nuclei")


def test_times_are_rounded_to_what_is_read():
    assert [duration(s) for s in (0, 59.6, 3599, 3600, 360000)] == [
        *("0 s", "1 min 00 s", "59 min 59 s", "1 h 00 min", "100 h 00 min"),
    ]
