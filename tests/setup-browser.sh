#!/bin/sh
# Makes sure that the page's tests find a Chromium: installs Debian's when it is missing and we are root.
#
# Without one it says what to install and goes on: tests/conftest.py then skips the page's tests with that reason,
# or fails them when CI=true.
set -eu

for name in ${CONVOBASE_TEST_CHROMIUM:-} chromium chromium-browser google-chrome google-chrome-stable; do
    if command -v "$name" >/dev/null 2>&1; then exit 0; fi
done

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo '==> installing chromium for the tests of the page (apt-get)'
    log=$(mktemp)
    if { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends chromium fonts-dejavu-core; } >"$log" 2>&1; then
        rm -f "$log"
        exit 0
    fi
    tail -n 5 "$log" >&2
    rm -f "$log"
fi
echo "No Chromium was found: the page's tests can't run. On Debian or Ubuntu: apt-get install chromium." >&2
