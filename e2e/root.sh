# Sourced by the scripts that make a root directory for the tests.

# make_root NAME SUITE VARIANT PACKAGES [OPTION…] makes a root directory with
# packages of Debian SUITE, or of this machine's own Ubuntu, and prints where
# it is. The options are mmdebstrap's. Made once and reused; other arguments
# make another one. Nothing of it is installed on this machine.
make_root() {
	hash=$(echo "$*" | sha256sum | cut -c1-8)
	name=$1 suite=$2 variant=$3 packages=$4
	shift 4
	components=main
	label=Debian
	. /etc/os-release
	if [ "$ID" = ubuntu ]; then
		suite=$VERSION_CODENAME
		components=main,universe
		label=Ubuntu
	fi
	cache=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/jitgate
	root=$cache/$name-$suite-$hash
	if [ -d "$root" ]; then
		echo "$root"
		return
	fi
	mkdir -p "$cache"
	exec 9>"$root.lock"
	flock 9 # one makes it, others wait for it
	if [ ! -d "$root" ]; then
		# The mirror this machine's own apt uses.
		# shellcheck disable=SC2016
		mirror=$(apt-get indextargets --format '$(REPO_URI)' "Label: $label" "Created-By: Packages" | head -1)
		new=$root.new
		rm -rf --one-file-system "$new" # left by one that was interrupted
		if ! mmdebstrap --quiet --mode=root --variant="$variant" --components="$components" --include="$packages" \
			--aptopt='APT::Install-Recommends "false"' \
			--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
			"$@" "$suite" "$new" ${mirror:+"$mirror"} >"$new.log" 2>&1 9>&-; then
			tail -5 "$new.log" >&2
			exit 1
		fi
		rm -f "$new.log"
		mv "$new" "$root"
	fi
	echo "$root"
}
