# The virtual environment of all scripts: .venv in the repository. Source this file from any POSIX shell:
#
#     . "$root/scripts/lib/venv.sh"
#     ensure_venv demo          # installs .[demo] unless it is installed for the present setup.cfg
#
# A stamp in .venv for each set of extras says what was installed. It is written after success only, so an interrupted
# installation is repeated. An environment that these scripts did not make is never removed.

# Print the first Python that is new enough.
_find_python() {
    for python in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python; do
        if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$python"
            return 0
        fi
    done
    echo "hf-mpwriter needs Python 3.11 or newer, and there is none on PATH. Name one with PYTHON=/path/to/python3." >&2
    return 1
}

_make_venv() {
    python=$(_find_python) || return 1
    echo "Making the virtual environment .venv ..." >&2
    if ! "$python" -m venv "$1"; then
        rm -rf "$1" # it is incomplete, and there was none before
        echo "$python cannot make virtual environments. On Debian and Ubuntu: apt install python3-venv" >&2
        return 1
    fi
}

# ensure_venv EXTRAS: install them for the repository at $root, an absolute path.
ensure_venv() {
    venv=$root/.venv
    if [ ! -x "$venv/bin/python" ]; then
        _make_venv "$venv" || return 1
    fi
    stamp=$venv/.installed-$1
    wanted="$root $(cksum <"$root/setup.cfg")" # with the path, which scripts in an environment contain
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        return 0
    fi
    echo "Installing hf-mpwriter[$1] into .venv. The first time this takes a minute ..." >&2
    if ! "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$root[$1]" >&2; then
        echo "The installation into $venv failed. To start afresh, remove that directory." >&2
        return 1
    fi
    echo "$wanted" >"$stamp"
}
