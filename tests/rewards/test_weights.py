"""Where weights are looked for, in which order, and what is said when they are nowhere."""

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from rtdmd_lightning.rewards import weights
from rtdmd_lightning.rewards.weights import CACHE_VARIABLE, loading, locate
from rtdmd_lightning.utils.errors import UserError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A reward cache with one folder of weights."""
    (tmp_path / "cache" / "pretty").mkdir(parents=True)
    (tmp_path / "cache" / "pretty" / "head.pt").touch()
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def hub(monkeypatch):
    """What was asked of the hub; it has one file."""
    asked = []

    def download(repository: str, filename: str) -> str:
        asked.append((repository, filename))
        if filename != "head.pt":
            raise LocalEntryNotFoundError("Cannot find it.\nAnd much more.")
        return "/hub/head.pt"

    monkeypatch.setattr(weights, "hf_hub_download", download)
    return asked


def test_what_the_user_names_wins(cache, hub, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    (own / "head.pt").touch()
    assert locate("pretty", "them/pretty", str(own)) == str(own)
    assert locate("pretty", "them/pretty", str(own), "head.pt") == str(own / "head.pt")
    assert locate("pretty", "them/pretty", str(own / "head.pt"), "head.pt") == str(own / "head.pt")
    assert locate("pretty", "them/pretty", "me/pretty") == "me/pretty"
    assert hub == []
    assert locate("pretty", "them/pretty", "me/pretty", "head.pt") == "/hub/head.pt"
    assert hub == [("me/pretty", "head.pt")]


def test_then_the_cache_then_the_hub(cache, hub, monkeypatch):
    assert locate("pretty", "them/pretty") == str(cache / "pretty")
    assert locate("pretty", "them/pretty", filename="head.pt") == str(cache / "pretty" / "head.pt")
    assert locate("other", "them/other") == "them/other"
    assert hub == []
    assert locate("other", "them/other", filename="head.pt") == "/hub/head.pt"
    monkeypatch.delenv(CACHE_VARIABLE)
    assert locate("pretty", "them/pretty") == "them/pretty"
    assert locate("pretty", "them/pretty", filename="head.pt") == "/hub/head.pt"


@pytest.mark.parametrize("path", ["/no/such", "./no", "../no/such", "~/no", "a/b/c", "no/such.pt", "head.safetensors"])
def test_a_path_that_does_not_exist_is_no_hub_id(hub, path):
    with pytest.raises(UserError, match=f"pretty: the weights {path} do not exist"):
        locate("pretty", "them/pretty", path, "head.pt")
    assert hub == []


def test_a_folder_without_the_file_is_told(tmp_path):
    with pytest.raises(UserError, match=r"has no file head\.pt"):
        locate("pretty", "them/pretty", str(tmp_path), "head.pt")


def test_a_file_that_cannot_be_downloaded_is_told_with_the_command(hub):
    with pytest.raises(UserError) as caught:
        locate("pretty", "them/pretty", filename="tail.pt")
    assert "`hf download them/pretty tail.pt`" in str(caught.value)
    assert f"${CACHE_VARIABLE}/pretty" in str(caught.value)
    assert "Cannot find it." in str(caught.value) and "much more" not in str(caught.value)


def test_loading_tells_a_broken_folder_from_one_to_fetch(tmp_path):
    with pytest.raises(UserError, match="hf download them/pretty"), loading("pretty", "them/pretty"):
        raise OSError("offline")
    with (
        pytest.raises(UserError, match=f"cannot load the weights {tmp_path}: cut short"),
        loading("pretty", str(tmp_path)),
    ):
        raise OSError("cut short")


def test_the_real_hub_is_asked_and_is_offline_here(monkeypatch):
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    with pytest.raises(UserError, match=r"hf download them/nothing-of-this-name head\.pt"):
        locate("pretty", "them/nothing-of-this-name", filename="head.pt")
