#!/bin/sh
# Runs in the last stages of the Dockerfile: installs the shared libraries that build.sh found to be needed, makes the
# user, and leaves nothing else behind, itself included.
set -eu
here=/usr/local/lib/palimpsest
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
xargs apt-get install -y -qq --no-install-recommends <"$here/packages" >/dev/null
echo 'palimpsest:x:65532:' >>/etc/group
echo 'palimpsest:x:65532:65532::/nonexistent:/usr/sbin/nologin' >>/etc/passwd
# What apt and dpkg wrote down for themselves.
rm -rf "$here" /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/lib/dpkg/*-old
rm -rf /var/log/apt /var/log/*.log
rm -f /etc/passwd- /etc/group- /etc/shadow- /etc/gshadow-
# The programs find all their libraries.
! ldd /usr/local/bin/palimpsest-server /usr/local/bin/palimpsest | grep 'not found'
