"""Folders and browsers are found without making or starting any."""

import sys
import webbrowser

import pytest

from oneway.errors import MissingExtraError
from oneway.installation import download_folder, find_browser, measure_folder, places


def test_a_folder_is_measured_whole_and_not_made(tmp_path):
    gone = measure_folder("networks", tmp_path / "a" / "b")
    assert (gone.size, gone.files, gone.writable) == (None, 0, True)
    assert not (tmp_path / "a").exists()
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert measure_folder("networks", tmp_path / "a").size == 0
    (tmp_path / "a" / "one").write_bytes(b"123")
    (tmp_path / "a" / "b" / "two").write_bytes(b"4567")
    found = measure_folder("networks", tmp_path / "a")
    assert (found.size, found.files, found.purpose) == (7, 2, "networks")


def test_a_relative_folder_is_said_in_full(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    found = measure_folder("networks", places.Path("runs"))
    assert found.path == tmp_path / "runs"


def test_downloads_have_a_folder_where_something_downloads(monkeypatch):
    pytest.importorskip("pooch")
    assert download_folder().name == "oneway"
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(MissingExtraError, match=r"oneway\[demo\]"):
        download_folder()


def test_a_browser_is_found_by_its_command_or_by_the_system(monkeypatch):
    there = {"firefox": "/usr/bin/firefox", "chromium": "/usr/bin/chromium"}
    monkeypatch.setattr(places.shutil, "which", there.get)
    assert find_browser() == "/usr/bin/chromium"
    there.clear()
    monkeypatch.setattr(webbrowser, "get", lambda: webbrowser.GenericBrowser("own"))
    assert find_browser() == "own"

    def none():
        raise webbrowser.Error("could not locate runnable browser")

    monkeypatch.setattr(webbrowser, "get", none)
    assert find_browser() is None
