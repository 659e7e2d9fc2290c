# The virtual environment that all scripts share: .venv in the repository. To be sourced, by any POSIX shell:
#
#     . "$root/scripts/lib/venv.sh"
#     ensure_venv demo          # installs .[demo] if it is not there yet, or if setup.cfg has changed since
#
# A stamp per set of extras inside .venv says what was installed; it is written after a success only, so whatever is
# interrupted is done again. Nothing is ever removed from an environment that somebody else made.

# Print the first Python that is new enough.
_find_python() {
    for python in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python; do
        if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$python"
            return 0
        fi
    done
    echo "hf-mpwriter needs Python 3.11 or newer, and there is none on PATH; PYTHON=/path/to/python3 names another." >&2
    return 1
}

_make_venv() {
    python=$(_find_python) || return 1
    echo "Making the virtual environment .venv ..." >&2
    if ! "$python" -m venv "$1"; then
        rm -rf "$1" # half of one; there was none before
        echo "$python cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2
        return 1
    fi
}

# ensure_venv EXTRAS: in $root, the absolute path of the repository.
ensure_venv() {
    venv=$root/.venv
    if [ ! -x "$venv/bin/python" ]; then
        _make_venv "$venv" || return 1
    fi
    stamp=$venv/.installed-$1
    wanted="$root $(cksum <"$root/setup.cfg")" # the path too: scripts in an environment name it
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        return 0
    fi
    echo "Installing hf-mpwriter[$1] into .venv; the first time this takes a minute ..." >&2
    if ! "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$root[$1]" >&2; then
        echo "The installation into $venv has failed; to start afresh, remove that directory." >&2
        return 1
    fi
    echo "$wanted" >"$stamp"
}
