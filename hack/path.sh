# shellcheck shell=sh
# Sourced by ./dev and hack/install.sh: the search path on which both look for tools. A Go that
# ./dev had to fetch comes first; the rest is what an ordinary user's PATH or sudo's may lack.
PATH=/usr/local/lib/podd/go/bin:$PATH:/usr/local/bin:/usr/local/go/bin:/usr/local/sbin:/usr/sbin:/sbin
export PATH
