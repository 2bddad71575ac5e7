"""Settings: which source wins, what is refused, and that secrets are never shown."""

import pytest

from oneway.errors import CorruptDataError, InvalidOptionError, MissingDataError, UnknownNameError
from oneway.serving import ServingSettings, load_settings

SECRET = "correct-horse-battery"


def test_the_command_line_goes_before_the_environment_before_the_file(tmp_path, monkeypatch):
    file = tmp_path / "serve.toml"
    file.write_text('port = 1\nhost = "10.0.0.1"\nmodel_name = "filed"\n')
    monkeypatch.setenv("ONEWAY_SERVE_PORT", "2")
    monkeypatch.setenv("ONEWAY_SERVE_HOST", "10.0.0.2")
    how = load_settings(file, {"port": 3})
    assert (how.port, how.host, how.model_name, how.decimals) == (3, "10.0.0.2", "filed", None)
    assert load_settings(file, {}).port == 2
    monkeypatch.delenv("ONEWAY_SERVE_PORT")
    assert load_settings(file, {}).port == 1


def test_an_unknown_setting_is_refused_with_the_nearest(tmp_path, monkeypatch):
    file = tmp_path / "serve.toml"
    file.write_text("prot = 1\n")
    for source, given in ((None, {"prot": 1}), (file, {})):
        with pytest.raises(UnknownNameError, match="Did you mean 'port'"):
            load_settings(source, given)
    monkeypatch.setenv("ONEWAY_SERVE_PROT", "1")
    with pytest.raises(UnknownNameError, match="Did you mean 'port'"):
        load_settings(None, {})


def test_a_value_outside_its_range_is_refused_by_name():
    for given, said in (
        ({"port": 70000}, "port"),
        ({"port": "http"}, "port"),
        ({"decimals": 13}, "decimals"),
        ({"model_name": "../x"}, "model_name"),
        ({"tls_key": "key.pem"}, "go together"),
        ({"token": SECRET, "token_file": "x"}, "one of token"),
        ({"max_waiting_rows": 1}, "max_waiting_rows"),
        ({"timeout_seconds": 0}, "timeout_seconds"),
        ({"metrics": "perhaps"}, "metrics"),
    ):
        with pytest.raises(InvalidOptionError, match=said):
            load_settings(None, given)


def test_a_file_that_is_missing_or_no_toml_is_refused(tmp_path):
    with pytest.raises(MissingDataError):
        load_settings(tmp_path / "no.toml", {})
    file = tmp_path / "serve.toml"
    file.write_text(f"port = 1\ntoken = {SECRET}")
    with pytest.raises(CorruptDataError, match=r"at line 2, column 9\)\.$") as caught:
        load_settings(file, {})
    assert SECRET not in str(caught.value)


def test_secrets_are_never_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("ONEWAY_SERVE_TOKEN", SECRET)
    how = load_settings(None, {"key": SECRET[::-1]})
    assert SECRET not in repr(how) + str(how) + how.model_dump_json()
    assert SECRET[::-1] not in repr(how) + str(how) + how.model_dump_json()
    assert how.bearer_token() == SECRET.encode()
    assert how.guard_key() == SECRET[::-1].encode()
    with pytest.raises(InvalidOptionError) as caught:
        load_settings(None, {"key": [SECRET]})
    assert SECRET not in str(caught.value)
    monkeypatch.delenv("ONEWAY_SERVE_TOKEN")
    short = tmp_path / "token"
    short.write_text(SECRET[:15])
    with pytest.raises(InvalidOptionError) as caught:
        load_settings(None, {"token_file": str(short)}).bearer_token()
    assert SECRET[:15] not in str(caught.value)


def test_secrets_come_from_files_without_their_line_break(tmp_path):
    file = tmp_path / "token"
    file.write_text(SECRET + "\n")
    assert load_settings(None, {"token_file": str(file)}).bearer_token() == SECRET.encode()
    with pytest.raises(MissingDataError):
        load_settings(None, {"token_file": str(tmp_path / "no")}).bearer_token()


def test_settings_cannot_be_changed_and_all_are_described():
    how = ServingSettings()
    with pytest.raises(ValueError, match="frozen"):
        how.port = 1
    assert all(field.description for field in ServingSettings.model_fields.values())
