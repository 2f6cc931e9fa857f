"""The coordinator's configuration file: what loads, what is refused, what is remarked."""

import os
from pathlib import Path

import pytest
import yaml

from coordinator.config.config import CoordinatorConfig, effects, load_config, render_full
from coordinator.config.keys import bounds, extra
from protos.errors import Malformed

ROOT = Path(__file__).resolve().parents[3]

GUIDE = {
    "server": {"host": "0.0.0.0", "port": 8443, "ssl_enabled": True},  # noqa: S104
    "privacy": {
        "epsilon_per_query": 0.05,
        "delta": 1e-6,
        "max_budget_per_user": 5.0,
        "noise_multiplier": 1.5,
        "mechanism": "rdp",
    },
    "routing": {
        "strategy": "quantum_optimized",
        "max_concurrent_requests": 500,
        "timeout": 45.0,
        "load_balancing": "weighted_response_time",
    },
    "security": {"enable_mtls": True, "token_expiry": 1800, "rate_limit_per_user": 30},
    "compliance": {
        "frameworks": ("hipaa", "gdpr", "hitech"),
        "audit_retention_days": 2555,
        "enable_detailed_logging": True,
        "pii_encryption_required": True,
    },
    "monitoring": {
        "prometheus_endpoint": "http://prometheus:9090",
        "grafana_endpoint": "http://grafana:3000",
        "log_level": "INFO",
        "metrics_retention": "30d",
        "alert_webhook": "https://alerts.health-network.local/webhook",
    },
    "federation": {
        "coordinator_role": True,
        "aggregation_method": "fedprox",
        "min_participants": 3,
        "max_rounds": 100,
        "convergence_threshold": 0.001,
    },
}


def load(folder: Path, text: str, environ: dict[str, str] | None = None) -> CoordinatorConfig:
    """Load `text` as a file in `folder`."""
    path = folder / "coordinator.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, environ or {})


def refusal(folder: Path, text: str, environ: dict[str, str] | None = None) -> str:
    """The message with which `text` is refused."""
    with pytest.raises(Malformed) as caught:
        load(folder, text, environ)
    assert caught.value.reason == "CONFIG_INVALID"
    return caught.value.message


def test_the_guides_production_file_loads_with_its_values():
    """Every key of the deployment guide is known and arrives as the number that it looks like."""
    config = load_config(ROOT / "config" / "production.yaml", {})
    for section, keys in GUIDE.items():
        for name, value in keys.items():
            assert getattr(getattr(config, section), name) == value, f"{section}.{name}"
    assert config.server.ssl_cert == Path("/certs/tls.crt")
    assert len(config.security.allowed_origins) == 3


def test_the_guides_delta_is_text_to_yaml_and_a_number_to_us(tmp_path):
    """YAML 1.1 reads 1e-6 as text; people mean the number."""
    assert yaml.safe_load("1e-6") == "1e-6"
    assert load(tmp_path, "privacy: {delta: 1e-6}").privacy.delta == 1e-6


def test_an_empty_file_gives_the_defaults_beside_it(tmp_path):
    """Nothing has to be written down; state lives beside the file."""
    config = load(tmp_path, "")
    assert config.storage.database_url == f"sqlite:///{tmp_path}/coordinator.db"
    assert config.storage.blob_dir == tmp_path / "blobs"
    assert config.storage.pki_dir == tmp_path / "pki"
    assert (config.server.public_port, config.server.public_enrollment_port) == (8443, 8444)
    assert config.server.health_host == "127.0.0.1"


def test_a_section_whose_keys_are_all_commented_out_keeps_its_defaults(tmp_path):
    """`privacy:` with nothing below it is null in YAML."""
    assert load(tmp_path, "privacy:\n  # delta: 1e-6\n").privacy.delta == 1e-5


def test_a_path_is_relative_to_the_file_not_to_the_shell(tmp_path, monkeypatch):
    """The same file means the same folders wherever the process was started."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "conf").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "conf" / "c.yaml").write_text(
        "storage: {blob_dir: a, database_url: 'sqlite:///d.db'}"
    )
    config = load_config(Path("../conf/c.yaml"), {})
    assert config.storage.blob_dir.resolve() == tmp_path / "conf" / "a"
    assert config.storage.database_url == f"sqlite:///{tmp_path}/elsewhere/../conf/d.db"


def test_the_model_registry_is_where_blobs_go_unless_storage_says_otherwise(tmp_path):
    """The guide's key has its effect, and storage.blob_dir goes before it."""
    registry = "federation: {model_registry: /models}\n"
    assert load(tmp_path, registry).storage.blob_dir == Path("/models")
    config = load(tmp_path, registry + "storage: {blob_dir: /other}")
    assert config.storage.blob_dir == Path("/other")
    assert "federation.model_registry" in {finding.key for finding in effects(config)}


def test_every_fault_of_a_file_is_reported_at_once(tmp_path):
    """Nobody has to mend one line to learn of the next; each line has file, key and bounds."""
    message = refusal(
        tmp_path,
        "server: {prot: 1, port: 99999}\n"
        "privcy: {}\n"
        "privacy: {delta: .nan, max_grad_norm: abc, epsilon_per_query: true}\n"
        "monitoring: 3\n"
        "compliance: {frameworks: hipaa}\n"
        "federation: {deadline_s: 0, min_participants: }\n",
    )
    lines = message.splitlines()
    assert lines[0].startswith("10 faults")
    for expected in (
        "server.prot: unknown key; did you mean server.port?",
        "server.port: is out of bounds, got 99999 (allowed: at least 1, at most 65535)",
        "privcy: unknown key; did you mean privacy?",
        "privacy.delta: must be a finite number",
        "privacy.max_grad_norm: must be a number, got 'abc'",
        "privacy.epsilon_per_query: must not be true or false",
        "monitoring: must be a mapping",
        "compliance.frameworks: must be a list",
        "federation.deadline_s: is out of bounds, got 0 (allowed: at least 1, at most 604800)",
        "federation.min_participants: must be a whole number, got nothing",
    ):
        assert sum(expected in line for line in lines) == 1, expected
    assert all(str(tmp_path / "coordinator.yaml") in line for line in lines[1:])


def test_a_key_in_the_wrong_section_is_answered_with_the_right_one(tmp_path):
    """A good key in a bad place is no mystery."""
    message = refusal(tmp_path, "privacy: {node_silent_s: 30}")
    assert "did you mean federation.node_silent_s?" in message


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("server: {ssl_enabled: false}", "travel in the clear"),
        ("security: {enable_mtls: false}", "pose as a hospital"),
        ("federation: {coordinator_role: false}", "this program is the coordinator"),
        ("federation: {min_participants: 1}", "at least 2"),
        ("federation: {aggregation_method: krum}", "one of fedprox"),
        ("federation: {node_silent_s: 10}", "must be above federation.heartbeat_interval_s"),
        ("server: {enrollment_port: 8443}", "server.port has the same port"),
        ("server: {transfer_port: 8443}", "server.port has the same port"),
        ("server: {transfer_address: 'localhost:8445'}", "give server.transfer_port too"),
        (
            "server: {transfer_port: 8445, transfer_address: 'inside.example:22'}",
            "with the host of server.public_host, or a name under it",
        ),
        ("server: {health_port: 8444}", "server.enrollment_port has the same port"),
        ("server: {ssl_cert: a.pem}", "go together"),
        ("server: {ssl_key: a.pem}", "go together"),
        ("storage: {database_url: 'sqlite://'}", "in one SQLite file"),
        ("storage: {database_url: 'sqlite:///:memory:'}", "in one SQLite file"),
        ("privacy: {noise_multiplier: .inf}", "finite"),
        ("privacy: {noise_multiplier: 0}", "above 0"),
        ("privacy: {delta: 0.2}", "at most 0.1"),
        ("monitoring: {alert_webhook: 'http://alerts.example/x'}", "by HTTPS alone"),
        ("monitoring: {alert_webhook: 'file:///etc/passwd'}", "by HTTPS alone"),
        ("monitoring: {alert_webhook: 'https://u:p@alerts.example/'}", "no user"),
        ("monitoring: {alert_webhook: 'https://alerts.example:99999/'}", "up to 65535"),
        ("monitoring: {alert_webhook: 'https://alerts..example/'}", "empty or longer"),
        (f"monitoring: {{alert_webhook: 'https://{'a' * 64}.example/'}}", "empty or longer"),
        ("monitoring: {alert_webhook: 'https://alerts.example/f\u00fc'}", "not ASCII"),
        ("monitoring: {trace_endpoint: collector:4317}", "https://HOST:PORT"),
        ("monitoring: {trace_endpoint: 'https://u@collector:4317'}", "https://HOST:PORT"),
        ("monitoring: {trace_sample_ratio: 1.5}", "at most 1"),
    ],
)
def test_what_is_dangerous_or_contradictory_is_refused_with_a_sentence(tmp_path, text, sentence):
    """A coordinator never starts in a state that only looks protected."""
    assert sentence in refusal(tmp_path, text)


def test_no_error_repeats_a_password(tmp_path):
    """A database address may hold one, and errors end up in tickets."""
    message = refusal(tmp_path, "storage: {database_url: 'postgresql://u:hunter2@db/x'}")
    assert "hunter2" not in message
    message = refusal(tmp_path, "monitoring: {alert_webhook: 'http://alerts.example/hunter2'}")
    assert "hunter2" not in message


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("server: {port: 1, port: 2}", "line 1 gives 'port' again"),
        ("a: &a [1]\nb: &b [*a, *a]\nserver: &s {x: *s}", "refers to itself"),
        ("server: !!python/object/apply:os.system [ls]", "quote it"),
        ("server: 2024-01-01", "quote it"),
        ("[1, 2]", "must be a mapping"),
        ("server: {port: 1", "not valid YAML"),
        ("server: [" * 40, "nests deeper"),
        ("1: 2", "is not text"),
        ("? [a]\n: 1", "is not text"),
    ],
)
def test_yaml_that_is_not_plain_is_refused(tmp_path, text, sentence):
    """No key is dropped silently, and nothing in a file makes objects or recursion."""
    assert sentence in refusal(tmp_path, text)


def test_a_file_that_cannot_be_read_says_how_to_make_one(tmp_path):
    """The first thing that goes wrong for a newcomer."""
    with pytest.raises(Malformed, match="coordinator init"):
        load_config(tmp_path / "absent.yaml", {})


def test_the_environment_goes_before_the_file(tmp_path):
    """FEDDP_SECTION__KEY overrides one key; variables of other shapes are not ours."""
    environ = {
        "FEDDP_SERVER__PORT": "9443",
        "FEDDP_PRIVACY__DELTA": "1e-7",
        "FEDDP_SECURITY__ALLOWED_ORIGINS": '["https://a", https://b]',
        "FEDDP_PROFILE": "x",
        "PATH": os.defpath,
    }
    config = load(tmp_path, "server: {port: 8000}", environ)
    assert config.server.port == 9443
    assert config.privacy.delta == 1e-7
    assert config.security.allowed_origins == ("https://a", "https://b")


def test_faults_of_the_environment_name_the_variable(tmp_path):
    """The line to mend is not in the file."""
    environ = {"FEDDP_SERVER__PORT": "x", "FEDDP_SEVER__PORT": "1", "FEDDP_SERVER__PRT": "1"}
    message = refusal(tmp_path, "privacy: {delta: 1}", environ)
    assert message.startswith("4 faults")
    assert "environment FEDDP_SERVER__PORT: server.port: must be a whole number" in message
    assert "FEDDP_SEVER__PORT: no section sever; did you mean server?" in message
    assert "environment FEDDP_SERVER__PRT: server.prt: unknown key" in message


def test_the_full_example_is_what_the_code_says(tmp_path):
    """config/full.yaml shows every key; `python -m coordinator.config.full` writes it."""
    committed = (ROOT / "config" / "full.yaml").read_text(encoding="utf-8")
    assert committed == render_full()
    assert load(tmp_path, committed) == load(tmp_path, "")
    for section, values in yaml.safe_load(committed).items():
        model = CoordinatorConfig.model_fields[section].annotation
        assert list(values) == list(model.model_fields)


def test_every_key_says_what_it_means():
    """A meaning for each key, and bounds wherever the type leaves room for nonsense."""
    for section, holder in CoordinatorConfig.model_fields.items():
        for name, field in holder.annotation.model_fields.items():
            assert field.description, f"{section}.{name}"
            free_text = field.annotation is str and name in ("host", "health_host", "public_host")
            assert bounds(field) or free_text, f"{section}.{name}"
            assert isinstance(extra(field, "no_effect"), str)


def test_keys_without_effect_are_named_only_when_the_file_sets_them(tmp_path):
    """`check` speaks about what somebody wrote down, not about defaults."""
    assert effects(load(tmp_path, "server: {host: 127.0.0.1}")) == []
    (finding,) = effects(
        load(
            tmp_path,
            "server: {host: 127.0.0.1}\nmonitoring: {log_level: INFO}\n"
            "compliance: {pii_encryption_required: true}",
        )
    )
    assert (finding.key, finding.level) == ("compliance.pii_encryption_required", "note")
    assert "encrypted volume" in finding.text


def test_every_key_of_the_guide_has_an_effect_or_is_named():
    """A reader of `check` learns about each key that does nothing."""
    config = load_config(ROOT / "config" / "production.yaml", {})
    named = {finding.key for finding in effects(config) if finding.text.startswith("no effect")}
    for section in ("routing", "compliance"):
        for name in GUIDE[section]:
            assert f"{section}.{name}" in named
    assert {"privacy.mechanism", "security.token_expiry"} <= named
    assert "monitoring.alert_webhook" not in named
    assert "monitoring.log_level" not in named
    assert "privacy.delta" not in named


@pytest.mark.parametrize(
    ("key", "figures"),
    [
        ("privacy.epsilon_per_query", ["epsilon 3.10 for one release", "noise multiplier of 69"]),
        ("privacy.max_budget_per_user", ["= 100 queries", "admits about 4995"]),
        ("privacy.max_budget_per_user", ["10 users", "epsilon 19.9"]),
        ("routing.timeout", ["under 200 ms", "45 s"]),
        ("routing.max_concurrent_requests", ["11 requests/s"]),
        ("security.rate_limit_per_user", ["120,000 users"]),
        ("compliance.audit_retention_days", ["short of 7 calendar years", "2557 days"]),
        ("privacy.noise_multiplier", ["20 full-batch steps", "epsilon 18"]),
    ],
)
def test_the_guides_contradictions_are_told_with_their_figures(key, figures):
    """Numbers that cannot hold together are computed from the file and said before the start."""
    findings = effects(load_config(ROOT / "config" / "production.yaml", {}))
    texts = [finding.text for finding in findings if finding.key == key]
    assert any(all(figure in text for figure in figures) for text in texts), texts


def test_contradictions_vanish_with_their_cause(tmp_path):
    """The figures come from formulas, not from a table of the guide's values."""
    text = (ROOT / "config" / "production.yaml").read_text(encoding="utf-8")
    for old, new in (
        ("noise_multiplier: 1.5", "noise_multiplier: 70"),
        ("audit_retention_days: 2555", "audit_retention_days: 2557"),
        ("max_concurrent_requests: 500", "max_concurrent_requests: 45000"),
    ):
        assert old in text
        text = text.replace(old, new)
    warned = {f.key for f in effects(load(tmp_path, text)) if f.level == "warning"}
    assert warned.isdisjoint(
        {
            "privacy.epsilon_per_query",
            "compliance.audit_retention_days",
            "routing.max_concurrent_requests",
        }
    )


def test_two_participants_are_allowed_and_warned_about(tmp_path):
    """With two, each sees the other's update by subtraction."""
    findings = effects(load(tmp_path, "federation: {min_participants: 2}"))
    assert [f.level for f in findings if f.key == "federation.min_participants"] == ["warning"]
