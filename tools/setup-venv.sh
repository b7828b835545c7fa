#!/bin/sh
# setup-venv.sh FOLDER run|dev: makes the virtual environment FOLDER hold the pinned requirements and this project.
#
# Does nothing, within milliseconds, when it already does. A stamp in FOLDER tells what it was made from: a changed
# requirements file, a moved folder or another kind of environment installs again. `dev` includes `run`.
set -eu

venv=$1
kind=$2
stamp=$venv/.convobase-stamp

fail() {
    printf 'convobase: %s\n' "$1" >&2
    exit 1
}

new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        new_enough "$PYTHON" || fail "PYTHON=$PYTHON is not a Python 3.11 or newer."
        echo "$PYTHON"
        return
    fi
    for candidate in python3 python3.14 python3.13 python3.12 python3.11 python; do
        if new_enough "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    have=$(python3 -V 2>/dev/null || echo 'no python3')
    fail "Python 3.11 or newer is needed, and this machine has $have; name another one with make PYTHON=/path/to/python3."
}

[ -f requirements.txt ] || fail 'run this from the folder that holds requirements.txt.'

# pyproject.toml counts because it names the commands that the project installs.
sum_of() {
    { pwd; cat "$@"; } | cksum
}
made_from_run=$(sum_of pyproject.toml requirements.txt requirements-build.txt)
made_from_dev=$(sum_of pyproject.toml requirements-dev.txt)

usable() {
    [ -f "$stamp" ] && "$venv/bin/python" -c '' 2>/dev/null
}

# What was set up for development serves as well.
if usable && grep -q '^dev ' "$stamp"; then kind=dev; fi
case $kind in
    run) want="run $made_from_run" ;;
    dev) want="dev $made_from_dev" ;;
    *) fail "unknown kind of environment: $kind" ;;
esac
if usable && [ "$(cat "$stamp")" = "$want" ]; then exit 0; fi

case $kind in
    run) files='-r requirements.txt -r requirements-build.txt' what='what the gateway needs' ;;
    dev) files='-r requirements-dev.txt' what='what the gateway and its tests need' ;;
esac

if ! { [ -x "$venv/bin/python" ] && new_enough "$venv/bin/python" && "$venv/bin/python" -c 'import pip' 2>/dev/null; }; then
    python=$(find_python)
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        fail "$($python -V) has no venv module; on Debian or Ubuntu: apt-get install python3-venv."
    echo "==> making a virtual environment in $venv with $($python -V)"
    rm -rf "$venv"
    "$python" -m venv "$venv" || fail "$python -m venv $venv failed; see above."
fi

rm -f "$stamp"
echo "==> installing $what into $venv (pinned, hash-checked; a minute or so the first time)"
# The lock is complete, so nothing has to be resolved; resolving, pip 23 takes `coverage[toml]` for an unpinned package.
# shellcheck disable=SC2086 # $files is several words
"$venv/bin/python" -m pip install -qq --disable-pip-version-check --no-deps --require-hashes $files ||
    fail 'pip could not install the requirements; see above.'
"$venv/bin/python" -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation --editable . ||
    fail 'pip could not install the project itself; see above.'
printf '%s\n' "$want" >"$stamp"
