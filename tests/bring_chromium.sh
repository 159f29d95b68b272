#!/bin/sh
# Brings a Chromium from the system's packages where none is there and that is allowed; says so loudly otherwise.
for name in chromium chromium-browser google-chrome; do
    command -v "$name" > /dev/null 2>&1 && exit 0
done
if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null 2>&1; then
    echo "installing chromium for the browser tests ..."
    { apt-get update -qq && apt-get install -y -qq chromium; } > /dev/null 2>&1 && exit 0
fi
echo "**********************************************************************"
echo "** No Chromium here, and none could be installed: the BROWSER TESTS  **"
echo "** WILL NOT RUN. Install the package 'chromium' and run this again.  **"
echo "**********************************************************************"
