"""Settings: refused when they are wrong, unchanged when they travel."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hf_mpwriter
from hf_mpwriter.base import settings, state
from hf_mpwriter.base.arguments import patterns
from hf_mpwriter.base.errors import HfMpWriterError, SettingsError
from hf_mpwriter.base.names import is_hidden
from hf_mpwriter.base.settings import (
    DEFAULT_ENDPOINT,
    Destination,
    Environment,
    Settings,
    check_repo_id,
    live_bucket,
    normalised_endpoint,
    typed_repo_id,
)

GLOBS = st.lists(st.text("abc*?[]!/.", max_size=6), max_size=3)
SETTINGS = st.builds(
    Settings,
    commit_every=st.floats(0.001, 1e6),
    squash_history=st.booleans(),
    private=st.none() | st.booleans(),
    allow_patterns=st.none() | GLOBS.map(lambda globs: patterns("patterns", globs)),
    ignore_patterns=GLOBS.map(lambda globs: patterns("patterns", globs)),
    exit_timeout=st.floats(0, 1e6),
)


@given(st.text("ab9-_./ \nü", max_size=12) | st.text("a", min_size=90, max_size=100))
def test_a_repo_id_is_valid_if_huggingface_hub_says_so(repo_id):
    """The rule is the client's, asked without loading it."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        with pytest.raises(SettingsError):
            check_repo_id(repo_id)
    else:
        assert check_repo_id(repo_id) == repo_id


@pytest.mark.parametrize(
    "bad",
    [
        {"repo_id": None},
        {"repo_id": "a/b/c"},
        {"repo_type": "models"},
        {"endpoint": "huggingface.co"},
        {"endpoint": ""},
        {"endpoint": "http://"},
        {"endpoint": "http://127.0.0.1:22437,"},
        {"endpoint": "http://127.0.0.1:99999"},
        {"path_in_repo": "a/../b"},
        {"path_in_repo": ".."},
    ],
)
def test_a_wrong_destination_is_refused_with_a_hint(bad):
    """SettingsError, which is a ValueError and one of ours, before anything is written."""
    with pytest.raises(SettingsError) as caught:
        Destination(**{"endpoint": DEFAULT_ENDPOINT, "repo_id": "me/run", **bad})
    assert isinstance(caught.value, (ValueError, HfMpWriterError))
    assert str(caught.value)


def test_a_destination_says_where_a_file_goes():
    """The folder comes first if there is one."""
    assert Destination("https://x", "me/run").path("a/b") == "a/b"
    there = Destination("https://x", "me/run", "dataset", "dev", "logs/exp1")
    assert there.path("a/b") == "logs/exp1/a/b"
    assert str(there) == "https://x/datasets/me/run@dev/logs/exp1"


@pytest.mark.parametrize("url", ["http://[::1]:8080", "https://hub.example.org/team/", "http://localhost:65535"])
def test_the_url_of_any_hub_is_taken(url):
    """With a port, a path, or an address."""
    assert Destination(url, "me/run").endpoint == url


@pytest.mark.parametrize("value", [-1, math.inf, math.nan, "5", None])
@pytest.mark.parametrize("name", ["commit_every", "exit_timeout"])
def test_times_are_finite_numbers(name, value):
    """Anything else is refused at once, by its name, not by an uploader that never commits or an end that never is."""
    with pytest.raises(SettingsError, match=name):
        Settings(**{name: value})
    with pytest.raises(SettingsError, match="commit_every"):
        Settings(commit_every=0)
    assert Settings(exit_timeout=0).exit_timeout == 0


@pytest.mark.parametrize(("longest", "expected"), [(None, 60), (1000, 60), (25, 25), (0, 0)])
def test_no_wait_exceeds_the_limit_of_the_environment(longest, expected):
    """The process has to end before the SIGKILL, and say what is missing."""
    assert Settings(exit_timeout=60).within(longest).exit_timeout == expected


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("me/run", ("model", "me/run")),
        ("run", ("model", "run")),
        ("datasets/me/run", ("dataset", "me/run")),
        ("datasets/run", ("dataset", "run")),
        ("spaces/me/run", ("space", "me/run")),
    ],
)
def test_the_type_of_a_repository_stands_before_its_id(text, found):
    """As in the addresses of the Hub."""
    assert typed_repo_id(text) == found


@pytest.mark.parametrize("text", ["", "datasets/", "a/b/c", "datasets/a/b/c", "dataset/me/run"])
def test_what_is_no_id_behind_its_type_is_refused(text):
    """By the rule for ids."""
    with pytest.raises(SettingsError, match="is not valid"):
        typed_repo_id(text)


@given(SETTINGS)
def test_settings_travel_in_a_member_file_unchanged(settings):
    """To JSON and back they are equal."""
    assert state.load(Settings, state.dump(settings)) == settings


@pytest.mark.parametrize(
    "loose",
    [
        *({"private": value} for value in (0, 1, 0.0, np.True_)),
        *({"exit_timeout": value} for value in (False, True, 0, np.float64(2.5))),
        *({"commit_every": value} for value in (True, 1, np.float64(0.5))),
    ],
)
def test_values_that_are_almost_of_a_type_travel_as_that_type(loose):
    """`repo_private=1` is private: if its member file counted as damaged, the defaults would win, and be public."""
    settings = Settings(**loose)
    assert state.load(Settings, state.dump(settings)) == settings
    assert type(settings.private) in (bool, type(None))
    assert {type(settings.commit_every), type(settings.exit_timeout)} == {float}


@given(
    st.lists(st.text("abc/.", min_size=1, max_size=6), max_size=4),
    st.none() | st.lists(st.text("abc*?/.", max_size=5), max_size=3),
    st.lists(st.text("abc*?/.", max_size=5), max_size=3),
)
def test_patterns_select_what_huggingface_hub_selects(paths, allow, ignore):
    """The same files as upload_folder with the same patterns, but those with a dot in front that no pattern names."""
    from huggingface_hub.utils import filter_repo_objects

    wanted = list(filter_repo_objects(paths, allow_patterns=allow, ignore_patterns=ignore))
    allowed = None if allow is None else patterns("repo_allow_patterns", allow)
    ours = Settings(allow_patterns=allowed, ignore_patterns=patterns("repo_ignore_patterns", ignore))
    found = [path for path in paths if ours.allows(path)]
    assert found == [path for path in wanted if path in found or not is_hidden(path)]


@pytest.mark.parametrize("allowed", [None, ("*",), ("*.env", "*/x")])
def test_a_file_with_a_dot_in_front_is_sent_only_if_a_pattern_names_the_dot(allowed):
    """As in a shell: secrets lie in such files. What our writers make is sent, whatever its tag is called."""
    for path in (".env", "a/.env", ".git/x", "a/.b/x"):
        assert not Settings(allow_patterns=allowed).allows(path)
        assert Settings(allow_patterns=(".env", "*/.env", ".git/*", "a/.b/*")).allows(path)
    everything = Settings(allow_patterns=None)
    assert all(map(everything.allows, ("a.env", ".tag/events.out.tfevents.1.theirs", "0/.tag/tensors.tsv")))


def test_what_a_run_has_lost_goes_with_it_whatever_the_patterns_are():
    """It is no choice of who lost it; other files of that folder are."""
    settings = Settings(allow_patterns=("*.tsv",), ignore_patterns=("*.json",))
    assert settings.allows("_lost/main.h-1.2.3-1.209.json")
    for theirs in ("notes.txt", "notes.json", ".aws/x.json", "private/main.h-1.2.3-1.209.json", "main.h-1.2.3-1.json"):
        assert not settings.allows(f"_lost/{theirs}")
    assert not settings.allows("deep/_lost/main.h-1.2.3-1.209.json")


@pytest.mark.parametrize("text", ["soon", "", "1 min"])
def test_an_exit_timeout_of_the_environment_that_is_no_time_is_refused(text):
    """The message names the variable: the user did not write `exit_timeout` anywhere."""
    with pytest.raises(SettingsError, match="HF_MPWRITER_EXIT_TIMEOUT"):
        Environment.read({"HF_MPWRITER_EXIT_TIMEOUT": text})


def test_the_environment_is_read_in_one_place():
    """Defaults, an endpoint without its slash, and what counts as switched off."""
    assert Environment.read({}) == Environment(DEFAULT_ENDPOINT, disabled=False, exit_timeout=None)
    assert Environment.read({"HF_ENDPOINT": ""}).endpoint == DEFAULT_ENDPOINT
    assert Environment.read({"HF_ENDPOINT": "http://x/"}).endpoint == "http://x"
    assert Environment.read({"HF_MPWRITER_EXIT_TIMEOUT": "2.5"}).exit_timeout == 2.5
    for text in ("1", "true", " ON ", "Yes"):
        assert Environment.read({"HF_MPWRITER_DISABLED": text}).disabled
    for text in ("", "0", "no", "false"):
        assert not Environment.read({"HF_MPWRITER_DISABLED": text}).disabled


@pytest.mark.parametrize(
    "url", ["https://Hub.Example/", "HTTPS://hub.example", "https://hub.example:443", " https://hub.example// "]
)
def test_urls_of_one_hub_are_equal_once_normalised(url: str) -> None:
    """Case of scheme and host, the default port and trailing slashes make no other Hub."""
    assert normalised_endpoint(url) == "https://hub.example"


@pytest.mark.parametrize(
    "url",
    [
        "http://hub.example",
        "https://hub.example:8443",
        "https://hub.example/Path",
        "https://hub.example.org",
        "https://hub.exa\tmple",
        "https://hub.example#.org",
        "https://hub.example\\.org",
        "https://[hub.example",
    ],
)
def test_urls_of_different_hubs_stay_different(url: str) -> None:
    """Scheme, port, host and path, in its case, tell one Hub from another; what readers read differently is no Hub."""
    assert normalised_endpoint(url) != "https://hub.example"


def test_every_variable_of_the_package_is_known():
    """One that is added must be added there too: else each use of it would be called a mistake."""
    package = Path(hf_mpwriter.__file__).parent
    named = {name for path in package.rglob("*.py") for name in re.findall(r"HF_MPWRITER_[A-Z_]+", path.read_text())}
    assert named - settings.VARIABLES - {settings.PREFIX} == set()


def test_a_variable_that_does_not_exist_is_found():
    """One of another program is not ours."""
    environ = {"HF_MPWRITER_NODES": "5", "HF_MPWRITER_repo_id": "me/run", "HF_TOKEN": "x", "MY_HF_MPWRITER_GRACE": "5"}
    assert settings.unknown_variables(environ) == ["HF_MPWRITER_repo_id"]


@pytest.mark.parametrize(
    ("live", "kind", "branch", "bucket"),
    [
        (None, "model", "main", ""),
        (False, "model", "main", ""),
        (True, "model", "main", "me/run-live"),
        (True, "dataset", "main", "me/run-dataset-live"),
        (True, "model", "feature/x--y", "me/run-feature-x-y-live"),
        ("team/board", "dataset", "other", "team/board"),
    ],
)
def test_a_live_bucket_has_a_name_of_its_own_for_each_kind_and_branch(live, kind, branch, bucket):
    """Buckets of an account have one namespace."""
    assert live_bucket(live, Destination("https://hub", "me/run", kind, branch)) == bucket


def test_a_run_without_a_repository_has_no_live_bucket():
    """The bucket is beside a repository; a name that no bucket can have is refused."""
    assert live_bucket(True, None) == ""
    with pytest.raises(SettingsError, match=r"live 'no name' is not valid"):
        live_bucket("no name", Destination("https://hub", "me/run"))
