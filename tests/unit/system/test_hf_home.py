"""Environments that mean the same in another working directory."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_mpwriter.system import hf_home
from hf_mpwriter.system.hf_home import NOWHERE, settled

PATHS = [*hf_home._CACHES, *hf_home._FILES]
VALUES = st.text("a/.~$:", max_size=6) | st.sampled_from(
    ["", ".", "~", "~/x", "$HOME/x", "${HOME}", "./x", "../x", "/x"]
)


@given(
    st.dictionaries(st.sampled_from(["HOME", *PATHS, *hf_home._LISTS]), VALUES),
    st.sampled_from(["", "/start", "/"]),
    st.sampled_from(["", "/home/me"]),
)
def test_in_a_settled_environment_each_path_is_absolute(environ, cwd, account_home):
    """Whatever is set: no place depends on a working directory, and to settle once more changes nothing."""
    before = dict(environ)
    env = settled(environ, cwd, account_home)
    assert environ == before
    for name in PATHS:
        value = env.get(name)
        expands = name in hf_home._EXPANDED
        assert not value or os.path.isabs(hf_home._expanded(value, env) if expands else value), name
    assert os.path.isabs(env.get("HOME", account_home))
    if "~a" not in "".join(environ.values()):  # the home of another account
        for place in (*hf_home.token_files(env), hf_home.home(env), hf_home.cache_folder(env)):
            assert os.path.isabs(place)
    assert settled(env, "/elsewhere" if cwd else "", account_home) == env


def test_what_is_absolute_already_stays_as_it_is():
    """Tildes and variables too, as the client expands them itself; other variables are not touched."""
    environ = {
        "HOME": "/home/me",
        "HF_HOME": "~/hf",
        "HF_HUB_CACHE": "$HOME/hub",
        "SSL_CERT_FILE": "/etc/../etc/ca.pem",
        "HF_MPWRITER_PYTHON": "python3.12",
        "LD_LIBRARY_PATH": "/lib::/usr/lib",
        "WORDS": "./not/a/path",
    }
    assert settled(environ, "/start", "/home/me") == environ


def test_relative_paths_refer_to_the_given_directory():
    """A cache, a list with empty parts, a relative home below which a cache lies."""
    environ = {
        "HOME": "home",
        "HF_HOME": "./hf",
        "HF_XET_CACHE": "~/x",
        "LD_LIBRARY_PATH": "lib::/usr/lib",
        "HF_MPWRITER_PYTHON": "bin/python",
    }
    env = settled(environ, "/start", "/home/me")
    assert env == {
        "HOME": "/start/home",
        "HF_HOME": "/start/./hf",
        "HF_XET_CACHE": "/start/~/x",  # the client does not expand this one
        "LD_LIBRARY_PATH": "/start/lib::/usr/lib",
        "HF_MPWRITER_PYTHON": "/start/bin/python",
    }
    assert hf_home.cache_folder(env) == "/start/home/.cache"


@pytest.mark.parametrize("home", [{}, {"HOME": ""}])
def test_a_user_without_a_home_has_caches_nowhere(home, tmp_path):
    """Not in the working directory, and not in the root, even for root; the spool's own take their place."""
    env = settled({"XDG_CACHE_HOME": "", **home}, "/start", "")
    assert env == {"HOME": NOWHERE}
    assert hf_home.cache_folder(env) == f"{NOWHERE}/.cache"
    moved = hf_home.writable_caches(env, str(tmp_path))
    assert moved["HF_HOME"] == str(tmp_path)
    assert settled(home, "/start", "/home/me") == {}, "the account has one"


def test_without_a_working_directory_caches_are_nowhere():
    """It was removed: a cache is replaced later, any other file cannot be meant."""
    env = settled({"HOME": "/h", "HF_HOME": "./hf", "TMPDIR": "tmp", "SSL_CERT_DIR": "certs:/etc"}, "", "")
    assert env == {"HOME": "/h", "HF_HOME": f"{NOWHERE}/HF_HOME", "SSL_CERT_DIR": "certs:/etc"}
