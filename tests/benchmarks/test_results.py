"""What the benchmarks write and print."""

import json
from pathlib import Path

import pytest

from benchmarks.cases import ALL, DEFAULT
from benchmarks.document import markdown, replaced
from benchmarks.fold_floor import fold_floor_s
from benchmarks.measuring import CpuTrace
from benchmarks.results import bound_of, peaks_beside_fewest_nodes, read, result, rows, write


def test_file_holds_the_fixed_names_and_reads_back(tmp_path: Path) -> None:
    """build/bench.json is a list of objects with exactly the names that others rely on."""
    path = tmp_path / "build" / "bench.json"
    results = [result("null-4x40KB", "round_time", 60.0, "ms", 3.0), result("idle-4", "x", 1, "s")]
    write(path, results)
    [first, second] = json.loads(path.read_text())
    assert list(first) == ["case", "metric", "value", "unit", "floor", "ratio"]
    assert (first["ratio"], second["floor"], second["ratio"]) == (20.0, None, None)
    assert read(path) == results


@pytest.mark.parametrize(("value", "held"), [(30.0, "yes"), (30.1, "NO")])
def test_value_is_compared_with_the_number_to_hold(value: float, held: str) -> None:
    """A bound on the value holds up to the bound itself."""
    [row] = rows([result("null-4x40KB", "round_time", value, "ms", 3.0)])
    assert row[-2:] == ("30", held)


@pytest.mark.parametrize(("value", "held"), [(2.0, "yes"), (2.1, "NO")])
def test_ratio_is_compared_where_the_ratio_is_to_hold(value: float, held: str) -> None:
    """A large round is to hold as so many times its floor, whatever the seconds."""
    [row] = rows([result("null-4x100MB", "round_time", 5 * value, "s", 5.0)])
    assert row[-2:] == ("ratio 2", held)


def test_peak_may_be_one_model_and_64_mib() -> None:
    """The coordinator's peak over idle is bound by its floor, one model, whatever the nodes."""
    bound = bound_of(result("null-16x100MB", "coordinator_peak_over_idle", 150, "MiB", 95.4))
    assert bound is not None
    assert bound.most == 159.0


def test_peak_with_many_nodes_is_compared_with_that_of_few() -> None:
    """The peak must not grow with the nodes; small models, all constant, are not compared."""
    metric = "coordinator_peak_over_idle"
    found = peaks_beside_fewest_nodes(
        [
            result("null-16x100MB", metric, 120, "MiB", 95.4),
            result("null-4x100MB", metric, 100, "MiB", 95.4),
            result("null-64x40KB", metric, 30, "MiB"),
            result("null-4x40KB", metric, 5, "MiB"),
        ]
    )
    [row] = rows(found)
    assert row == (
        *("null-16x100MB", "peak_beside_fewest_nodes", "120", "MiB", "100", "1.2"),
        *("ratio 1.1", "NO"),
    )


def test_every_case_is_there_by_its_name() -> None:
    """Names of cases are fixed; the longest runs only when it is named."""
    rounds = {"null-4x40KB", "null-64x40KB", "null-4x100MB", "null-16x100MB", "null-4x1GB"}
    ledger = {"4-writers-sqlite", "4-writers-postgresql", "10000-sqlite", "10000-postgresql"}
    ledger = {f"ledger-{name}" for name in (*ledger, "verify-100k")}
    steps = {"dp-sgd-step", "dp-sgd-step-mlp"}
    assert set(DEFAULT) == rounds | ledger | steps | {"start-4", "idle-4"}
    gateway = {"unary-passthrough", "unary-terminate", "upload-40ms"}
    gateway |= {"500-passthrough", "500-terminate"}
    replicas = {
        "replicas-4x40KB",
        "replicas-4x100MB",
        "transfer-4x100MB",
        "fleet-100",
        "fleet-1000",
    }
    growth = {"4x40KB", "16x40KB", "4x40KB-postgresql", "4x100MB"}
    named = (
        {"null-64x100MB", "ledger-verify-1M", "restore-1gb"}
        | replicas
        | {f"growth-{n}" for n in growth}
        | {f"gateway-{n}" for n in gateway}
    )
    assert set(ALL) - set(DEFAULT) == named


def test_a_rate_holds_from_its_bound_upwards() -> None:
    """Where more is better, less than the bound is NO."""
    for rate, held in ((42.0, "yes"), (19.0, "NO")):
        ((*_, bound, said),) = rows([result("gateway-upload-40ms", "upload_rate", rate, "MiB/s")])
        assert (bound, said) == ("at least 20", held)


def test_table_is_written_between_its_markers_only() -> None:
    """Writing again replaces the table and keeps every other byte; a missing marker is an error."""
    text = "a\n<!-- bench: begin -->\nold\n<!-- bench: end -->\nz\n"
    once = replaced(text, "bench", "| new |")
    assert once == "a\n<!-- bench: begin -->\n| new |\n<!-- bench: end -->\nz\n"
    assert replaced(once, "bench", "| new |") == once
    with pytest.raises(ValueError, match="peers: begin"):
        replaced(text, "peers", "")


def test_markdown_leaves_out_columns_without_an_entry() -> None:
    """A table of results without numbers to hold has no empty columns for them."""
    text = markdown([result("flower-4x40KB", "round_time", 30, "ms", 6000)], "flower")
    assert text.splitlines() == [
        "| case | metric | value | unit | flower | ratio |",
        "| --- | --- | --- | --- | --- | --- |",
        "| flower-4x40KB | round_time | 30 | ms | 6000 | 0.005 |",
    ]


def test_span_of_cpu_is_read_off_between_two_samples() -> None:
    """CPU seconds of a span that begins and ends between samples are interpolated."""
    trace = CpuTrace(pid=1)
    trace._times, trace._cpu_s = [10.0, 11.0, 12.0], [5.0, 5.0, 6.0]
    assert trace.between(10.5, 11.5) == pytest.approx(0.5)


def test_fold_floor_covers_values_beyond_the_last_whole_tile() -> None:
    """A model that no tile divides is folded to its end without an error."""
    assert fold_floor_s(nodes=2, parameters=100_001) > 0
