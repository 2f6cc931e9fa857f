"""The report: self-contained, escaped, and honest about what it claims."""

import re
from html.parser import HTMLParser

import pytest
from job_samples import METRICS, NODES, SPEC, SPEC_NO_DP, accounts, job

from feddp.report import render
from feddp.report.tables import epsilon
from protos.feddp.v1.jobs_pb2 import Job, Waiting

EVIL = "<script>alert(1)</script>"


class Page(HTMLParser):
    """Tags, attributes and words of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data


def full(**changes: object) -> str:
    """The report of the usual job with everything known."""
    arguments = {"metrics": METRICS, "accounts": accounts(), "spec": SPEC} | changes
    return render(arguments.pop("job", None) or job(), **arguments)


def test_the_page_needs_nothing_but_itself():
    """No script, font, image, frame or address: it can be mailed, archived and read offline."""
    text = full()
    page = Page(text)
    assert {"script", "link", "img", "iframe", "object", "embed", "a", "base"}.isdisjoint(
        tag for tag, _ in page.tags
    )
    assert not re.search(r"https?:|//[a-z]|url\(|@import|@font-face|javascript:", text)
    assert all(
        not name.startswith("on") and name not in ("src", "href", "xlink:href")
        for _, attributes in page.tags
        for name in attributes
    )
    assert "default-src 'none'" in text
    assert text.count("<style") == 1, "the drawings take their colours from the page"


def test_every_name_is_escaped():
    """Names come from users and from other hospitals."""
    sample = job(name=EVIL)
    sample.status = EVIL
    for field in ("data_set", "task", "project", "submitted_by", "message", "model_digest"):
        setattr(sample, field, EVIL)
    sample.waiting.append(Waiting(node=EVIL, reason=EVIL, message=EVIL))
    for each in sample.nodes:
        each.name = each.node_class = EVIL
    for number in sample.rounds:
        for part in number.participation:
            part.node = part.reason = part.message = part.outcome = EVIL
    broken = accounts()
    for account in broken:
        account.account = account.filter = EVIL
        account.data_sets[:] = [EVIL]
    text = render(
        sample,
        metrics={"accuracy": 0.5, "per_node": {EVIL: {"auc": 0.5}}},
        accounts=broken,
        spec=EVIL.encode() + b"\xff",
    )
    page = Page(text)
    assert "<script" not in text
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.words.count(EVIL) > 10
    assert all("alert" not in name for _, attributes in page.tags for name in attributes)


def test_the_summary_tells_status_rounds_epsilon_and_digests():
    """The first screen answers what happened and at what cost."""
    words = Page(full()).words
    assert "Completed" in words
    assert "4 of 4 planned" in words
    assert "ab" * 32 in words
    assert "cd" * 32 in words
    for name, _ in NODES:
        assert name in words


def test_the_claim_says_who_is_protected_from_whom_and_what_is_not():
    """One patient at one hospital, add or remove, lifetime limit; running epsilon is labelled."""
    words = Page(full()).words
    for part in (
        "one patient's records at one hospital",
        "add or remove",
        "lifetime limit",
        "for all of them together it counts once more for each raise",
        "Running epsilon",
        "Not protected:",
        "held-out rows behind the test figures",
    ):
        assert part in words
    assert "held-out rows" not in Page(full(metrics=None)).words


@pytest.mark.parametrize("spec", [SPEC_NO_DP, b""])
def test_without_dp_the_page_says_that_there_is_no_guarantee(spec):
    """Told from what was posted, even when the job file is not known."""
    words = Page(full(job=job(dp=False), spec=spec, accounts=None)).words
    assert "There is no privacy guarantee" in words
    assert "none: no guarantee" in words
    assert "Protected is" not in words


def test_a_job_without_dp_that_released_nothing_yet_is_told_from_its_file():
    """The claim must not be made between submission and the first round."""
    sample = Job(name="x", status="waiting", task="tabular-classifier")
    words = Page(render(sample, metrics=None, accounts=None, spec=SPEC_NO_DP)).words
    assert "There is no privacy guarantee" in words


def test_a_task_that_reads_no_data_claims_nothing():
    """The null task proves a path, not privacy."""
    words = Page(full(job=Job(name="x", task="null", status="completed"))).words
    assert "No patient data was read" in words
    assert "Protected is" not in words


def test_an_account_that_lost_its_guarantee_is_told_above_the_claim():
    """A job with noise does not mend what an earlier one released without."""
    words = Page(full(accounts=accounts(guarantee=False))).words
    assert words.index("No guarantee for cleveland/patients") < words.index("Protected is")
    assert "No guarantee for" not in Page(full()).words


def cells(text: str, start: str) -> dict[str, str]:
    """The row of a table that begins with `start`, by its heads."""
    table = next(one for one in text.split("<table")[1:] if f"<td>{start}</td>" in one)
    heads = re.findall("<th scope=col>(.*?)</th>", table)
    row = table.split(f"<td>{start}</td>")[1].split("</tr>")[0]
    return dict(zip(heads[1:], re.findall("<td>(.*?)</td>", row), strict=True))


def test_the_guarantee_stays_the_highest_limit_when_the_policy_lowers_it():
    """Limit 10 lowered to 1.5 with 2 spent: what was released under 10 stays released."""
    sample, known = job(), accounts()
    known[2].epsilon_limit = 1.5
    sample.nodes[2].account_epsilon_limit = 1.5
    text = full(job=sample, accounts=known)
    for row in (cells(text, known[2].account), cells(text, sample.nodes[2].name)):
        assert (row["Limit now"], row["Guarantee"], row["Delta"]) == ("1.5", "10", "1e-5")
    assert cells(text, sample.nodes[2].name)["Target of this job"] == "2"
    words = Page(text).words
    assert "The guarantee is the highest limit that was ever in force" in words
    assert "The limit is the guarantee" not in words
    none = full(accounts=accounts(guarantee=False))
    assert "none, for ever" in cells(none, known[0].account)["Guarantee"]


def test_a_report_has_the_naive_sum_and_both_efficiencies_beside_what_is_booked():
    """As `budget show` has them; an account of a coordinator that does not tell has dashes."""
    row = cells(full(), "cleveland/patients")
    names = ("Running epsilon, all jobs", "Booked", "Naive sum", "Efficiency", "Of naive")
    assert [row[name] for name in names] == ["2", "2", "3.96", "1.000", "0.505"]
    old = accounts()
    for name in ("epsilon_booked", "epsilon_naive", "booked_to_naive", "epsilon_guarantee"):
        old[0].ClearField(name)
    row = cells(full(accounts=old), "cleveland/patients")
    assert [row[name] for name in ("Booked", "Naive sum", "Of naive", "Guarantee")] == ["–"] * 4


def test_who_was_left_out_is_told_with_the_reason():
    """Nobody is dropped silently."""
    words = Page(full()).words
    assert "nothing was heard for 10 s after its stream broke" in words
    assert "SILENT" in words
    assert "Every hospital's update was in every round." in Page(full(job=job(rounds=1))).words


def test_every_plot_is_there_once():
    """Epsilon, movement, test figures, time, bytes."""
    text = full()
    assert text.count("<svg") == 5
    assert text.count("<figcaption>") == 5
    assert Page(full(metrics=None)).words.count("Accuracy and AUC") == 0


def test_a_plot_shows_each_value_and_its_limit():
    """Values stand in the drawing as tooltips, lines that are limits are dashed."""
    text = full()
    assert "<title>1.414</title>" in text
    assert re.search(r'class="series dashed s-4"', text)
    assert "target 2" in Page(text).words


def test_a_hospital_that_sat_a_round_out_keeps_its_epsilon():
    """Its line goes on level; what was spent is spent."""
    dots = (
        full()
        .split('<g class="series serie-2 s-2"><g class="dots">')[1]
        .split('<g class="series')[0]
    )
    assert re.findall("<title>(.*?)</title>", dots) == ["1", "1", "1.732", "2"]


@pytest.mark.parametrize("rounds", [0, 1, 100])
def test_any_number_of_rounds_renders(rounds):
    """From a job that has not begun to the longest allowed."""
    text = (
        render(job(rounds=rounds), metrics=None, accounts=None, spec=SPEC)
        if rounds
        else full(job=Job(name="new", status="waiting", rounds_planned=4))
    )
    assert text.endswith("</html>\n")
    assert len(text) < 600_000


def test_test_figures_that_do_not_exist_are_dashes():
    """A hospital with one class has no AUC."""
    row = full().split("<td>switzerland</td>")[2].split("</tr>")[0]
    assert row == "<td>0.940</td><td>–</td><td>–</td>"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1.99991, "2"),
        (1.7321, "1.733"),
        (2.0, "2"),
        (0.0, "0"),
        (12345.0, "1.235e+04"),
        (0.1, "0.1"),
    ],
)
def test_a_shown_epsilon_is_never_below_the_true_one(value, shown):
    """Four digits, rounded up."""
    assert epsilon(value) == shown
    assert float(epsilon(value)) >= value


def test_the_page_reads_on_light_on_dark_and_on_paper():
    """Colours are variables with a dark set; paper keeps the light one."""
    text = full()
    assert "@media screen and (prefers-color-scheme: dark)" in text
    assert "@media print" in text
    assert not re.search(r"<svg[^>]*>.*?(fill|stroke)=", text, re.S)
