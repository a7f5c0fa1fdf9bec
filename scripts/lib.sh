# shellcheck shell=bash
# What the scripts share. Sourced, never run.
#
# Everything expensive lives in the cache, outside the checkout, in directories named after a hash of
# what went into them. A directory is complete when it holds the file `.complete`, which is written last,
# so an interrupted step is never taken for a finished one. (Built in place and not renamed at the end,
# because prepared kernel trees hold their own path.)

# shellcheck disable=SC2034  # the scripts that source this file use these
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/dm-remap
mkdir -p "$CACHE"
CACHE=$(cd "$CACHE" && pwd -P)
# shellcheck disable=SC2034
JOBS=$(nproc)
# The make that called is another version than the tree's, with another job server.
unset MAKEFLAGS MFLAGS MAKELEVEL

say() { printf '==> %s\n' "$*" >&2; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# is_kernel WORD: whether scripts/kernel may know it.
is_kernel() { [[ ${1:-} == @(debug|race|@(stock|previous|+([0-9]).+([0-9]))?(-kunit)) ]]; }

# What the kernel never logs when all is well: an extended regular expression.
REPORTS='^(.*\])? *\[? *(------------\[ cut here|BUG:|BUG [^ ]+ \(|WARNING:|Oops|Kernel panic|general protection fault'
REPORTS+='|INFO: task|INFO: rcu|rcu: INFO|INFO: trying to register|kmemleak: [0-9]+ new|ODEBUG:|UBSAN:|watchdog: BUG|refcount_t:)'

# hash WORD...: a short name for what went in.
hash() { printf '%s\0' "$@" | sha256sum | cut -c1-12; }

# once NAME COMMAND...: fill the directory $CACHE/NAME by running `COMMAND... DIRECTORY`, unless it is complete.
# The lock lets several scripts ask for the same thing at once.
once() {
	local dir=$CACHE/$1 log=$CACHE/$1.log start=$SECONDS
	[[ ! -e $dir/.complete ]] || return 0
	(
		flock 9
		[[ ! -e $dir/.complete ]] || exit 0
		rm -rf "$dir"
		mkdir -p "$dir"
		# Not in an `if` or `||`: that would switch off -e inside.
		trap '(($? == 0)) || { say "${dir##*/} failed. The end of its log, $log:"; tail -n 20 "$log"; } >&2' EXIT
		"${@:2}" "$dir" >"$log" 9>&-
		touch "$dir/.complete"
		say "${dir##*/} is ready ($((SECONDS - start)) s)"
	) 9>"$CACHE/lock.$1"
}

# The machine's own Debian mirror. Its apt may know other sources too, and before the first
# `apt-get update` it does not know what its sources hold.
mirror() {
	if [[ -n ${DMREMAP_MIRROR:-} ]]; then
		echo "$DMREMAP_MIRROR"
		return
	fi
	# shellcheck disable=SC2016  # apt's variables
	apt-get indextargets --format '$(ORIGIN)|$(LABEL)|$(REPO_URI)' 'Created-By: Packages' |
		sed -n 's/^Debian|Debian|//p' | head -n 1
}

# need COMMAND PACKAGE ...: apt-installs on this machine what is missing on it.
need() {
	local missing=()
	while (($#)); do
		command -v "$1" >/dev/null || missing+=("$2")
		shift 2
	done
	((${#missing[@]})) || return 0
	((EUID == 0)) || die "please install, as root: ${missing[*]}"
	say "installing on this machine: ${missing[*]}"
	[[ -n $(mirror) ]] || apt-get update -qq >/dev/null
	# The lists may be too old for the mirror.
	apt_install "${missing[@]}" || { apt-get update -qq >/dev/null && apt_install "${missing[@]}"; }
}
apt_install() { DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" >/dev/null; }

# bootstrap TARGET VARIANT PACKAGE...: trixie and its backports, without documentation.
bootstrap() {
	local target=$1 variant=$2 from proxy
	shift 2
	need mmdebstrap mmdebstrap mount mount
	from=$(mirror)
	[[ -n $from ]] || { apt-get update -qq >&2; from=$(mirror); }
	[[ -n $from ]] || die "no Debian mirror in this machine's apt configuration: set DMREMAP_MIRROR=<url>"
	proxy=$(apt-config dump --format '%v' Acquire::http::Proxy)
	# The cache is below a home directory, where apt's own user may not read: so no sandbox user. The cleanup that is
	# skipped would drop apt's package lists, which scripts/kernel reads.
	mmdebstrap --variant="$variant" --include="$(IFS=,; echo "$*")" \
		--aptopt='APT::Sandbox::User "root"' --aptopt='APT::Install-Recommends "false"' \
		--aptopt='Acquire::Languages "none"' ${proxy:+--aptopt="Acquire::http::Proxy \"$proxy\""} \
		--dpkgopt='force-unsafe-io' \
		--dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
		--dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*' \
		--skip=cleanup/apt/lists trixie "$target" \
		"deb $from trixie main" "deb $from trixie-backports main" 2>&1 |
		sed -u 's/^/    /' | tee >(cat >&2)
}
