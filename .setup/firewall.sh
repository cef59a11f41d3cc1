#!/usr/bin/env bash
# Sees to the programs that tests in a network of their own need: those of the firewall, those that make the network
# and another user in it, and the clients that are tried there.
set -euo pipefail
cd "$(dirname "$0")/.."

# Where Debian has them, which is not on everybody's PATH.
PATH=$PATH:/usr/sbin:/sbin
while read -r program package; do
  command -v "$program" >/dev/null || .setup/apt.sh "$package"
done <<'NEEDED'
nft nftables
iptables-restore iptables
ip iproute2
setpriv util-linux
curl curl
wget wget
git git
NEEDED
# Requests of Python: its own, or the copy that pip carries.
for from in 'import requests' 'from pip._vendor import requests'; do
  for python in python3 /usr/bin/python3; do
    if "$python" -c "$from" 2>/dev/null; then exit; fi
  done
done
.setup/apt.sh python3-requests
