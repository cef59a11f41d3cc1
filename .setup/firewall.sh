#!/usr/bin/env bash
# Sees to the programs that the tests of capture need: those of the firewall, and those that make a network of
# their own and another user in it.
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
NEEDED
